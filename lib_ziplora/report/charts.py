"""Histograms and heat maps of an explanation as HTML, for the tab and the page."""

from __future__ import annotations

from html import escape

from ..plots import BLUE, heat_map, histogram, number, percent
from .explain import HIGH, LOW, Explanation, LoraExplained

MARKS = (0.0, 0.5, 1.0, 1.5)
LEAST_TRAVEL = 0.1
"""The full colour of the travel belongs to the largest one, but at least to this."""


def histograms(found: Explanation) -> str:
    """How each LoRA's coefficients are spread; nothing after a plain sum."""
    bars = "".join(_histogram(lora, index) for index, lora in enumerate(found.loras))
    return f'<div class="ziplora-histograms">{bars}</div>' if bars else ""


def _histogram(lora: LoraExplained, line: int) -> str:
    shares = lora.shares
    words = (
        f"mean |m| {number(lora.strength)}; near 0: {percent(shares.off)}, near 1: {percent(shares.kept)} "
        f"of {lora.coefficients} coefficients"
    )
    return histogram(f"{lora.label}, {lora.name}", words, lora.histogram, LOW, HIGH, MARKS, line)


def heat_maps(found: Explanation, *, opened: bool = True) -> str:
    """Mean |m| and mean |m - 1| of each LoRA, and their similarity, by block; nothing after a plain sum.

    Args:
        found: the explanation.
        opened: whether the tables show before they are clicked on.
    """
    kinds, maps = found.kinds, []
    full = max([LEAST_TRAVEL, *(value for lora in found.loras for value in lora.travels.values())])
    for lora in found.loras:
        title = f"Strength of the {lora.label} by block: mean |m|"
        note = "1 is as it was, 0 is off; the strongest colour is 1."
        maps.append(heat_map(title, lora.strengths, kinds, 1.0, note, colour=BLUE, opened=opened))
    for lora in found.loras:
        title = f"Travel of the {lora.label} by block: mean |m − 1|"
        note = f"0 has not moved; the strongest colour is {full:.2f}."
        maps.append(heat_map(title, lora.travels, kinds, full, note, opened=opened))
    title, note = (
        "Similarity by block: mean |m · m|",
        "1 is the plain sum, 0 is apart; the strongest colour is 1.",
    )
    maps.append(heat_map(title, found.similarity_by_place, kinds, 1.0, note, opened=opened))
    shown = "".join(maps)
    return f'<div class="ziplora-maps">{shown}</div>' if shown else ""


def words(sentences: list[str]) -> str:
    """Sentences as a list."""
    return f'<ul class="ziplora-words">{"".join(f"<li>{escape(one)}</li>" for one in sentences)}</ul>'
