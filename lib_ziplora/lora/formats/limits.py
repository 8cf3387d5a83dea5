"""What a module's tensors become, judged by their shapes alone, before anything is computed.

A file of a kilobyte can ask for a delta weight of gigabytes: a product of a column and a row.
No layer gets more numbers than the layer of that name has in SDXL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from .families import MAGNITUDES, family_of
from .sdxl import CONVOLUTIONS, KERNEL, largest_weight

CORES = frozenset({"mid", "hada_t1", "hada_t2", "lokr_t2"})
PartShapes = Mapping[str, tuple[int, ...]]


def rank_and_shape(name: str, parts: PartShapes) -> tuple[int, tuple[int, ...]] | None:
    """The highest rank that a module's layer can get, and its delta weight's shape.

    The rank is exact for LoRA and LoCon. None for the families whose tensors alone don't tell the shape, because
    they change the checkpoint's own weight.

    Args:
        name: canonical module name.
        parts: the shapes of its tensors.

    Raises:
        ValueError: the shapes don't fit each other.
    """
    family = "lora" if {"down", "up"} <= parts.keys() else family_of(parts)
    if family not in _RANKS_AND_SHAPES:
        return None
    try:
        rank, shape = _RANKS_AND_SHAPES[family](parts)
    except (KeyError, IndexError) as error:
        raise ValueError("a tensor is missing or has too few dimensions") from error
    shape = weight_shape(name, shape)
    most = min(shape[0], math.prod(shape[1:]))
    if not MAGNITUDES.isdisjoint(parts):
        return most, shape
    return (rank if family == "lora" else min(rank, most)), shape


def weight_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A weight's shape, (out, in) or (out, in, kh, kw), with the kernel of a convolution whose columns are flattened.

    Raises:
        ValueError: no weight has such a shape.
    """
    if len(shape) not in (2, 4) or not math.prod(shape):
        raise ValueError(f"no layer has the shape {shape}")
    if len(shape) == 2 and name.endswith(CONVOLUTIONS):
        inputs, rest = divmod(shape[1], math.prod(KERNEL))
        if rest:
            raise ValueError(f"{shape[1]} columns are no multiple of the kernel's {math.prod(KERNEL)}")
        return (shape[0], inputs, *KERNEL)
    return shape


def check_affordable(name: str, parts: PartShapes, shape: tuple[int, ...]) -> None:
    """Refuse a delta weight larger than the layer of that name is in SDXL, or larger than that on the way.

    Args:
        name: canonical module name.
        parts: the shapes of its tensors; Tucker's cores make (rank, in, kh, kw) and (out, rank, kh, kw).
        shape: of the delta weight.

    Raises:
        ValueError: it is larger.
    """
    out, inputs, *kernel = shape
    for core in CORES & parts.keys():
        out, inputs = max(out, *parts[core][:1], 0), max(inputs, *parts[core][1:2], 0)
    if out * inputs * math.prod(kernel) > largest_weight(name):
        raise ValueError(f"no layer of that name is as large as {shape}")


def _lora(parts: PartShapes) -> tuple[int, tuple[int, ...]]:
    down, up = parts["down"], parts["up"]
    middle = parts.get("mid", ())
    return (middle or down)[0], (up[0], down[1], *(middle or down)[2:])


def _loha(parts: PartShapes) -> tuple[int, tuple[int, ...]]:
    rank, halves = 1, []
    for n in "12":
        a, b, core = parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"], parts.get(f"hada_t{n}")
        rank *= b[0]
        halves.append((a[0], *b[1:]) if core is None else (a[1], b[1], *core[2:]))
    if halves[0][0] != halves[1][0] or math.prod(halves[0]) != math.prod(halves[1]):
        raise ValueError(f"the halves are {halves[0]} and {halves[1]}")
    return rank, max(halves, key=len)


def _lokr(parts: PartShapes) -> tuple[int, tuple[int, ...]]:
    first = parts.get("lokr_w1") or (parts["lokr_w1_a"][0], parts["lokr_w1_b"][1])
    if "lokr_t2" in parts:
        second: tuple[int, ...] = (parts["lokr_w2_a"][1], parts["lokr_w2_b"][1], *parts["lokr_t2"][2:])
    else:
        second = parts.get("lokr_w2") or (parts["lokr_w2_a"][0], *parts["lokr_w2_b"][1:])
    ranks = [min(first[0], first[1]), min(second[0], math.prod(second[1:]))]
    for i, factor in enumerate(("lokr_w1_b", "lokr_w2_b")):
        ranks[i] = min(ranks[i], *parts.get(factor, ())[:1] or (ranks[i],))
    return ranks[0] * ranks[1], (first[0] * second[0], first[1] * second[1], *second[2:])


def _full(parts: PartShapes) -> tuple[int, tuple[int, ...]]:
    shape = parts["diff"]
    return min(shape[0], math.prod(shape[1:])), shape


def _glora(parts: PartShapes) -> tuple[int, tuple[int, ...]]:
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


_RANKS_AND_SHAPES: dict[str | None, Callable[[PartShapes], tuple[int, tuple[int, ...]]]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
    "glora": _glora,
}
