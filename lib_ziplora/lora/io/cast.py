"""Layers into the bytes of a file, one after another, in memory that is used again.

What components of the delta weight do to one fixed vector is compared before and after: the bytes must
give the same, up to the rounding of the factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...errors import OutputError
from ..layer import LoraLayer
from .serialize import FORMATS

# fp16 is even from 2^-14 to 2^15; factors whose largest entry leaves this range are balanced.
FP16_COMFORT = (2.0**-10, 2.0**14)
# What the factors' rounding may leave in a delta weight's entry that is far below any weight's own rounding.
NEGLIGIBLE = 1e-7
# Components of a layer, evenly spread, whose product is compared after the rounding; of smaller layers all.
COMPARED = 32


@dataclass(frozen=True)
class Trace:
    """What a delta weight, or some of its components, does to the vector ``signs(columns)``.

    Attributes:
        response: (out,), fp32.
        allowed: how far, in the Euclidean norm, the response of the rounded factors may be from it.
    """

    response: Tensor
    allowed: float

    def agrees(self, other: Tensor) -> bool:
        return bool((self.response - other).norm() <= self.allowed)


class Caster:
    """Casts layers to a file's precision, in memory that is used again.

    Args:
        precision: a key of ``serialize.FORMATS``.
        largest: numbers in the factors of the largest layer that will be cast.
    """

    def __init__(self, precision: str, largest: int) -> None:
        self._precision = precision
        self._dtype = FORMATS[precision].dtype
        self._scratch = torch.empty(largest)

    def cast(self, layer: LoraLayer, data: Tensor) -> Trace:
        """Fill ``data``, uint8, with the bytes of down and up, one after the other.

        Returns:
            The trace of the unrounded layer's every n-th component, which the bytes agree with.

        Raises:
            OutputError: the layer holds NaN or infinity, or numbers that the precision can't hold.
        """
        up, down = self._factors(layer)
        whole = data.view(self._dtype)
        stored_down, stored_up = whole[: down.numel()].view_as(down), whole[down.numel() :].view_as(up)
        stored_down.copy_(down)
        stored_up.copy_(up)
        ups, downs = _largest(up, down)
        if not _finite(ups, downs):
            raise OutputError(
                f"Layer {layer.name} holds NaN or infinity; nothing was written. Merge with other settings."
            )
        if self._precision == "fp16" and bool(_uneven(ups, downs).any()):
            even_up, even_down = balanced(up, down)
            stored_down.copy_(even_down)
            stored_up.copy_(even_up)
            most = _largest(even_up, even_down)
        else:
            most = ups, downs
        # Rounding keeps the order: the factors fit where their largest entries do.
        if not _finite(*(values.to(self._dtype) for values in most)):
            raise OutputError(
                f"Layer {layer.name} has numbers that {self._precision} can't hold. Choose bf16 or fp32."
            )
        some = slice(None, None, -(-layer.rank // COMPARED))
        parts, largest = (up[:, some].contiguous(), down[some]), (ups[some], downs[some])
        trace = _traced(*parts, largest, layer.scaling, FORMATS[self._precision].roundoff)
        if not trace.agrees(_response(stored_up[:, some].float(), stored_down[some].float(), layer.scaling)):
            raise OutputError(
                f"Layer {layer.name} loses too much in {self._precision}, so the file was not kept. "
                "Choose bf16 or fp32."
            )
        return trace

    def _factors(self, layer: LoraLayer) -> tuple[Tensor, Tensor]:
        """(up, down) in fp32, down flattened to (rank, columns)."""
        rows, columns, rank = layer.out_features, layer.columns, layer.rank
        down = self._scratch[: rank * columns].view(rank, *layer.weight_shape[1:])
        up = self._scratch[rank * columns : rank * (columns + rows)].view(rows, rank)
        layer.factors_into(down, up)
        return up, down.flatten(1)


@lru_cache(maxsize=64)
def signs(columns: int) -> Tensor:
    """A fixed vector of random signs, fp32: a change E of a matrix changes its image by |E| on average."""
    generator = torch.Generator().manual_seed(columns)
    return torch.randint(0, 2, (columns,), generator=generator).mul_(2).sub_(1).float()


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, with the components that fp16 holds badly evened out.

    Component i of up (out, rank) and down (rank, columns) is moved by a power of two, which
    changes no digit, where its largest entries leave ``FP16_COMFORT``.
    """
    ups, downs = _largest(up, down)
    ratio = torch.where(_uneven(ups, downs), ups.double() / downs, torch.ones_like(ups, dtype=torch.float64))
    power = 2.0 ** (ratio.log2() / 2).round()
    return (up.double() / power).float(), (down.double() * power[:, None]).float()


def _traced(
    up: Tensor, down: Tensor, largest: tuple[Tensor, Tensor], scaling: float, roundoff: float
) -> Trace:
    """The trace of scaling * up @ down, whose components' largest entries are given.

    Rounding each factor by u changes the product by at most (2u + u^2) |up| |down|. Against random
    signs the errors within a row cancel: all of them together stay below 6u times the sum of the
    components' Euclidean norms, which for many columns is far less. The sums themselves, of
    ``columns`` terms in fp32, are off by less than 2^-18 of the terms' sizes added up.
    """
    rows, columns = up.shape[0], down.shape[1]
    response = _response(up, down, scaling)
    downs = _norms(torch.linalg.vector_norm(down, dim=1), largest[1], columns)
    ups = _norms((torch.ones(rows) @ up.square()).sqrt_(), largest[0], rows)
    allowed = abs(scaling) * float(ups @ downs) * (6 * roundoff + 2.0**-18 * columns**0.5)
    smallest = NEGLIGIBLE * (rows * columns) ** 0.5
    return Trace(response, allowed + smallest)


def _response(up: Tensor, down: Tensor, scaling: float) -> Tensor:
    return scaling * (up @ (down @ signs(down.shape[1])))


def _norms(norms: Tensor, largest: Tensor, count: int) -> Tensor:
    """Euclidean norms of ``count`` numbers each, also where the squares leave the range of fp32."""
    return torch.minimum(torch.maximum(norms, largest), largest * count**0.5)


def _largest(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The largest size of an entry of each component."""
    return torch.maximum(up.amax(0), -up.amin(0)), torch.maximum(down.amax(1), -down.amin(1))


def _uneven(ups: Tensor, downs: Tensor) -> Tensor:
    lowest, highest = FP16_COMFORT
    bad = (torch.minimum(ups, downs) < lowest) | (torch.maximum(ups, downs) > highest)
    return bad & (ups > 0) & (downs > 0)


def _finite(*values: Tensor) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values)


def numbers(layer: LoraLayer) -> int:
    """How many numbers a layer's factors have."""
    return layer.rank * (layer.columns + layer.out_features)
