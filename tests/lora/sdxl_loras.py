"""Two LoRAs over SDXL's layers whose ranks and alphas differ, and what their sum is, by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lib_ziplora.lora.layer import LoraLayer

UNET_WIDTHS = {320: 8, 640: 16, 1280: 32, 2048: 24}
CLIP_WIDTHS = {1: 8, 2: 16}
"""Widths of small models with SDXL's layers: SDXL's -> theirs, a text encoder's number -> its width."""


def two_loras(shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, LoraLayer]]:
    """One LoRA on every layer, with rank 4 and another alpha for every kind of layer; one on a third of them.

    So the merged text-encoder layers come from one LoRA or from two, and no two kinds have the same alpha.
    """
    kinds = sorted({name.rpartition("_")[2] for name in shapes})
    names = sorted(shapes)
    first = {n: _layer(n, shapes[n], 4, 1.0 + kinds.index(n.rpartition("_")[2]), 1) for n in names}
    second = {n: _layer(n, shapes[n], 2, 3.0, 2) for n in names[::3]}
    return [first, second]


def expected_deltas(loras: Sequence[Mapping[str, LoraLayer]], weights: Sequence[float]) -> dict[str, Tensor]:
    """sum of weight * alpha / rank * up @ down, in double precision, in the delta weight's shape."""
    found: dict[str, Tensor] = {}
    for lora, weight in zip(loras, weights, strict=False):
        for name, layer in lora.items():
            product = torch.tensordot(layer.up.double(), layer.down.double(), 1)
            delta = (weight * layer.alpha / layer.down.shape[0] * product).float()
            found[name] = found[name] + delta if name in found else delta
    return found


def _layer(name: str, shape: tuple[int, ...], rank: int, alpha: float, seed: int) -> LoraLayer:
    generator = torch.Generator().manual_seed(seed + len(name))
    columns = shape[1:2] if shape[2:] == (1, 1) else shape[1:]
    down = torch.randn(rank, *columns, generator=generator) / 4
    return LoraLayer(name, down, torch.randn(shape[0], rank, generator=generator) / 4, alpha)
