"""Writing of a merge: the merged file, its coefficients, each LoRA's part."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..denoiser import TextDeltas
from ..hosts import CheckpointInfo, Host, KeepsEmbeddings
from ..lora.algebra import Vectors, merge_layers
from ..lora.io.atomic import atomic_writes
from ..lora.io.embeddings import save_embeddings
from ..lora.io.metadata import merged_metadata, tags_are_shortened
from ..lora.io.sidecar import write_sidecar
from ..lora.io.write import as_written, make_folder, write_unnamed
from ..lora.layer import Approximation, LoraLayer
from ..progress import Meter
from ..report.files import reported
from ..report.report import LOSSES, SUMMARY, MergeReport, failure
from ..report.saved import SavedMerge, Source
from ..training.learnt import PLAIN_SUM, Learnt
from .inputs import Inputs
from .layers import at_rank, converted_warning, extras_warnings, loader_warnings, rank_error
from .prepare import PreparedMerge


@dataclass(frozen=True)
class TextLayers:
    """The text-encoder layers of the file to be written, and what their rank has cost."""

    layers: dict[str, LoraLayer]
    lost: list[Approximation]

    def deltas(self, device: torch.device) -> TextDeltas:
        """Each layer's delta weight, computed on a device at the time when it is asked for."""
        return {name: partial(_delta_on, device, layer) for name, layer in self.layers.items()}


def _delta_on(device: torch.device, layer: LoraLayer) -> Tensor:
    return layer.to(device).delta()


@dataclass(frozen=True)
class Result:
    """A merge that only needs to be written.

    Attributes:
        inputs: what it is made of.
        text: its text-encoder layers.
        coefficients: of each LoRA; none of a plain sum.
        checkpoint: what it was merged against.
        learnt: figures of the learning.
        warnings: sentences about how it went.
        history: figures of every update.
    """

    inputs: Inputs
    text: TextLayers
    coefficients: tuple[Vectors, ...]
    checkpoint: CheckpointInfo
    learnt: Learnt = PLAIN_SUM
    warnings: tuple[str, ...] = ()
    history: tuple[Mapping[str, float], ...] = ()


def text_layers(inputs: Inputs) -> TextLayers:
    """The text-encoder layers of each LoRA that gives any, merged, at the rank of the file."""
    return TextLayers(
        *at_rank(merge_layers(inputs.text_layers(), inputs.weights), inputs.request.settings.rank)
    )


def write(result: Result, prepared: PreparedMerge, host: Host, meter: Meter, started: float) -> MergeReport:
    """Write the merged file, its coefficients and, where asked for, each LoRA's part: all or none.

    Args:
        result: what to write.
        prepared: where to.
        host: told of every LoRA that was written.
        meter: told that writing begins, and that all is done.
        started: when the run began, on the monotonic clock.

    Raises:
        OutputError: one of them can't be written; every file is then what it was.
        Interrupted: the user asked for it.
    """
    inputs, request = result.inputs, result.inputs.request
    unet = merge_layers([lora.unet_layers() for lora in inputs.loras], inputs.weights, result.coefficients)
    smaller, lost = at_rank(unet, request.settings.rank)
    layers = {**smaller, **result.text.layers}
    output, side, parts = prepared.output, prepared.sidecar, prepared.parts
    report = _report(result, prepared, layers, rank_error(layers, lost + result.text.lost))
    saved = _saved(result)
    packed = saved.pack()
    note = {"file": side.name, "sha256": hashlib.sha256(packed).hexdigest()}
    recipe = _recipe(result, prepared, report)
    metadata = merged_metadata(
        report.name, as_written(layers), inputs.loras, {**recipe, "coefficients": note}
    )
    make_folder(output)
    with atomic_writes((*parts, side, output), request.overwrite) as (*hidden_parts, hidden_side, hidden):
        for index, path in enumerate(parts):
            _write_part(result, index, path, hidden_parts[index], recipe)
        write_sidecar(hidden_side, packed)
        meter.enter("writing", f"Writing {output.name}")
        meter.stop_if_interrupted()
        model_hash = _write_lora(inputs, hidden, output, layers, metadata)
    for path in (*parts, output):
        host.refresh(path)
    seconds = round(time.monotonic() - started, 2)
    meter.finish(f"Wrote {output.name} in {seconds:.0f} s")
    done = dataclasses.replace(report, model_hash=model_hash, seconds=seconds)
    if request.settings.save_embeddings:
        done = _with_embeddings(done, prepared, host)
    return reported(done, saved, output, request.report)


