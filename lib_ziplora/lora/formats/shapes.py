"""Rank and shape of the delta weight that one module's tensors make, from the shapes of those tensors alone.

Every function takes the tensors' shapes by part and returns (rank, (out, in[, kh, kw])). It raises ValueError,
KeyError or IndexError where they don't fit each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

PartShapes = Mapping[str, tuple[int, ...]]


def lora(parts: PartShapes) -> tuple[int, tuple[int, ...]]:
    """LoRA and LoCon: down (rank, in[, kh, kw]), up (out, rank), mid (rank, rank, kh, kw)."""
    down, up = parts["down"], parts["up"]
    middle = parts.get("mid", ())
    return (middle or down)[0], (up[0], down[1], *(middle or down)[2:])


def loha(parts: PartShapes) -> tuple[int, tuple[int, ...]]:
    """LoHa: the product of the halves' ranks."""
    rank, halves = 1, []
    for n in "12":
        a, b, core = parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"], parts.get(f"hada_t{n}")
        rank *= b[0]
        halves.append((a[0], *b[1:]) if core is None else (a[1], b[1], *core[2:]))
    if halves[0][0] != halves[1][0] or math.prod(halves[0]) != math.prod(halves[1]):
        raise ValueError(f"the halves are {halves[0]} and {halves[1]}")
    return rank, max(halves, key=len)


def lokr(parts: PartShapes) -> tuple[int, tuple[int, ...]]:
    """LoKr: the product of the two matrices' ranks."""
    first = parts.get("lokr_w1") or (parts["lokr_w1_a"][0], parts["lokr_w1_b"][1])
    if "lokr_t2" in parts:
        second: tuple[int, ...] = (parts["lokr_w2_a"][1], parts["lokr_w2_b"][1], *parts["lokr_t2"][2:])
    else:
        second = parts.get("lokr_w2") or (parts["lokr_w2_a"][0], *parts["lokr_w2_b"][1:])
    ranks = [min(first[0], first[1]), min(second[0], math.prod(second[1:]))]
    for i, factor in enumerate(("lokr_w1_b", "lokr_w2_b")):
        ranks[i] = min(ranks[i], *parts.get(factor, ())[:1] or (ranks[i],))
    return ranks[0] * ranks[1], (first[0] * second[0], first[1] * second[1], *second[2:])


def full(parts: PartShapes) -> tuple[int, tuple[int, ...]]:
    """A full difference: any rank."""
    shape = parts["diff"]
    return min(shape[0], math.prod(shape[1:])), shape


def glora(parts: PartShapes) -> tuple[int, tuple[int, ...]]:
    """Factors of today's LyCORIS, (out, rank) and (rank, in[, kh, kw]); older ones are the other way round."""
    old = parts["a1.weight"][0] <= parts["a1.weight"][1]
    (a_up, a_down), (b_up, b_down) = (
        (parts[f"{x}2.weight"], parts[f"{x}1.weight"])
        if old
        else (parts[f"{x}1.weight"], parts[f"{x}2.weight"])
        for x in "ab"
    )
    shape = (b_up[0], *b_down[1:])
    if a_up[0] != shape[1] or math.prod(a_down[1:]) != shape[1]:
        raise ValueError(f"the factors of A, {a_up} and {a_down}, are not for {shape[1]} inputs")
    return min(shape[0], math.prod(shape[1:])), shape
