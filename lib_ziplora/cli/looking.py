"""``check`` and ``explain``: what can be told before a merge is made, and after."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import MergeRequest
from ..errors import OutputError
from ..library.json_store import data_folder
from ..library.timing import Pace
from ..pipeline.overlap import Overlap
from ..pipeline.preflight import Preflight, preflight
from ..report.document import Document
from ..report.html import page

DESCRIPTIONS = {
    "check": """\
Look at a merge before it is made: what speaks against it, layers, overlap, the size of the
file. It takes the arguments of merge, so write check instead of merge; nothing is written,
and no model is loaded.
""",
    "explain": """\
Tell what a merge did, from the coefficients that it has left beside its file (NAME.ziplora):
in words, and how much of each LoRA is left in every block.
""",
}
EPILOGS = {
    "check": """\
example:

  python -m lib_ziplora check subject.safetensors style.safetensors -o both.safetensors \\
      --checkpoint sd_xl_base_1.0/

exit codes: 0 nothing speaks against it; 1 something does, and what.
""",
    "explain": """\
example, after the example of merge:

  python -m lib_ziplora explain turtle-fluent.safetensors -o turtle-fluent.html
""",
}
GAP = "  "


def add_explain(one: argparse.ArgumentParser) -> None:
    """The arguments of ``explain``."""
    one.add_argument("merged", metavar="MERGED", help="merged LoRA file or its .ziplora")
    one.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="write it as a page too")
    one.add_argument("--force", action="store_true", help="replace FILE.html if it is there")
    one.add_argument("--json", action="store_true", help="print JSON instead of text")


def check_text(found: Preflight, seconds: float | None) -> Iterator[str]:
    """``check`` for people, line by line."""
    yield " + ".join(found.names)
    for sentence in found.problems:
        yield f"problem: {sentence}"
    if not found.problems:
        yield "Nothing speaks against this merge."
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
    if seconds is not None:
        yield f"{GAP}time     about {seconds:.0f} s"
    if found.overlap:
        yield f"{GAP}overlap  {found.overlap.mean:.3f} (by chance {found.overlap.chance:.3f})"
        yield from _table(found.overlap.blocks, found.overlap.kinds, found.overlap.places)


def check_json(found: Preflight, seconds: float | None) -> dict[str, Any]:
    """``check`` as plain data."""
    return {
        "names": list(found.names),
        "problems": list(found.problems),
        "remarks": list(found.remarks),
        "common_layers": found.common_layers,
        "single_layers": dict(found.single_layers),
        "size": found.size,
        "memory": found.memory,
        "seconds": seconds,
        "overlap": _overlap_json(found.overlap) if found.overlap else None,
        "advice": found.advice,
    }


def _overlap_json(overlap: Overlap) -> dict[str, Any]:
    figures = {name: getattr(overlap, name) for name in ("mean", "chance", "measured", "common")}
    places = [
        {"block": block, "kind": kind, "overlap": value} for (block, kind), value in overlap.places.items()
    ]
    return {**figures, "places": places}


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


def _table(
    blocks: tuple[str, ...], kinds: tuple[str, ...], values: dict[tuple[str, str], float] | Any
) -> Iterator[str]:
    first = max(map(len, ("block", *blocks)), default=0)
    yield GAP + GAP.join(["block".ljust(first), *kinds])
    for block in blocks:
        cells = [_cell(values.get((block, kind)), len(kind)) for kind in kinds]
        yield (GAP + GAP.join([block.ljust(first), *cells])).rstrip()


def _cell(value: float | None, width: int) -> str:
    return ("" if value is None else f"{value:.2f}").rjust(width)


def show_check(request: MergeRequest, host: Any, *, as_json: bool) -> bool:
    """Print what a look at a merge has found; whether nothing speaks against it."""
    found = preflight(request, host)
    seconds = None if found.problems else Pace(data_folder(host)).seconds(request, host)
    if as_json:
        print(json.dumps(check_json(found, seconds), indent=2))
    else:
        print("\n".join(check_text(found, seconds)))
    return not found.problems


def show_explanation(found: Document, file: Path | None, *, replace: bool, as_json: bool) -> None:
    """Print what a merge did, and write its page where asked for.

    Raises:
        OutputError: the page can't be written, or is there already.
    """
    if file is not None:
        _write_page(file, found, replace)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print("\n".join(explain_text(found)))


def _write_page(file: Path, found: Document, replace: bool) -> None:
    if file.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"The page {file} needs a name that ends in .html.")
    try:
        with file.open("w" if replace else "x", encoding="utf-8") as stream:
            stream.write(page(found))
    except FileExistsError as error:
        raise OutputError(f"{file} exists already; give another name, or --force.") from error
    except OSError as error:
        raise OutputError(f"The page {file} can't be written ({error.strerror}).") from error
    print(f"Wrote {file}", file=sys.stderr)
