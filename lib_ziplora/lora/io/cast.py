"""Layers in the precision of a file: rounded once, components evened out for fp16, overflow refused."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import OutputError
from ..layer import LoraLayer
from .serialize import FORMATS

# fp16 is even from 2^-14 to 2^15; a component whose largest entries leave this range is balanced.
LOWEST, HIGHEST = 2.0**-10, 2.0**14


def cast_layer(layer: LoraLayer, precision: str) -> tuple[Tensor, Tensor]:
    """Down (rank, ...) and up (out, rank) of a layer in a precision of ``serialize.FORMATS``, contiguous.

    Raises:
        OutputError: the layer holds NaN or infinity, or numbers that the precision can't hold.
    """
    down, up = _factors(layer, FORMATS[precision].dtype)
    ups, downs = _largest(up, down)
    # Rounding keeps the order, so only components at the limits or beyond can need balancing.
    if precision == "fp16" and not bool(
        ((ups > LOWEST) & (downs > LOWEST) & (torch.maximum(ups, downs) < HIGHEST)).all()
    ):
        exact_down, exact_up = _factors(layer, torch.float32)
        exact_up, exact_down = balanced(exact_up, exact_down)
        down.copy_(exact_down)
        up.copy_(exact_up)
        ups, downs = _largest(up, down)
    if not bool(torch.isfinite(ups).all() and torch.isfinite(downs).all()):
        exact = _factors(layer, torch.float32)
        if all(bool(torch.isfinite(factor).all()) for factor in exact):
            raise OutputError(
                f"Layer {layer.name} has numbers that {precision} can't hold. Choose bf16 or fp32."
            )
        raise OutputError(
            f"Layer {layer.name} holds NaN or infinity; nothing was written. Merge with other settings."
        )
    return down, up


def cast_extra(name: str, tensor: Tensor, precision: str) -> Tensor:
    """A tensor beside the layers, in a precision of ``serialize.FORMATS``.

    Raises:
        OutputError: it holds NaN, infinity, or numbers that the precision can't hold.
    """
    stored = tensor.detach().cpu().float().to(FORMATS[precision].dtype).contiguous()
    if not bool(torch.isfinite(stored).all()):
        raise OutputError(f"{name} has numbers that {precision} can't hold. Choose bf16 or fp32.")
    return stored


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, with the components that fp16 holds badly evened out.

    Component i of up (out, rank) and down (rank, ...) is moved by a power of two, which
    changes no digit, where its largest entries leave ``LOWEST`` to ``HIGHEST``.
    """
    ups, downs = _largest(up, down)
    bad = (torch.minimum(ups, downs) < LOWEST) | (torch.maximum(ups, downs) > HIGHEST)
    bad &= (ups > 0) & (downs > 0) & torch.isfinite(ups) & torch.isfinite(downs)
    ratio = torch.where(bad, ups.double() / downs, torch.ones_like(ups, dtype=torch.float64))
    power = 2.0 ** (ratio.log2() / 2).round()
    shape = (-1, *[1] * (down.ndim - 1))
    return (up.double() / power).float(), (down.double() * power.reshape(shape)).float()


def _factors(layer: LoraLayer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    down = torch.empty(layer.rank, *layer.weight_shape[1:], dtype=dtype)
    up = torch.empty(layer.out_features, layer.rank, dtype=dtype)
    layer.copy_factors(down, up)
    return down, up


def _largest(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The largest size of an entry of each component (rank,), fp32."""
    flat = down.flatten(1)
    ups, downs = torch.maximum(up.amax(0), -up.amin(0)), torch.maximum(flat.amax(1), -flat.amin(1))
    return ups.float(), downs.float()
