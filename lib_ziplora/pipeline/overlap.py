"""Column overlap of LoRAs by block, from their tensors alone."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import IncompatibleError
from ..file_cache import cached_by_stat
from ..lora.algebra import column_overlap, pair
from ..lora.blocks import KINDS, Place, network_order, place_of
from ..lora.io.read import read_lora
from ..lora.layer import Lora, LoraLayer
from ..training.memory import memory_in_words
from .inputs import require_common

APART, TOGETHER = 1.5, 3.0
"""Up to so many times the overlap of chance, LoRAs count as apart; from so many on, as pulling on the same columns."""
WORK_LIMIT = 3e10
"""Multiplications that may be spent on a comparison: a second or two of one core."""


Degree = Literal["apart", "in part", "together"]


@dataclass(frozen=True)
class Overlap:
    """The mean |cosine| between the same columns of LoRAs' delta weights.

    Attributes:
        places: of the layers of one kind in one block, blocks in the network's order.
        mean: of all layers that were measured.
        chance: what columns without anything in common would have on average.
        measured: layers that were measured; of many large ones, some of every place.
        common: layers that could be.
        obstacle: why there is nothing to learn, as a sentence, or "".
    """

    places: Mapping[Place, float]
    mean: float
    chance: float
    measured: int
    common: int
    obstacle: str = ""

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks, in the network's order."""
        return tuple(dict.fromkeys(block for block, _ in self.places))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of layers that there are, in the order of ``KINDS``."""
        there = {kind for _, kind in self.places}
        return tuple(kind for kind in KINDS if kind in there)

    @property
    def degree(self) -> Degree:
        """How much they overlap, measured by chance."""
        if self.mean <= APART * self.chance:
            return "apart"
        return "in part" if self.mean < TOGETHER * self.chance else "together"

    def to_json(self) -> dict[str, Any]:
        """Plain data, the places as a list."""
        figures = {name: getattr(self, name) for name in ("mean", "chance", "measured", "common")}
        places = [
            {"block": block, "kind": kind, "overlap": value} for (block, kind), value in self.places.items()
        ]
        return {**figures, "places": places}


@cached_by_stat(512)
def overlap_of(*files: Path) -> Overlap:
    """Compare LoRA files; what was found is remembered until one of them changes.

    Raises:
        ZipLoraError: one can't be read, or their shapes differ.
    """
    with memory_in_words():
        return measure([read_lora(file) for file in files])


def measure(loras: Sequence[Lora]) -> Overlap:
    """Compare LoRAs that have been read.

    Raises:
        IncompatibleError: a layer that several have differs in shape.
    """
    pairing = pair(*loras)
    try:
        require_common(loras, pairing)
        obstacle = ""
    except IncompatibleError as error:
        obstacle = str(error)
    owners = {name: [lora.layers[name] for lora in loras if name in lora.layers] for name in pairing.common}
    chosen = _within(WORK_LIMIT, owners)
    found: dict[Place, list[float]] = defaultdict(list)
    for name in chosen:
        pairs = list(itertools.combinations(owners[name], 2))
        found[place_of(name)].append(sum(column_overlap(a, b) for a, b in pairs) / len(pairs))
    places = {place: _mean(found[place]) for place in sorted(found, key=network_order)}
    chance = _mean([math.sqrt(2 / (math.pi * owners[name][0].out_features)) for name in chosen])
    everything = [value for values in found.values() for value in values]
    return Overlap(places, _mean(everything), chance, len(chosen), len(owners), obstacle)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _within(limit: float, owners: Mapping[str, Sequence[LoraLayer]]) -> list[str]:
    """The layers to measure: all of them, or of every place as many as the limit allows, at least one."""
    stride = max(1, math.ceil(sum(map(_work, owners.values())) / limit))
    by_place: dict[Place, list[str]] = defaultdict(list)
    for name in owners:
        by_place[place_of(name)].append(name)
    return [name for names in by_place.values() for name in names[::stride]]


def _work(layers: Sequence[LoraLayer]) -> float:
    """Multiplications of comparing a layer of several LoRAs, roughly."""
    rank = sum(layer.rank for layer in layers)
    return 2.0 * (layers[0].out_features + layers[0].in_features) * rank * rank
