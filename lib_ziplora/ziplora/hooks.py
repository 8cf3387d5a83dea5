"""Forward hooks that add a LoRA to somebody else's model, and activation checkpointing, for the time of a block.

No weight is touched, no dense (out, in) matrix is formed, and leaving the block undoes everything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import IncompatibleError
from ..lora.layer import LoraLayer

Factors = Callable[[], tuple[Tensor, Tensor]]
"""Gives (down, up): (rank, in) or (rank, in, kh, kw), and (out, rank) with the scaling in it."""


def check_fit(modules: Mapping[str, nn.Module], layers: Mapping[str, LoraLayer], lora: str) -> None:
    """Refuse a LoRA whose layers are not in the model or have other shapes.

    Raises:
        IncompatibleError: names the first layer that does not fit, and why.
    """
    for name, layer in layers.items():
        module = modules.get(name)
        if module is None:
            raise IncompatibleError(
                f"The LoRA {lora} has a layer {name} that the loaded checkpoint does not have. "
                "It was trained for another model; load an SDXL checkpoint that it fits."
            )
        weight = tuple(_weight(module).shape)
        if _without_ones(weight) != _without_ones(layer.weight_shape):
            raise IncompatibleError(
                f"Layer {name} of the LoRA {lora} has the shape {layer.weight_shape}, but the loaded "
                f"checkpoint has {weight} there. Load the kind of checkpoint that the LoRA was trained for."
            )


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """(out, in) of a matrix or of a 1x1 convolution, (out, in, kh, kw) of any other."""
    return tuple(shape[:2]) if all(size == 1 for size in shape[2:]) else tuple(shape)


def adapters(
    layers: Mapping[str, LoraLayer], device: torch.device | str, dtype: torch.dtype
) -> dict[str, Factors]:
    """The factors of a LoRA's layers as they are, the scaling folded into ``up``, for ``lora_hooks``."""

    def fixed(layer: LoraLayer) -> Factors:
        down = layer.down.to(device, dtype)
        up = (layer.up.float() * layer.scaling).to(device, dtype)
        return lambda: (down, up)

    return {name: fixed(layer) for name, layer in layers.items()}


@contextmanager
def lora_hooks(modules: Mapping[str, nn.Module], adapters: Mapping[str, Factors]) -> Iterator[None]:
    """Forward hooks that add ``up @ down @ x`` to the outputs of the named modules, inside the block.

    Args:
        modules: canonical name -> linear or convolution module.
        adapters: canonical name -> its factors, asked for anew in every forward.
    """
    handles = []
    try:
        for name, factors in adapters.items():
            handles.append(modules[name].register_forward_hook(functools.partial(_add_low_rank, factors)))
        yield
    finally:
        for handle in reversed(handles):
            handle.remove()


def _add_low_rank(factors: Factors, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    down, up = factors()
    return output + low_rank(module, inputs[0], down, up).to(output.dtype)


def low_rank(module: nn.Module, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """``up @ down`` applied to ``x`` in the way in which ``module`` applies its weight.

    Args:
        module: linear (weight of 2 dimensions) or convolution (of 4).
        x: (..., in) or (batch, in, height, width).
        down: (rank, in) or (rank, in, kh, kw).
        up: (out, rank), scaling included.
    """
    if not torch.is_autocast_enabled():  # which casts to the factors' own dtype, whatever x has
        down, up = down.to(x.dtype), up.to(x.dtype)
    if _weight(module).ndim == 2:
        return F.linear(F.linear(x, down.flatten(1)), up)
    convolution = cast(nn.Conv2d, module)
    kernel = down if down.ndim == 4 else down[:, :, None, None]
    hidden = F.conv2d(x, kernel, None, convolution.stride, convolution.padding, convolution.dilation)
    return F.conv2d(hidden, up[:, :, None, None])


def _weight(module: nn.Module) -> Tensor:
    return cast(Tensor, module.weight)


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Recompute the blocks' activations in the backward pass, inside the block.

    Only the non-reentrant form lets gradients reach the coefficients, which are neither
    inputs nor parameters of these blocks. A frozen model in evaluation mode draws no random
    numbers, so their state is not kept.
    """
    saved = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        for block in blocks:
            block.__dict__["forward"] = functools.partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )
        yield
    finally:
        for block, forward in saved:
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.__dict__["forward"] = forward
