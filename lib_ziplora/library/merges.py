"""Installed merges that can be exported again, and the LoRAs of each."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import MergeSettings, Role, labels
from ..hosts import Host
from ..lora.io.sidecar import sidecar_path
from ..report.saved import read_saved, saved_path


@dataclass(frozen=True)
class Steerable:
    """A merge that can be exported again.

    Attributes:
        name: the merged LoRA's.
        loras: the names of those that it was made of.
        roles: what each of them brings.
        settings: as they were used; ``rank`` and ``precision`` are what an export keeps.
        checkpoint: the name of what it was merged against; "" after a plain sum.
    """

    name: str
    loras: tuple[str, ...]
    roles: tuple[Role, ...]
    settings: MergeSettings
    checkpoint: str

    @property
    def labels(self) -> tuple[str, ...]:
        """What each LoRA is called, as in ``MergeRequest.labels``."""
        return labels(self.roles)


def steerables(host: Host) -> list[str]:
    """The names of the installed LoRAs that have coefficients beside them; no file is read."""
    return [lora.name for lora in host.loras() if sidecar_path(lora.path).is_file()]


def steerable(host: Host, name: str) -> Steerable:
    """What there is to steer in a merge.

    Raises:
        LoraFileError: there is no such LoRA, or its coefficients are missing or damaged.
    """
    path = saved_path(name, host)
    saved = read_saved(path)
    return Steerable(
        path.stem,
        tuple(source.name for source in saved.sources),
        tuple(lora.role for lora in saved.loras),
        saved.settings,
        saved.checkpoint.name,
    )
