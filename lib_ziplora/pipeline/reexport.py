"""A merge written again with other strengths, rank or precision: nothing is learnt, nothing drawn."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import ROLES, MergeRequest, MergeSettings, Role, check_weight, settings_from
from ..errors import ConfigError, LoraFileError
from ..hosts import Host, Progress
from ..lora.io.inspect import inspect_header
from ..lora.io.sidecar import damaged
from ..progress import Meter, file_units
from ..report.report import SUMMARY, MergeReport
from ..report.saved import SavedMerge, find_sources, read_saved, saved_path
from .inputs import Inputs, read_inputs, target_of
from .split import split_targets
from .weights import check_readable
from .write import Result, write


@dataclass(frozen=True)
class ReexportRequest:
    """What to write again, and how; the same object for every front end.

    Attributes:
        source: the merged LoRA's name (a path where the host allows it).
        output: name of the new LoRA, as in ``MergeRequest``.
        overwrite: replace a file of that name.
        subject_weights: what the learnt deltas of each subject are multiplied by, in the order of the
            merge; 1, also where there is none, leaves it as it was merged.
        style_weights: the same of the styles.
        rank: as in ``MergeSettings``; "" is that of the merge.
        precision: as in ``MergeSettings``; "" is that of the merge.
        split: write each LoRA's part as a file too.
        report: as in ``MergeRequest``.
    """

    source: str
    output: str
    overwrite: bool = False
    subject_weights: tuple[float, ...] = ()
    style_weights: tuple[float, ...] = ()
    rank: str = ""
    precision: str = ""
    split: bool = False
    report: bool = False

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


@dataclass(frozen=True)
class _Plan:
    """A saved merge, where it was read from, and as what it is to be written again."""

    saved: SavedMerge
    path: Path
    strengths: tuple[float, ...]
    merge: MergeRequest


def check_reexport(request: ReexportRequest, host: Host) -> None:
    """Refuse what ``reexport`` would refuse, without writing: call it before queueing.

    Raises:
        ZipLoraError: the same errors, in the same words.
    """
    _files(_plan(request, host), host)


def reexport(
    request: ReexportRequest, host: Host, on_event: Callable[[Progress], None] | None = None
) -> MergeReport:
    """Write a merge again from its saved coefficients and the LoRAs that it was made of.

    With every weight 1 and the merge's own rank and precision the tensors are those of the merge.
    The new file has its coefficients beside it too.

    Args:
        request: the merge, the new name, and what is to be different.
        host: where the LoRAs are installed; its checkpoint is needed only for LoRAs that can't be
            read without one. Its lock is the caller's business, as in ``run``.
        on_event: told of every step.

    Raises:
        ZipLoraError: in the user's words; nothing was written then.
    """
    started = time.monotonic()
    plan = _plan(request, host)
    files = _files(plan, host)
    meter = Meter(host, on_event, file_units(len(files)))
    inputs = read_inputs(plan.merge, files, target_of(plan.merge, host), host, meter)
    _require_fit(plan, inputs)
    result = Result(
        inputs,
        plan.saved.coefficients,
        figures={name: plan.saved.summary[name] for name in SUMMARY if name in plan.saved.summary},
        checkpoint=plan.saved.checkpoint,
        warnings=tuple(_other_checkpoint(plan, files, host)),
        origin={"of": plan.path.stem, "weights": list(plan.strengths)},
        history=plan.saved.history,
    )
    return write(result, host, meter, started)


def _plan(request: ReexportRequest, host: Host) -> _Plan:
    path = saved_path(request.source, host)
    saved = read_saved(path)
    strengths = _strengths(request, saved, path.stem)
    loras = tuple(
        dataclasses.replace(lora, weight=lora.weight * strength)
        for lora, strength in zip(saved.loras, strengths, strict=True)
    )
    settings = request.settings(saved.settings)
    merge = MergeRequest(loras, request.output, request.overwrite, settings, request.report)
    return _Plan(saved, path, strengths, merge)


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


def _files(plan: _Plan, host: Host) -> list[Path]:
    """The LoRAs' files, once everything that can be known beforehand is in order."""
    target_of(plan.merge, host)
    split_targets(plan.merge, host)
    files = find_sources(plan.saved, plan.path, host)
    for file in files:
        check_readable(file, host)
    return files


def _require_fit(plan: _Plan, inputs: Inputs) -> None:
    """The files are those that were found, and every layer that was learnt has its coefficients."""
    for lora, source in zip(inputs.loras, plan.saved.sources, strict=True):
        if lora.sha256 != source.sha256:
            raise LoraFileError(f"{lora.name} was changed while it was read. Try again.")
    for lora, vectors in zip(inputs.loras, plan.saved.coefficients, strict=False):
        if set(vectors) != set(lora.unet_layers()):
            raise damaged(plan.path)


def _other_checkpoint(plan: _Plan, files: Sequence[Path], host: Host) -> list[str]:
    """A sentence where LoRAs that can't be read without a checkpoint are read with another one."""
    relative = [file.stem for file in files if inspect_header(file).relative_family]
    then = plan.saved.checkpoint
    if not relative or host.checkpoint() == then:
        return []
    return [
        f"{', '.join(relative)} can only be read together with a checkpoint: {then.name} when it was merged, "
        f"{host.checkpoint().name} now. Where the two differ, so does the file."
    ]
