"""Sentences about a merge's coefficients; honest where nothing has happened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..lora.blocks import Place
from ..methods import METHODS
from ..plots import number, percent
from ..training.learnt import MOVED
from .explain import Explanation, LoraExplained, Spot
from .report import MergeReport

APART = 0.05
"""Means that differ by less are told as equal."""
WORTH_A_WORD = 0.005
"""Shares below this are left out of the sentences."""
UNEVEN = 0.1
"""LoRAs whose strengths differ by less have given way alike."""
SHARED, SEPARATE = 0.9, 0.1
"""From and up to these similarities, the LoRAs use the same columns as before, or hardly any together."""
SIDES = {"input": "the input (down) blocks", "middle": "the middle block", "output": "the output (up) blocks"}
REST = "the rest of the UNet"
WELL, WEAK = 0.8, 0.6
"""From this share of what a LoRA does by itself it is kept well; below this one it is weak."""


def verdict(report: MergeReport) -> str:
    """How much is left of each LoRA's own pictures, and what to do where it is little; "" where nothing was measured.

    What is left is 1 - the relative error on samples that nothing was learnt from.
    """
    kept = [max(0.0, 1 - error) for error in report.learnt.heldout_errors]
    if not kept:
        return ""
    names = list(report.single_layers)
    shares = " and ".join(
        f"{percent(share)} of the {name}'s" for name, share in zip(names, kept, strict=True)
    )
    told = f"It does {shares} changes to a picture (measured with each one's own prompt)."
    weak = [name for name, share in zip(names, kept, strict=True) if share < WEAK]
    who = "both LoRAs" if len(names) == 2 else "all LoRAs"
    if not weak:
        return f"Keeps {who}{' well' if min(kept) >= WELL else ''}. {told}"
    if len(weak) == len(names):
        return f"Keeps neither well. {told} Try more updates, or the balance that suits you under Adjust strengths."
    which = " and ".join(f"the {name}" for name in weak)
    verb = "is" if len(weak) == 1 else "are"
    return f"{which[0].upper()}{which[1:]} {verb} weak. {told} Try a higher strength for it under Adjust strengths."


def in_words(found: Explanation) -> list[str]:
    """What a merge did, as sentences for people."""
    if not found.loras and found.method != "direct":
        return [f"Nothing was learnt: the method {found.method} {METHODS[found.method].help}."]
    if not found.loras:
        return ["This is a plain sum: nothing was learnt, every coefficient is 1 and each LoRA is as it was."]
    strengths = ", ".join(
        f"the {lora.label} ({lora.name}) at {number(lora.strength)}" for lora in found.loras
    )
    if found.method == "balanced":
        return [f"This is a plain sum with {strengths}: every column of a LoRA has the same strength."]
    if found.moved < MOVED:
        return [
            f"The coefficients have hardly moved (on average {number(found.moved)} from where they began): this is "
            f"nearly a plain sum, with {strengths}. Raise the learning rate or the number of updates for more."
        ]
    told = [sentence for lora in found.loras for sentence in (_strength(lora), *_where(lora))]
    return [*told, *_balance(found.loras), *_similarity(found.similarity)]


def _strength(lora: LoraExplained) -> str:
    label = lora.label if lora.label[-1].isdigit() else f"the {lora.label}"
    shares = lora.shares
    told = [
        (shares.kept, "as they were"),
        (shares.down, "turned down"),
        (shares.off, "nearly off"),
        (shares.up, "turned up"),
        (shares.reversed, "reversed"),
    ]
    parts = [f"{percent(share)} are {what}" for share, what in told if share >= WORTH_A_WORD]
    return (
        f"{label[0].upper()}{label[1:]} ({lora.name}) keeps {percent(lora.strength)} of its strength on average; "
        f"of its columns {', '.join(parts)}."
    )


def _where(lora: LoraExplained) -> Iterator[str]:
    """Where it was turned down most and least, along the network and among the kinds of layers."""
    for group in (_side, _kind):
        means = _means(lora.places, group)
        low, high = min(means, key=lambda name: means[name]), max(means, key=lambda name: means[name])
        if means[high] - means[low] >= APART and means[low] <= 1 - APART:
            yield (
                f"The {lora.label} was turned down most in {low} (mean |m| {number(means[low])}) and least in "
                f"{high} ({number(means[high])})."
            )


def _side(place: Place) -> str:
    return SIDES.get(place[0].split()[0], REST)


def _kind(place: Place) -> str:
    return f"the {place[1]} layers"


def _means(places: Mapping[Place, Spot], group: Callable[[Place], str]) -> dict[str, float]:
    """Mean |m| over all coefficients of each group of places."""
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for place, spot in places.items():
        sums[group(place)] += spot.strength * spot.coefficients
        counts[group(place)] += spot.coefficients
    return {name: sums[name] / counts[name] for name in sums}


def _balance(loras: Sequence[LoraExplained]) -> Iterator[str]:
    """Which LoRA gave way, and what to do about it."""
    weak, strong = min(loras, key=lambda lora: lora.strength), max(loras, key=lambda lora: lora.strength)
    if strong.strength - weak.strength >= UNEVEN:
        yield (
            f"The {weak.label} gave way more than the {strong.label}. If it fades in your pictures, raise its "
            "strength when you export the merge again."
        )
    elif len(loras) > 1:
        yield "They gave way about alike."


def _similarity(similarity: float | None) -> Iterator[str]:
    if similarity is None:
        yield "They share no column, so there was nothing to keep apart."
    elif similarity >= SHARED:
        yield f"They still use the same columns (mean |m · m| is {number(similarity)}; 1 is the plain sum)."
    elif similarity <= SEPARATE:
        yield f"They hardly use a column together any more (mean |m · m| is {number(similarity)})."
    else:
        yield f"They share their columns less than in a plain sum: mean |m · m| is {number(similarity)} instead of 1."
