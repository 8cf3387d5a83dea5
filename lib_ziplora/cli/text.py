"""Text output of ``check``, ``scan`` and ``explain``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..lora.blocks import Place
from ..pipeline.preflight import Preflight
from ..pipeline.scan import Scan
from ..report.document import Document

GAP = "  "


def check_text(found: Preflight) -> Iterator[str]:
    """``check`` for people, line by line."""
    yield " + ".join(found.names)
    for sentence in found.problems:
        yield f"problem: {sentence}"
    if not found.problems:
        yield "Ready to merge."
    if found.advice:
        yield found.advice
    for sentence in found.remarks:
        yield f"note: {sentence}"
    if found.common_layers is not None:
        single = [f"{count} {label} only" for label, count in found.single_layers.items()]
        yield f"{GAP}layers   {', '.join([f'{found.common_layers} common', *single])}"
    if found.size is not None:
        yield f"{GAP}size     about {found.size / 1e6:.1f} MB"
    if found.memory is not None:
        yield f"{GAP}memory   about {found.memory / 1e9:.1f} GB beside the checkpoint"
    if found.seconds is not None:
        yield f"{GAP}time     about {found.seconds:.0f} s"
    if found.overlap:
        yield f"{GAP}overlap  {found.overlap.mean:.3f} (by chance {found.overlap.chance:.3f})"
        yield from _table(found.overlap.blocks, found.overlap.kinds, found.overlap.places)


def scan_text(found: Scan) -> Iterator[str]:
    """``scan`` for people, line by line: the overlap, its multiple of chance, the two LoRAs, and what it means."""
    widths = [
        max(len(name) for name in names)
        for names in zip(*((p.subject, p.style) for p in found.pairs), strict=True)
    ]
    for pair in found.pairs:
        figures = "     -     -" if pair.overlap is None else f"{pair.overlap:6.3f} {pair.ratio:4.1f}x"
        yield f"{figures}{GAP}{pair.subject:{widths[0]}}{GAP}{pair.style:{widths[1]}}{GAP}{pair.advice}"


def explain_text(found: Document) -> Iterator[str]:
    """``explain`` for people, line by line."""
    yield found.name
    yield from found.words
    for name, value in found.figures():
        yield f"{GAP}{name}: {value}"
    for lora in found.explanation.loras:
        yield f"strength of the {lora.label}, {lora.name}: mean |m| by block"
        blocks = tuple(dict.fromkeys(block for block, _ in lora.places))
        yield from _table(blocks, found.explanation.kinds, lora.strengths)
    yield f"recipe: {found.recipe}"


def _table(blocks: tuple[str, ...], kinds: tuple[str, ...], values: Mapping[Place, float]) -> Iterator[str]:
    first = max(map(len, ("block", *blocks)), default=0)
    yield GAP + GAP.join(["block".ljust(first), *kinds])
    for block in blocks:
        cells = [_cell(values.get((block, kind)), len(kind)) for kind in kinds]
        yield (GAP + GAP.join([block.ljust(first), *cells])).rstrip()


def _cell(value: float | None, width: int) -> str:
    return ("" if value is None else f"{value:.2f}").rjust(width)
