"""The figures of a running merge as small curves, and a sentence where they look wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from .text import number

History = Sequence[Mapping[str, float]]
"""The figures of every update so far (``Progress.metrics``)."""

WIDTH, HEIGHT, MARGIN = 200.0, 60.0, 3.0
MOST_POINTS = 200
ENOUGH_UPDATES = 10
"""Before so many updates no sentence is said."""
HARDLY_MOVED = 0.005
FAR = 0.75
RISEN = 1.2


def chart(history: History) -> str:
    """Curves of each LoRA's loss, the similarity and the mean travel |m - 1|, as HTML with inline SVG.

    Args:
        history: of the updates so far; fewer than two draw nothing.
    """
    if len(history) < 2:
        return ""
    losses = [name for name in history[0] if name.endswith("_loss")]
    panels = [
        _panel("Loss", history, losses or ["loss"]),
        _panel("Similarity |m · m|", history, ["similarity"]),
        _panel("Mean travel |m − 1|", history, ["travel"]),
    ]
    sentence = remark(history)
    told = f'<p class="ziplora-remark" role="status">{escape(sentence)}</p>' if sentence else ""
    count = f"{len(history)} updates"
    return f'<div class="ziplora-curves" aria-label="Curves of {count}">{"".join(panels)}</div>{told}'


def remark(history: History) -> str:
    """A sentence for people when something is off, or an empty string."""
    if any(not math.isfinite(value) for value in history[-1].values()):
        return "A figure is not a number any more: interrupt, and lower the learning rate."
    if len(history) < ENOUGH_UPDATES:
        return ""
    travel = history[-1].get("travel", 0.0)
    if travel < HARDLY_MOVED:
        return (
            f"The coefficients have not moved (mean |m − 1| is {number(travel)} after {len(history)} updates): so far "
            "this is the plain sum. Raise the learning rate."
        )
    if travel > FAR:
        return (
            f"The coefficients are far from 1 (mean |m − 1| is {number(travel)}): the LoRAs may fade or clash. "
            "Finish now, or lower the learning rate or the similarity weight."
        )
    start, end = _mean_loss(history[:ENOUGH_UPDATES]), _mean_loss(history[-ENOUGH_UPDATES:])
    if len(history) >= 2 * ENOUGH_UPDATES and end > RISEN * start:
        return f"The loss rises ({number(start)} → {number(end)}): interrupt, and lower the learning rate."
    return ""


def _mean_loss(steps: History) -> float:
    return sum(step.get("loss", 0.0) for step in steps) / len(steps)


def _panel(title: str, history: History, names: Sequence[str]) -> str:
    """One small picture with a line for each name, and the latest values as text."""
    rows = [[step.get(name, math.nan) for step in history] for name in names]
    finite = [value for row in rows for value in row if math.isfinite(value)]
    top = max(finite, default=0.0) or 1.0
    lines, keys = [], []
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        lines.append(f'<polyline class="ziplora-line-{index % 4}" points="{_points(row, top)}"/>')
        label = name.removesuffix("_loss").replace("_", " ") if len(names) > 1 else ""
        words = f"{label} {number(row[-1])}".strip()
        keys.append(f'<span class="ziplora-key-{index % 4}">{escape(words)}</span>')
    return (
        f"<figure><figcaption><b>{escape(title)}</b> {' '.join(keys)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}">{"".join(lines)}</svg></figure>'
    )


def _points(row: Sequence[float], top: float) -> str:
    """The line of a row from left to right, 0 at the bottom; what is not finite is left out."""
    stride = max(1, math.ceil(len(row) / MOST_POINTS))
    chosen = [*range(0, len(row) - 1, stride), len(row) - 1]
    return " ".join(
        f"{WIDTH * index / max(1, len(row) - 1):.1f},"
        f"{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * max(0.0, row[index]) / top:.1f}"
        for index in chosen
        if math.isfinite(row[index])
    )
