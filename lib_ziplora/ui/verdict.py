"""What is told before a merge: problems, layers, size, time, and where the LoRAs overlap."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .. import plots as drawing
from ..pipeline.overlap import Overlap
from ..pipeline.preflight import Preflight
from ..plots import number
from .text import duration, listed

FULL_COLOUR = 0.3
"""The overlap from which on a cell has its full colour, unless one is above it."""


def verdict(found: Preflight, seconds: float | None, method: str) -> str:
    """A box with everything that a look at a merge has found.

    Args:
        found: by ``job.preflight``.
        seconds: that the merge will take, or None.
        method: of the merge.
    """
    names = escape(" + ".join(found.names))
    if found.problems:
        state, kind = "This can't be merged yet.", "ziplora-error"
    else:
        state, kind = "Nothing speaks against this merge.", "ziplora-done"
    advice = f'<p class="ziplora-advice">{escape(found.advice)}</p>' if found.advice else ""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in figures(found, seconds, method)
    )
    return (
        f'<div class="ziplora-box {kind}" role="status" data-check="{"problems" if found.problems else "fine"}">'
        f"<p><b>{names}</b></p><p>{state}</p>{listed(found.problems, 'ziplora-problems')}{advice}"
        f"{listed(found.remarks, 'ziplora-warnings')}<table>{rows}</table>"
        f"{heat_map(found.overlap) if found.overlap else ''}</div>"
    )


def figures(found: Preflight, seconds: float | None, method: str) -> Sequence[tuple[str, str]]:
    """The rows of the box's table; what can't be told has none, but for the time."""
    rows = []
    if found.common_layers is not None:
        single = [f"{count} {label} only" for label, count in found.single_layers.items()]
        rows.append(("Layers", ", ".join([f"{found.common_layers} common", *single])))
    if found.overlap:
        rows.append(
            ("Column overlap", f"{number(found.overlap.mean)} (by chance {number(found.overlap.chance)})")
        )
    if found.size is not None:
        rows.append(("File size", f"about {found.size / 1e6:.1f} MB"))
    if method == "direct":
        rows.append(("Time", "a few seconds, nothing is learnt"))
    elif seconds is None:
        rows.append(("Time", "unknown until a merge of this sample size has run here"))
    else:
        rows.append(("Time", f"about {duration(seconds)}"))
    return rows


def heat_map(overlap: Overlap) -> str:
    """Mean |cosine| of each block and kind of layer as a table, coloured by value."""
    full = max(FULL_COLOUR, *overlap.places.values()) if overlap.places else FULL_COLOUR
    return drawing.heat_map(
        "Overlap by block: mean |cosine| of the same columns",
        overlap.places,
        overlap.kinds,
        full,
        f"0 is apart, 1 the same; the strongest colour is {full:.2f}.",
    )
