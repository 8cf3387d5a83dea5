"""Layers into the bytes of a file, one after another, in memory that is used again.

Beside the bytes, what the delta weight does to one fixed vector is kept: reading the file
back must give the same, up to the rounding of the factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import OutputError
from .digest import Ring
from .layer import LoraLayer
from .serialize import FORMATS

# fp16 is even from 2^-14 to 2^15; factors whose largest entry leaves this range are balanced.
FP16_COMFORT = (2.0**-10, 2.0**14)
# What the factors' rounding may leave in a delta weight's entry that is far below any weight's own rounding.
NEGLIGIBLE = 1e-7


@dataclass(frozen=True)
class Trace:
    """What a delta weight does to the vector ``signs(columns)``.

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
        ring: where the results go.
    """

    def __init__(self, precision: str, largest: int, ring: Ring) -> None:
        self._precision = precision
        self._dtype = FORMATS[precision].dtype
        self._scratch = torch.empty(largest)
        self._ring = ring

    def cast(self, layer: LoraLayer) -> tuple[memoryview, Trace]:
        """The bytes of down and up, one after the other, and the trace of the unrounded layer.

        Raises:
            OutputError: the layer holds NaN or infinity, or numbers that the precision can't hold.
        """
        up, down = self._factors(layer)
        data = self._ring.take(self._dtype.itemsize * numbers(layer))
        whole = data.view(self._dtype)
        stored_down, stored_up = whole[: down.numel()].view_as(down), whole[down.numel() :].view_as(up)
        stored_down.copy_(down)
        stored_up.copy_(up)
        trace, ups, downs = _traced(up, down, layer.scaling, FORMATS[self._precision].roundoff)
        if not _finite(ups, downs):
            raise OutputError(
                f"Layer {layer.name} holds NaN or infinity; nothing was written. Merge with other settings."
            )
        if self._precision == "fp16" and bool(_uneven(ups, downs).any()):
            up, down = balanced(*self._factors(layer))
            stored_down.copy_(down)
            stored_up.copy_(up)
            ups, downs = _largest(up.abs(), down.abs())
        # Rounding keeps the order: the factors fit where their largest entries do.
        if not _finite(ups.to(self._dtype), downs.to(self._dtype)):
            raise OutputError(
                f"Layer {layer.name} has numbers that {self._precision} can't hold. Choose bf16 or fp32."
            )
        return data.numpy().data, trace

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
    ups, downs = _largest(up.abs(), down.abs())
    ratio = torch.where(_uneven(ups, downs), ups.double() / downs, torch.ones_like(ups, dtype=torch.float64))
    power = 2.0 ** (ratio.log2() / 2).round()
    return (up.double() / power).float(), (down.double() * power[:, None]).float()


def _traced(up: Tensor, down: Tensor, scaling: float, roundoff: float) -> tuple[Trace, Tensor, Tensor]:
    """The trace of scaling * up @ down, and the largest entries of both; the factors are used up.

    Rounding each factor by u changes the product by at most (2u + u^2) |up| |down|. Against random
    signs the errors within a row cancel: all of them together stay below 6u times the sum of the
    components' Euclidean norms, which for many columns is far less.
    """
    probe = signs(down.shape[1])
    response = scaling * (up @ (down @ probe))
    up.abs_()
    down.abs_()
    ups, downs = _largest(up, down)
    most = float((up @ (down @ probe.abs())).norm())
    ups_norm = (torch.ones(up.shape[0]) @ up.square_()).sqrt_()
    downs_norm = (down.square_() @ probe.abs()).sqrt_()
    likely = float(torch.maximum(ups_norm, ups) @ torch.maximum(downs_norm, downs))
    allowed = abs(scaling) * (roundoff * min(2.5 * most, 6 * likely) + 2.0**-18 * most)
    smallest = NEGLIGIBLE * (up.shape[0] * down.shape[1]) ** 0.5
    return Trace(response, allowed + smallest), ups, downs


def _largest(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The largest entry of each component, of factors without signs."""
    return up.amax(0), down.amax(1)


def _uneven(ups: Tensor, downs: Tensor) -> Tensor:
    lowest, highest = FP16_COMFORT
    bad = (torch.minimum(ups, downs) < lowest) | (torch.maximum(ups, downs) > highest)
    return bad & (ups > 0) & (downs > 0)


def _finite(*values: Tensor) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values)


def numbers(layer: LoraLayer) -> int:
    """How many numbers a layer's factors have."""
    return layer.rank * (layer.columns + layer.out_features)
