"""Re-export: a merge written again with other strengths, rank or precision, from its saved coefficients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import Any, get_args

from ..config import (
    LARGEST_WEIGHT,
    ROLES,
    MergeRequest,
    MergeSettings,
    Precision,
    Role,
    card_option,
    check_weight,
    output_option,
    overwrite_option,
    report_option,
    setting_fields,
    settings_from,
)
from ..errors import ConfigError, LoraFileError
from ..hosts import CheckpointInfo, Host
from ..lora.io.sidecar import damaged
from ..options import option
from ..report.saved import SavedMerge, find_sources, read_saved, saved_path
from .inputs import Inputs
from .prepare import Examination, PreparedMerge, add_file, check_outputs
from .write import Result, TextLayers

MERGED = (
    "Name of a merged LoRA with its coefficients (NAME.ziplora) beside it, or its file where paths are taken"
)


def _weights(role: Role) -> Any:
    return option(
        (),
        f"Strengths of the {role}s",
        f"What each {role} brings is multiplied by these, in the order of the merge; 1, also where there is "
        "none, leaves it as it was merged",
        minimum=-LARGEST_WEIGHT,
        maximum=LARGEST_WEIGHT,
        flag=f"--{role}-weight",
    )


@dataclass(frozen=True)
class ReexportRequest:
    """What to write again, and how; the same object for every front end."""

    source: str = option(MISSING, "Merged LoRA", MERGED, flag="source")
    output: str = output_option()
    overwrite: bool = overwrite_option()
    subject_weights: tuple[float, ...] = _weights("subject")
    style_weights: tuple[float, ...] = _weights("style")
    rank: str = option("", "Rank", f"{setting_fields()['rank'].help}. Empty: as merged")
    precision: str = option(
        "",
        "Precision",
        f"{setting_fields()['precision'].help}. Empty: as merged",
        choices=get_args(Precision),
    )
    split: bool = option(False, setting_fields()["split"].label, setting_fields()["split"].help)
    report: bool = report_option()
    card: bool = card_option()

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError("No merged LoRA is chosen. Choose the one to export again.")
        for role in ROLES:
            for weight in self.weights(role):
                check_weight(f"The {role}'s weight", weight)
        self.settings(MergeSettings())

    def weights(self, role: Role) -> tuple[float, ...]:
        """The weights of the LoRAs of a role."""
        return self.subject_weights if role == "subject" else self.style_weights

    def settings(self, merged: MergeSettings) -> MergeSettings:
        """The settings of a merge with what is asked for instead.

        Raises:
            ConfigError: a value that does not exist, or two that contradict each other.
        """
        wanted = {"rank": self.rank or merged.rank, "precision": self.precision or merged.precision}
        return settings_from({**dataclasses.asdict(merged), **wanted, "split": self.split})


def prepare_reexport(request: ReexportRequest, host: Host) -> PreparedMerge:
    """Find out what can be known of a re-export before a tensor is read; refuse what can't be done.

    With every weight 1 and the merge's own rank and precision the tensors will be those of the merge. The
    host's checkpoint is needed only for LoRAs that can't be read without one.

    Raises:
        ZipLoraError: the merge, its coefficients or a LoRA that it was made of is gone or has changed; the
            new name can't be used; in the user's words.
    """
    path = saved_path(request.source, host)
    saved = read_saved(path)
    strengths = _strengths(request, saved, path.stem)
    loras = tuple(
        dataclasses.replace(lora, weight=lora.weight * strength)
        for lora, strength in zip(saved.loras, strengths, strict=True)
    )
    settings = request.settings(saved.settings)
    found = Examination(
        MergeRequest(loras, request.output, request.overwrite, settings, request.report, request.card)
    )
    check_outputs(found, host)
    if not found.problems:
        sources = find_sources(saved, path, host)
        for file, text in zip(sources, found.request.wants_text, strict=True):
            add_file(found, file, host, text)
    return dataclasses.replace(found.prepared(), saved=saved, origin=(path, strengths))


def saved_result(
    prepared: PreparedMerge, saved: SavedMerge, inputs: Inputs, text: TextLayers, host: Host
) -> Result:
    """A saved merge that only needs to be written again: nothing is learnt, nothing drawn.

    Raises:
        LoraFileError: a file was changed meanwhile, or a layer has no coefficients.
    """
    for lora, source in zip(inputs.loras, saved.sources, strict=True):
        if lora.sha256 != source.sha256:
            raise LoraFileError(f"{lora.name} was changed while it was read. Try again.")
    for lora, vectors in zip(inputs.loras, saved.coefficients, strict=False):
        if set(vectors) != set(lora.unet_layers()):
            raise damaged(prepared.origin[0] if prepared.origin else prepared.sidecar)
    warnings = _other_checkpoint(prepared.relative, saved.checkpoint, host)
    learnt = saved.learnt()
    return Result(inputs, text, saved.coefficients, saved.checkpoint, learnt, warnings, saved.history)


def _strengths(request: ReexportRequest, saved: SavedMerge, name: str) -> tuple[float, ...]:
    """The weight of each LoRA of the merge, in its order."""
    left = {}
    for role in ROLES:
        given, count = request.weights(role), [lora.role for lora in saved.loras].count(role)
        if len(given) > count:
            raise ConfigError(
                f"There are {len(given)} weights for a {role}, but {name} was merged from {count} of them. "
                "Give one weight for each, in the order of the merge."
            )
        left[role] = iter((*given, *[1.0] * (count - len(given))))
    return tuple(next(left[lora.role]) for lora in saved.loras)


def _other_checkpoint(relative: Sequence[str], then: CheckpointInfo, host: Host) -> tuple[str, ...]:
    """A sentence where LoRAs that can't be read without a checkpoint are read with another one."""
    if not relative or host.checkpoint() == then:
        return ()
    return (
        f"{', '.join(relative)} can only be read together with a checkpoint: {then.name} when it was merged, "
        f"{host.checkpoint().name} now. Where the two differ, so does the file.",
    )
