"""What a module's tensors become, judged by their shapes alone, before anything is computed.

A file of a kilobyte can ask for a delta weight of gigabytes: a product of a column and a row.
No layer gets more numbers than the layer of that name has in SDXL.
"""

from __future__ import annotations

import math

from .families import FAMILIES, MAGNITUDES, family_of
from .sdxl import CONVOLUTIONS, KERNEL, largest_weight
from .shapes import PartShapes

CORES = frozenset({"mid", "hada_t1", "hada_t2", "lokr_t2"})


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
    rank_and_shape_of = None if family is None else FAMILIES[family].rank_and_shape
    if rank_and_shape_of is None:
        return None
    try:
        rank, shape = rank_and_shape_of(parts)
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
