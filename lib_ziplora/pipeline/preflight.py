"""Preflight: problems, layers, overlap, size and memory of a merge before it is made, without the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import MergeRequest, parse_rank
from ..errors import ZipLoraError
from ..hosts import Host, KnowsSize
from ..lora.io.inspect import LoraHeader
from ..lora.io.size import FileShapes, expected_size
from ..plots import counted
from ..training.memory import MemoryForecast, forecast_memory
from .overlap import Overlap, overlap_of
from .prepare import examine
from .suitability import request_remarks


@dataclass(frozen=True)
class Preflight:
    """What is known of a merge beforehand.

    Attributes:
        names: of the LoRAs.
        problems: why it would be refused, as sentences; empty when it is ready to merge.
        remarks: what does not keep it from being made.
        common_layers: layers that at least two of the LoRAs have; None where a file can't be read.
        single_layers: for each LoRA, as in ``MergeReport``, the number of layers that it alone has.
        size: bytes of the merged file, or the most that it can have; None where it can't be told.
        overlap: how much they get in each other's way; None where it can't be told.
        advice: a sentence about what to do, or "".
        memory: bytes that learning will take beside the checkpoint, roughly; None where nothing is learnt.
        seconds: that it will take, where one of its kind was made here.
    """

    names: tuple[str, ...]
    problems: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    common_layers: int | None = None
    single_layers: Mapping[str, int] = field(default_factory=dict)
    size: int | None = None
    overlap: Overlap | None = None
    advice: str = ""
    memory: int | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        found = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        lists = {name: list(found[name]) for name in ("names", "problems", "remarks")}
        overlap = self.overlap.to_json() if self.overlap else None
        return {**found, **lists, "single_layers": dict(self.single_layers), "overlap": overlap}


def preflight(request: MergeRequest, host: Host) -> Preflight:
    """Look at a merge before it is made: headers, the columns' overlap, every problem.

    The overlap takes a second or two the first time and is remembered; the rest takes a moment.
    """
    names = tuple(Path(chosen.lora).stem for chosen in request.loras)
    if len(set(names)) < len(names):
        names = tuple(chosen.lora for chosen in request.loras)
    found = examine(request, host)
    problems = [str(problem) for problem in found.problems]
    if len(found.files) < len(request.loras):
        return Preflight(names, _different(problems))
    headers, shapes = [one.header for one in found.inspected], [one.shapes for one in found.inspected]
    common, single = _paired(request, shapes)
    overlap = None
    if not any(header.relative_family() for header in headers):
        try:
            overlap = overlap_of(*found.files)
        except ZipLoraError as error:
            problems.append(str(error))
    if overlap and overlap.obstacle and request.settings.needs.model:
        problems.append(overlap.obstacle)
    remarks = request_remarks(found.request, headers, host)
    memory = _memory(request, host, shapes)
    return Preflight(
        names,
        _different(problems),
        (*remarks, *_remarks(headers, overlap), *_whole(request), *([memory.sentence] if memory else [])),
        common,
        single,
        _size(request, shapes),
        overlap,
        advice(overlap, request.settings.method) if overlap and not problems else "",
        memory.need if memory else None,
    )


def _different(sentences: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sentences))


def _paired(request: MergeRequest, shapes: Sequence[FileShapes]) -> tuple[int, dict[str, int]]:
    """How many layers are common, and how many each LoRA has alone."""
    owned = [{*one.layers, *one.unknown} for one in shapes]
    owners = {name: sum(name in names for names in owned) for names in owned for name in names}
    single = [sum(owners[name] == 1 for name in names) for names in owned]
    return sum(count > 1 for count in owners.values()), dict(zip(request.labels, single, strict=True))


def _size(request: MergeRequest, shapes: Sequence[FileShapes]) -> int | None:
    settings = request.settings
    if any(one.unknown for one in shapes):
        return None
    wanted = request.wants_text
    sources = [
        {name: layer for name, layer in one.layers.items() if text or not name.startswith("lora_te")}
        for one, text in zip(shapes, wanted, strict=True)
    ]
    extras = {
        name: shape
        for one, text in zip(shapes, wanted, strict=True)
        for name, shape in one.extras.items()
        if text or not name.startswith("lora_te")
    }
    return expected_size(sources, settings.precision, parse_rank(settings.rank), extras, name=request.output)


def _remarks(headers: Sequence[LoraHeader], overlap: Overlap | None) -> list[str]:
    found = []
    for header in headers:
        if header.relative_family():
            found.append(
                f"{header.name} can only be read together with the checkpoint, so its overlap is not measured here."
            )
        found += header.remarks
    if overlap and overlap.measured < overlap.common:
        found.append(f"The overlap is that of {counted(overlap.measured, 'layer')}, some of every block.")
    return found


def _whole(request: MergeRequest) -> list[str]:
    if not any(lora.blocks for lora in request.loras):
        return []
    return [
        "Layers, overlap and size are those of the whole LoRAs; the merge takes only the blocks that were chosen."
    ]


def _memory(request: MergeRequest, host: Host, shapes: Sequence[FileShapes]) -> MemoryForecast | None:
    unets = [
        {name: layer for name, layer in one.layers.items() if name.startswith("lora_unet")} for one in shapes
    ]
    return forecast_memory(
        unets, request.settings, host.picture_size() if isinstance(host, KnowsSize) else None
    )


def advice(overlap: Overlap, method: str) -> str:
    """What the overlap suggests, in a sentence."""
    if not overlap.measured:
        return "They have no layer in common, so the plain sum (method direct) keeps both as they are."
    figures = f"{overlap.mean:.2f}; columns without anything in common have about {overlap.chance:.2f}"
    if overlap.degree == "apart":
        end = "." if method == "direct" else ": try the method direct first, it takes seconds."
        return f"These hardly overlap ({figures}). A plain sum will usually do{end}"
    if overlap.degree == "in part":
        return (
            f"These overlap in part ({figures}). In a plain sum they disturb each other; learnt coefficients "
            "usually keep more of both."
        )
    return (
        f"These pull on the same columns ({figures}). A plain sum mixes them up; learn the coefficients, and "
        "expect to trade one against the other."
    )
