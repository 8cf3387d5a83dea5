"""Figures of a merge's coefficients, by block."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..config import labels
from ..hosts import Host
from ..lora.algebra import Vectors
from ..lora.blocks import KINDS, Place, network_order, place_of
from ..lora.io.sidecar import damaged
from ..methods import MethodName
from .saved import SavedMerge, read_saved, saved_path

T = TypeVar("T")

NEAR = 0.1
"""A coefficient counts as off, or as left as it was, up to so far from 0 or 1."""
LOW, HIGH, BINS = -0.5, 2.0, 25
"""Range of the histograms; the outermost bins hold what lies beyond."""


@dataclass(frozen=True)
class Shares:
    """Which part of a LoRA's coefficients is what; the five are 1 together.

    Attributes:
        reversed: below -0.1.
        off: within 0.1 of 0.
        down: between 0.1 and 0.9.
        kept: within 0.1 of 1.
        up: above 1.1.
    """

    reversed: float
    off: float
    down: float
    kept: float
    up: float


@dataclass(frozen=True)
class Spot:
    """The coefficients of one kind of layer in one block: how many, mean |m| and mean |m - 1|."""

    coefficients: int
    strength: float
    travel: float


@dataclass(frozen=True)
class LoraExplained:
    """What a merge made of one LoRA.

    Attributes:
        label: what it is called, as in ``MergeRequest.labels``.
        name: of its file.
        coefficients: how many it has.
        strength: mean |m| over all of them.
        travel: mean |m - 1|.
        shares: which part of them is off, kept, ...
        histogram: how many lie in each of ``BINS`` equal bins from ``LOW`` to ``HIGH``.
        places: figures of each kind of layer in each block, in the network's order.
    """

    label: str
    name: str
    coefficients: int
    strength: float
    travel: float
    shares: Shares
    histogram: tuple[int, ...]
    places: Mapping[Place, Spot]

    @property
    def strengths(self) -> dict[Place, float]:
        """Mean |m| by place."""
        return {place: spot.strength for place, spot in self.places.items()}

    @property
    def travels(self) -> dict[Place, float]:
        """Mean |m - 1| by place."""
        return {place: spot.travel for place, spot in self.places.items()}


@dataclass(frozen=True)
class Explanation:
    """What a merge did.

    Attributes:
        name: of the merge.
        method: as in ``MergeSettings``.
        loras: what it made of each LoRA; empty after a plain sum.
        travel: mean |m - 1| over all coefficients.
        moved: mean distance from where the learning began: 1, or a LoRA's strength in a balanced sum.
        similarity: mean |m_a * m_b| over the columns that two LoRAs share, as in the paper's
            objective; None where they share none.
        similarity_by_place: the same of each kind of layer in each block.
    """

    name: str
    method: MethodName
    loras: tuple[LoraExplained, ...]
    travel: float
    moved: float
    similarity: float | None
    similarity_by_place: Mapping[Place, float]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of layers that there are, in the order of ``KINDS``."""
        there = {kind for lora in self.loras for _, kind in lora.places}
        return tuple(kind for kind in KINDS if kind in there)

    def to_json(self) -> dict[str, Any]:
        """Plain data; figures by place are a list with the block and the kind of each."""
        found = dataclasses.asdict(self)
        found["similarity_by_place"] = [
            {"block": block, "kind": kind, "similarity": value}
            for (block, kind), value in self.similarity_by_place.items()
        ]
        for plain, lora in zip(found["loras"], self.loras, strict=True):
            plain["histogram"] = {"low": LOW, "high": HIGH, "counts": list(lora.histogram)}
            plain["places"] = [
                {"block": block, "kind": kind, **dataclasses.asdict(spot)}
                for (block, kind), spot in lora.places.items()
            ]
        return found


def explained(host: Host, name: str) -> tuple[Explanation, SavedMerge]:
    """An installed merge explained, and what was saved of it.

    Raises:
        LoraFileError: there is no such LoRA, or its coefficients are missing or damaged.
    """
    path = saved_path(name, host)
    saved = read_saved(path)
    sizes: dict[str, int] = {}
    for vectors in saved.coefficients:
        if any(sizes.setdefault(layer, len(vector)) != len(vector) for layer, vector in vectors.items()):
            raise damaged(path)
    return explain(path.stem, saved), saved


def explain(name: str, saved: SavedMerge) -> Explanation:
    """What a merge did.

    Args:
        name: of the merge.
        saved: its coefficients, and what it was made of.
    """
    roles = labels([lora.role for lora in saved.loras])
    loras = tuple(
        _of_one(label, source.name, vectors)
        for label, source, vectors in zip(roles, saved.sources, saved.coefficients, strict=False)
        if vectors
    )
    products = _products(saved.coefficients)
    count = sum(lora.coefficients for lora in loras)
    travel = sum(lora.travel * lora.coefficients for lora in loras) / count if count else 0.0
    everything = list(itertools.chain.from_iterable(products.values()))
    similarity = _mean(everything) if everything else None
    moved = saved.summary.get("mean_travel", travel)
    return Explanation(
        name, saved.settings.method, loras, travel, moved, similarity, _by_place(products, _mean)
    )


def _of_one(label: str, name: str, vectors: Vectors) -> LoraExplained:
    by_place: dict[Place, list[Tensor]] = defaultdict(list)
    for layer, vector in vectors.items():
        by_place[place_of(layer)].append(vector)
    everything = _spot(list(vectors.values()))
    m = torch.cat(list(vectors.values()))
    return LoraExplained(
        label=label,
        name=name,
        coefficients=everything.coefficients,
        strength=everything.strength,
        travel=everything.travel,
        shares=_shares(m),
        histogram=_histogram(m),
        places=_by_place(by_place, _spot),
    )


def _spot(vectors: Sequence[Tensor]) -> Spot:
    m = torch.cat(list(vectors))
    return Spot(m.numel(), m.abs().mean().item(), (m - 1).abs().mean().item())


def _products(coefficients: Sequence[Vectors]) -> dict[Place, list[Tensor]]:
    """|m_a * m_b| of every pair of LoRAs that share a layer."""
    found: dict[Place, list[Tensor]] = defaultdict(list)
    for a, b in itertools.combinations(coefficients, 2):
        for layer in a.keys() & b.keys():
            found[place_of(layer)].append((a[layer] * b[layer]).abs())
    return found


def _by_place(
    places: Mapping[Place, Sequence[Tensor]], figure: Callable[[Sequence[Tensor]], T]
) -> dict[Place, T]:
    return {place: figure(places[place]) for place in sorted(places, key=network_order)}


def _mean(vectors: Sequence[Tensor]) -> float:
    return torch.cat(list(vectors)).mean().item()


def _shares(m: Tensor) -> Shares:
    ends = torch.tensor([-NEAR, NEAR, 1 - NEAR, 1 + NEAR])
    counts = torch.bincount(torch.bucketize(m, ends), minlength=len(ends) + 1)
    return Shares(*(counts.double() / m.numel()).tolist())


def _histogram(m: Tensor) -> tuple[int, ...]:
    bins = ((m.double() - LOW) * (BINS / (HIGH - LOW))).floor().clamp(0, BINS - 1).long()
    return tuple(torch.bincount(bins, minlength=BINS).tolist())
