"""Figures as HTML with inline SVG, for the tab and for a page of their own; nothing is fetched.

Colours are classes (``ziplora-line-0``, ``ziplora-fill-0``, ...) that the page's style sheet
defines, or transparent tints that leave the text readable in a light and in a dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

History = Sequence[Mapping[str, float]]
"""The figures of every update (``Progress.metrics``)."""
Place = tuple[str, str]
"""A row and a column of a heat map: a block and a kind of layer."""
Colour = tuple[int, int, int]

WIDTH, HEIGHT, MARGIN = 200.0, 60.0, 3.0
MOST_POINTS = 200
LINES = 4
"""Colours that the lines and bars take in turn."""
STRONGEST = 0.65
"""Opacity of the full colour: the figures on it stay readable in both themes."""
ORANGE: Colour = (234, 88, 12)
BLUE: Colour = (37, 99, 235)
BAR, AXIS = 8.0, 14.0
"""Width of a bar of a histogram, and the height of the line of text below it."""


def number(value: float) -> str:
    """A key figure with three significant digits."""
    return f"{value:.3g}"


def counted(count: int, thing: str) -> str:
    """So many of something: ``1 layer``, ``2 layers``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def percent(share: float) -> str:
    """A share of 1 in percent; what is there is never told as nothing, nor a part as all."""
    rounded = round(100 * share)
    if share > 0 and rounded == 0:
        return "less than 1 %"
    if share < 1 and rounded == 100:
        return "more than 99 %"
    return f"{rounded} %"


def curves(history: History) -> str:
    """Curves of each LoRA's loss, the similarity and the mean travel from where the coefficients began.

    Args:
        history: of the updates so far; fewer than two draw nothing.
    """
    if len(history) < 2:
        return ""
    losses = [name for name in history[0] if name.endswith("_loss")]
    panels = [
        _panel("Loss", history, losses or ["loss"]),
        _panel("Similarity |m · m|", history, ["similarity"]),
        _panel("Mean travel", history, ["travel"]),
    ]
    count = f"{len(history)} updates"
    return f'<div class="ziplora-curves" aria-label="Curves of {count}">{"".join(panels)}</div>'


def _panel(title: str, history: History, names: Sequence[str]) -> str:
    """One small picture with a line for each name, and the latest values as text."""
    rows = [[step.get(name, math.nan) for step in history] for name in names]
    finite = [value for row in rows for value in row if math.isfinite(value)]
    top = max(finite, default=0.0) or 1.0
    lines, keys = [], []
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        lines.append(f'<polyline class="ziplora-line-{index % LINES}" points="{points(row, top)}"/>')
        label = name.removesuffix("_loss").replace("_", " ") if len(names) > 1 else ""
        words = f"{label} {number(row[-1])}".strip()
        keys.append(f'<span class="ziplora-key-{index % LINES}">{escape(words)}</span>')
    return (
        f"<figure><figcaption><b>{escape(title)}</b> {' '.join(keys)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}">{"".join(lines)}</svg></figure>'
    )


def points(row: Sequence[float], top: float) -> str:
    """The line of a row from left to right, 0 at the bottom; what is not finite is left out."""
    stride = max(1, math.ceil(len(row) / MOST_POINTS))
    chosen = [*range(0, len(row) - 1, stride), len(row) - 1]
    return " ".join(
        f"{WIDTH * index / max(1, len(row) - 1):.1f},"
        f"{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * max(0.0, row[index]) / top:.1f}"
        for index in chosen
        if math.isfinite(row[index])
    )


def heat_map(
    title: str,
    values: Mapping[Place, float],
    kinds: Sequence[str],
    full: float,
    note: str,
    *,
    colour: Colour = ORANGE,
    opened: bool = True,
) -> str:
    """A figure for each block and kind of layer as a table, coloured by value; nothing where there is none.

    Args:
        title: what the figures are.
        values: by block and kind; the blocks become the rows, in their order.
        kinds: the columns, in their order.
        full: the value from which on a cell has its full colour.
        note: a sentence below the table.
        colour: red, green and blue of the full colour.
        opened: whether the table shows before it is clicked on.
    """
    if not values:
        return ""
    head = "".join(f'<th scope="col">{escape(kind)}</th>' for kind in kinds)
    rows = []
    for block in dict.fromkeys(block for block, _ in values):
        cells = "".join(_cell(values.get((block, kind)), full, colour) for kind in kinds)
        rows.append(f'<tr><th scope="row">{escape(block)}</th>{cells}</tr>')
    return (
        f'<details class="ziplora-heat"{" open" if opened else ""}><summary>{escape(title)}</summary>'
        f'<table><thead><tr><th scope="col">block</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f"<p>{escape(note)}</p></details>"
    )


def _cell(value: float | None, full: float, colour: Colour) -> str:
    if value is None:
        return "<td></td>"
    opacity = STRONGEST * min(1.0, max(0.0, value) / full)
    red, green, blue = colour
    return f'<td style="background-color:rgba({red}, {green}, {blue}, {opacity:.2f})">{value:.2f}</td>'


def histogram(
    title: str, words: str, counts: Sequence[int], low: float, high: float, marks: Sequence[float], line: int
) -> str:
    """Bars of how many values lie where, from ``low`` to ``high``; the outermost bars hold what is beyond.

    Args:
        title: what is counted.
        words: what it shows, beside the title and for those who don't see the bars.
        counts: of each of the bins, which are equally wide.
        low: lower end of the first bin.
        high: upper end of the last.
        marks: values that get a line and a label.
        line: which of the colours.
    """
    top = max(counts, default=0) or 1
    width = BAR * len(counts)
    bars = "".join(
        f'<rect x="{BAR * index + 0.5:g}" width="{BAR - 1:g}" '
        f'y="{HEIGHT - HEIGHT * count / top:.2f}" height="{HEIGHT * count / top:.2f}"/>'
        for index, count in enumerate(counts)
        if count
    )
    places = [(mark, width * (mark - low) / (high - low)) for mark in marks]
    lines = "".join(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT:g}"/>' for _, x in places)
    labels = "".join(
        f'<text x="{x:.1f}" y="{HEIGHT + AXIS - 3:g}" text-anchor="middle">{mark:g}</text>'
        for mark, x in places
    )
    return (
        f'<figure class="ziplora-histogram"><figcaption><b>{escape(title)}</b> {escape(words)}</figcaption>'
        f'<svg viewBox="0 0 {width:g} {HEIGHT + AXIS:g}" role="img" aria-label="{escape(f"{title}: {words}")}">'
        f'<g class="ziplora-fill-{line % LINES}">{bars}</g><g class="ziplora-marks">{lines}{labels}</g>'
        "</svg></figure>"
    )
