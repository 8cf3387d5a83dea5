"""From read LoRAs and coefficients to files: the merged one, its coefficients, each LoRA's part."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..hosts import CheckpointInfo, Host
from ..lora.algebra import Vectors, merge_layers
from ..lora.io.atomic import atomic_writes
from ..lora.io.metadata import merged_metadata
from ..lora.io.sidecar import sidecar_path, write_sidecar
from ..lora.io.write import write_unnamed
from ..lora.layer import Approximation, LoraLayer
from ..progress import Meter
from ..report.files import reported
from ..report.report import SUMMARY, MergeReport
from ..report.saved import SavedMerge, Source
from .inputs import Inputs
from .layers import at_rank, converted_warning, extras_warnings, rank_error
from .split import split_targets

ENDS = ("loss_start", "loss_end", "heldout_loss_start", "heldout_loss_end")


@dataclass(frozen=True)
class Result:
    """A merge that only needs to be written.

    Attributes:
        inputs: what it is made of.
        coefficients: of each LoRA; none of a plain sum.
        figures: those fields of the report that are known already.
        checkpoint: what it was merged against.
        warnings: sentences about how it went.
        origin: of a merge that is exported again, what it is made of.
        history: figures of every update.
    """

    inputs: Inputs
    coefficients: tuple[Vectors, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: CheckpointInfo = field(default_factory=lambda: CheckpointInfo("", ""))
    warnings: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, float], ...] = ()


def text_layers(inputs: Inputs) -> tuple[dict[str, LoraLayer], list[Approximation]]:
    """The text-encoder layers of the file to be written, and what their rank has cost."""
    return at_rank(merge_layers(inputs.text_layers(), inputs.weights), inputs.request.settings.rank)


def merged_layers(
    inputs: Inputs, coefficients: tuple[Vectors, ...]
) -> tuple[dict[str, LoraLayer], list[Approximation]]:
    """Every layer of the file: the UNet's by its coefficients, the text encoders' as chosen.

    And the layers that their rank has cost something.
    """
    unet = merge_layers([lora.unet_layers() for lora in inputs.loras], inputs.weights, coefficients)
    smaller, lost = at_rank(unet, inputs.request.settings.rank)
    text, text_lost = text_layers(inputs)
    return {**smaller, **text}, lost + text_lost


def write(result: Result, host: Host, meter: Meter, started: float) -> MergeReport:
    """Write the merged file, its coefficients and, where asked for, each LoRA's part: all or none.

    Args:
        result: what to write.
        host: told of every LoRA that was written.
        meter: told that writing begins, and that all is done.
        started: when the run began, on the monotonic clock.

    Raises:
        OutputError: one of them can't be written; every file is then what it was.
        Interrupted: the user asked for it.
    """
    inputs = result.inputs
    layers, lost = merged_layers(inputs, result.coefficients)
    parts = split_targets(inputs.request, host)
    side = sidecar_path(inputs.target)
    report = _report(result, layers)
    report = dataclasses.replace(
        report,
        rank_error=rank_error(layers, lost),
        split=tuple(path.stem for path in parts),
        sidecar=side.name,
    )
    saved = _saved(result, report)
    packed = saved.pack()
    note = {"file": side.name, "sha256": hashlib.sha256(packed).hexdigest()}
    recipe = {**_recipe(result, report), "coefficients": note}
    metadata = merged_metadata(report.name, layers, inputs.loras, recipe)
    files = (*parts, side, inputs.target)
    with atomic_writes(files, inputs.request.overwrite) as (*hidden_parts, hidden_side, hidden):
        for index, path in enumerate(parts):
            _write_part(result, report, index, path, hidden_parts[index])
        write_sidecar(hidden_side, packed)
        meter.enter("writing", f"Writing {inputs.target.name}")
        meter.stop_if_interrupted()
        model_hash = _write_lora(inputs, hidden, inputs.target, layers, metadata)
    for path in (*parts, inputs.target):
        host.refresh(path)
    seconds = time.monotonic() - started
    meter.finish(f"Wrote {inputs.target.name} in {seconds:.0f} s")
    done = dataclasses.replace(report, model_hash=model_hash, seconds=round(seconds, 2))
    return reported(done, saved, inputs.target, inputs.request.report)


def _write_part(result: Result, report: MergeReport, index: int, path: Path, temporary: Path) -> None:
    """One LoRA's part as a file of its own."""
    part = result.inputs.alone(index)
    layers, _ = merged_layers(part, result.coefficients)
    source = (result.inputs.loras[index],)
    metadata = merged_metadata(path.stem, layers, source, _recipe(result, report))
    _write_lora(part, temporary, path, layers, metadata)


def _write_lora(
    inputs: Inputs, temporary: Path, file: Path, layers: Mapping[str, LoraLayer], metadata: Mapping[str, str]
) -> str:
    request = inputs.request
    extras = inputs.extras(layers)
    return write_unnamed(temporary, file, layers, metadata, request.settings.precision, extras)


def _saved(result: Result, report: MergeReport) -> SavedMerge:
    """What the file beside the merged one holds."""
    inputs = result.inputs
    return SavedMerge(
        loras=inputs.request.loras,
        settings=inputs.request.settings,
        sources=tuple(Source(lora.name, lora.sha256, lora.size) for lora in inputs.loras),
        coefficients=result.coefficients,
        checkpoint=result.checkpoint,
        summary={name: getattr(report, name) for name in SUMMARY},
        history=result.history,
    )


def _report(result: Result, layers: Mapping[str, LoraLayer]) -> MergeReport:
    inputs, settings = result.inputs, result.inputs.request.settings
    unknown = {lora.name: lora.unknown for lora in inputs.loras if lora.unknown}
    warnings = [
        f"{name}: {len(keys)} tensors belong to no layer that SDXL has and were left out, the first is {keys[0]}."
        for name, keys in unknown.items()
    ]
    warnings += [sentence for lora in inputs.loras if (sentence := converted_warning(lora))]
    warnings += extras_warnings(inputs.loras, inputs.extras(layers))
    warnings += [*settings.remarks(), *result.warnings]
    if not inputs.pairing.common:
        warnings.append("The LoRAs have no layer in common: the file holds them side by side.")
    single = [len(names) for names in inputs.pairing.single]
    return MergeReport(
        output=str(inputs.target),
        name=inputs.target.stem,
        method=settings.method,
        common_layers=len(inputs.pairing.common),
        single_layers=dict(zip(inputs.request.labels, single, strict=True)),
        rank=max(layer.rank for layer in layers.values()),
        model_hash="",
        settings=settings,
        checkpoint=result.checkpoint.name,
        unknown=unknown,
        warnings=tuple(warnings),
        **{"steps": 0, **result.figures},
    )


def _recipe(result: Result, report: MergeReport) -> dict[str, object]:
    """How the file was made, for its header: inputs, settings, checkpoint, what was learnt."""
    request = result.inputs.request
    kept = ("common_layers", "single_layers", *SUMMARY, *ENDS)
    return {
        "method": report.method,
        "loras": [dataclasses.asdict(lora) for lora in request.loras],
        "settings": dataclasses.asdict(request.settings),
        "checkpoint": dataclasses.asdict(result.checkpoint) if result.checkpoint.name else {},
        "summary": {name: getattr(report, name) for name in kept},
        **({"re_export": dict(result.origin)} if result.origin else {}),
    }
