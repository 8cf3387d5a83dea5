"""Activations that the backward pass needs, counted on the meta device, block by block.

The table ``lib_ziplora.training.memory.SDXL`` is made of these counts: ``python -m benchmarks.activations``.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cost import MetaDenoiser, attention_only, lora
from lib_ziplora.denoiser import Conditioning
from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.ziplora.coefficients import MergerCoefficients
from lib_ziplora.ziplora.hooks import lora_hooks
from lib_ziplora.ziplora.memory import in_order_of_worth

OUTSIDE = -1
"""The place of what is saved outside of every block."""


@dataclass
class Counted:
    """Bytes that one forward with gradients keeps for its backward pass.

    Attributes:
        activations: number of the block, in order of worth (``OUTSIDE``: none) -> bytes.
        factors: the same of the merged ``down`` factors.
        inputs: bytes that go into each block as its first argument.
    """

    activations: dict[int, int] = field(default_factory=lambda: {OUTSIDE: 0})
    factors: dict[int, int] = field(default_factory=lambda: {OUTSIDE: 0})
    inputs: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.activations.values()) + sum(self.factors.values())


def counted(
    denoiser: MetaDenoiser, modules: Mapping[str, nn.Module], concepts: Sequence[Mapping[str, LoraLayer]]
) -> Counted:
    """What a forward of one sample keeps, without checkpointing."""
    coefficients = MergerCoefficients.ones(concepts, denoiser.device, denoiser.dtype)
    counter = _Counter(denoiser, coefficients)
    x_t, t, cond = denoiser.inputs(1)
    hooks = torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor)
    with ExitStack() as stack:
        stack.enter_context(counter.places(denoiser.checkpoint_blocks()))
        stack.enter_context(lora_hooks(modules, coefficients.adapters()))
        stack.enter_context(efficient_attention())
        stack.enter_context(hooks)
        denoiser.predict(x_t, t, Conditioning(cond.context, cond.vector))
    return counter.counted


class _Counter:
    """Adds up every storage once, at the place where it is saved first; the model's own count nothing."""

    def __init__(self, denoiser: MetaDenoiser, coefficients: MergerCoefficients) -> None:
        self.counted = Counted()
        self.place = [OUTSIDE]
        held = [*denoiser.unet.parameters()]
        for layer in coefficients.layers.values():
            held += [*layer.downs, layer.up, layer.m]
        self.known = {_storage(tensor) for tensor in held}
        self.ranks = {sum(len(down) for down in layer.downs) for layer in coefficients.layers.values()}
        self.kept: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self.known:
            self.known.add(_storage(tensor))
            self.kept.append(tensor)
            into = self.counted.factors if self._is_factor(tensor) else self.counted.activations
            into[self.place[-1]] = into.get(self.place[-1], 0) + tensor.untyped_storage().nbytes()
        return tensor

    def _is_factor(self, tensor: Tensor) -> bool:
        """A merged ``down`` (or its transpose): one of its sides is the sum of the ranks."""
        return tensor.ndim in (2, 4) and bool(self.ranks & set(tensor.shape[:2]))

    @contextmanager
    def places(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        handles = []
        for number, block in enumerate(in_order_of_worth(blocks)):
            handles.append(block.register_forward_pre_hook(functools.partial(self._enter, number)))
            handles.append(block.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, number: int, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.place.append(number)
        self.counted.inputs[number] = inputs[0].numel() * inputs[0].element_size()

    def _leave(self, *_: object) -> None:
        self.place.pop()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def efficient_attention() -> Iterator[None]:
    """Attention on the meta device keeps what the flash kernel keeps, not the attention matrix."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield


def table(latent: int = 128, rank: int = 64) -> list[tuple[int, int, int, int]]:
    """Rows of ``memory.SDXL``, the first of them ``OUTSIDE``: blocks, kept under both kinds of LoRA, entering."""
    denoiser = MetaDenoiser(latent)
    every = canonical_modules(denoiser.unet)
    found = [
        counted(denoiser, modules, [lora(modules, rank)] * 2) for modules in (attention_only(every), every)
    ]
    size = latent**2 * denoiser.dtype.itemsize
    rows: list[tuple[int, int, int, int]] = []
    for place in range(OUTSIDE, len(denoiser.checkpoint_blocks())):
        kept = (*(one.activations.get(place, 0) for one in found), found[1].inputs.get(place, 0))
        row = tuple(round(value / size) for value in kept)
        if rows and rows[-1][1:] == row:
            rows[-1] = (rows[-1][0] + 1, *row)
        else:
            rows.append((1, *row))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.activations", description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=64, help="of both LoRAs")
    parser.add_argument("--latent", type=int, default=128, help="side of the latents")
    args = parser.parse_args()
    print(f"{'blocks':>6} {'attention':>10} {'all layers':>10} {'entering':>10}   values a latent pixel")
    for row in table(args.latent, args.rank):
        print(f"{row[0]:6} {row[1]:10} {row[2]:10} {row[3]:10}")


if __name__ == "__main__":
    main()