def _with_embeddings(report: MergeReport, prepared: PreparedMerge, host: Host) -> MergeReport:
    """The report with what became of the LoRAs' embeddings; whatever goes wrong, the merge stays."""
    folder = host.embeddings_folder() if isinstance(host, KeepsEmbeddings) else prepared.output.parent
    told: list[str] = []
    for file, header in zip(prepared.files, prepared.headers, strict=True):
        problem = failure(partial(told.extend, save_embeddings(file, header.unknown, folder)))
        told += [f"The embeddings of {file.stem} are not all saved: {problem}"] if problem else []
    return dataclasses.replace(report, warnings=(*report.warnings, *told))


def _write_part(
    result: Result, index: int, path: Path, temporary: Path, recipe: Mapping[str, object]
) -> None:
    """One LoRA's part as a file of its own; parts are whole, so their rank is exact."""
    part = result.inputs.alone(index)
    unet = merge_layers([lora.unet_layers() for lora in part.loras], part.weights, result.coefficients)
    layers = {**unet, **text_layers(part).layers}
    metadata = merged_metadata(path.stem, as_written(layers), (result.inputs.loras[index],), recipe)
    _write_lora(part, temporary, path, layers, metadata)


def _write_lora(
    inputs: Inputs, temporary: Path, file: Path, layers: Mapping[str, LoraLayer], metadata: Mapping[str, str]
) -> str:
    request = inputs.request
    extras = inputs.extras(layers)
    return write_unnamed(temporary, file, layers, metadata, request.settings.precision, extras)


def _saved(result: Result) -> SavedMerge:
    """What the file beside the merged one holds."""
    inputs = result.inputs
    return SavedMerge(
        loras=inputs.request.loras,
        settings=inputs.request.settings,
        sources=tuple(Source(lora.name, lora.sha256, lora.size) for lora in inputs.loras),
        coefficients=result.coefficients,
        checkpoint=result.checkpoint,
        summary={name: getattr(result.learnt, name) for name in SUMMARY},
        history=result.history,
    )


def _report(
    result: Result, prepared: PreparedMerge, layers: Mapping[str, LoraLayer], rank_error: float
) -> MergeReport:
    inputs, settings = result.inputs, result.inputs.request.settings
    unknown = {lora.name: lora.unknown for lora in inputs.loras if lora.unknown}
    warnings = [remark for header in prepared.headers for remark in header.remarks]
    warnings += [sentence for lora in inputs.loras if (sentence := converted_warning(lora))]
    extras = inputs.extras(layers)
    warnings += extras_warnings(inputs.loras, extras) + loader_warnings(layers, extras)
    warnings += [*settings.remarks(), *result.warnings]
    if tags_are_shortened(inputs.loras):
        warnings.append(
            "The LoRAs have over a million characters of training tags; the file keeps the most frequent ones."
        )
    if not inputs.pairing.common:
        warnings.append("The LoRAs have no layer in common: the file holds them side by side.")
    single = [len(names) for names in inputs.pairing.single]
    return MergeReport(
        output=str(prepared.output),
        name=prepared.output.stem,
        method=settings.method,
        settings=settings,
        learnt=result.learnt,
        common_layers=len(inputs.pairing.common),
        single_layers=dict(zip(inputs.request.labels, single, strict=True)),
        rank=max(layer.rank for layer in layers.values()),
        rank_error=rank_error,
        checkpoint=result.checkpoint.name,
        sidecar=prepared.sidecar.name,
        split=tuple(path.stem for path in prepared.parts),
        unknown=unknown,
        warnings=tuple(warnings),
    )


def _recipe(result: Result, prepared: PreparedMerge, report: MergeReport) -> dict[str, object]:
    """How the file was made, for its header: inputs, settings, checkpoint, what was learnt."""
    request = result.inputs.request
    layers = {"common_layers": report.common_layers, "single_layers": report.single_layers}
    recipe: dict[str, object] = {
        "method": report.method,
        "loras": [dataclasses.asdict(lora) for lora in request.loras],
        "settings": dataclasses.asdict(request.settings),
        "checkpoint": dataclasses.asdict(result.checkpoint) if result.checkpoint.name else {},
        "summary": {**layers, **{name: getattr(result.learnt, name) for name in (*SUMMARY, *LOSSES)}},
    }
    if prepared.origin:
        recipe["re_export"] = {"of": prepared.origin[0].stem, "weights": list(prepared.origin[1])}
    return recipe
