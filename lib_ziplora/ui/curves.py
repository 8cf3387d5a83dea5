"""The figures of a running merge as small curves, and a sentence where they look wrong."""

from __future__ import annotations

import math
from html import escape

from .. import plots
from ..plots import History, number

ENOUGH_UPDATES = 10
"""Before so many updates no sentence is said."""
HARDLY_MOVED = 0.005
FAR = 0.75
RISEN = 1.2


def chart(history: History) -> str:
    """Curves of each LoRA's loss, the similarity and the mean travel from the start, as HTML with inline SVG.

    Args:
        history: of the updates so far; fewer than two draw nothing.
    """
    if len(history) < 2:
        return ""
    sentence = remark(history)
    told = f'<p class="ziplora-remark" role="status">{escape(sentence)}</p>' if sentence else ""
    return plots.curves(history) + told


def remark(history: History) -> str:
    """A sentence for people when something is off, or an empty string."""
    if any(not math.isfinite(value) for value in history[-1].values()):
        return "A figure is not a number any more: interrupt, and lower the learning rate."
    if len(history) < ENOUGH_UPDATES:
        return ""
    travel = history[-1].get("travel", 0.0)
    if travel < HARDLY_MOVED:
        return (
            f"The coefficients have not moved (mean travel {number(travel)} after {len(history)} updates): so far "
            "this is the plain sum. Raise the learning rate."
        )
    if travel > FAR:
        return (
            f"The coefficients are far from where they began (mean travel {number(travel)}): the LoRAs may fade or "
            "clash. Finish now, or lower the learning rate or the similarity weight."
        )
    start, end = _mean_loss(history[:ENOUGH_UPDATES]), _mean_loss(history[-ENOUGH_UPDATES:])
    if len(history) >= 2 * ENOUGH_UPDATES and end > RISEN * start:
        return f"The loss rises ({number(start)} → {number(end)}): interrupt, and lower the learning rate."
    return ""


def _mean_loss(steps: History) -> float:
    return sum(step.get("loss", 0.0) for step in steps) / len(steps)
