"""Pre-flight: problems, layers, size, time and overlap of a merge before it is made, as a box."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .. import plots
from ..methods import METHODS, MethodName
from ..pipeline.overlap import Overlap
from ..pipeline.preflight import Preflight
from ..plots import number
from . import text

FULL_COLOUR = 0.3
"""The overlap from which on a cell has its full colour, unless one is above it."""


def preflight_box(found: Preflight, method: MethodName) -> str:
    """A box with everything that is known of a merge beforehand.

    Args:
        found: by ``pipeline.preflight``.
        method: of the merge.
    """
    names = escape(" + ".join(found.names))
    state, kind = ("Not ready to merge", "error") if found.problems else ("Ready to merge", "done")
    advice = f'<p class="ziplora-advice">{escape(found.advice)}</p>' if found.advice else ""
    return (
        f'<div class="ziplora-box ziplora-{kind}" role="status" '
        f'data-check="{"problems" if found.problems else "fine"}">'
        f"<p><b>{names}</b></p><p>{state}</p>{text.listed(found.problems, 'ziplora-problems')}{advice}"
        f"{text.listed(found.remarks, 'ziplora-warnings')}{text.table(figures(found, method))}"
        f"{heat_map(found.overlap) if found.overlap else ''}</div>"
    )


def figures(found: Preflight, method: MethodName) -> Sequence[tuple[str, str]]:
    """The rows of the box's table; what is not known has none, but for the time."""
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
    if not METHODS[method].model:
        rows.append(("Time", "a few seconds, nothing is learnt"))
    elif found.seconds is None:
        rows.append(("Time", "unknown until a merge of this sample size has run here"))
    else:
        rows.append(("Time", f"about {text.duration(found.seconds)}"))
    return rows


def heat_map(overlap: Overlap) -> str:
    """Mean |cosine| of each block and kind of layer as a table, coloured by value; closed at first."""
    full = max(FULL_COLOUR, *overlap.places.values()) if overlap.places else FULL_COLOUR
    return plots.heat_map(
        "Overlap by block: mean |cosine| of the same columns",
        overlap.places,
        overlap.kinds,
        full,
        f"0: nothing in common, 1: the same columns; the strongest colour is {full:.2f}.",
        opened=False,
    )
