"""Memory plans of an update: samples batched or one by one, activations kept or recomputed (checkpointing)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from ..config import Batching, Checkpointing
from ..errors import OutOfMemoryError

T = TypeVar("T")

SHARES = (0.3, 0.6, 0.85)
"""Shares of the blocks that the plans between none and all of them recompute.

Of SDXL's 87, the last leaves out the residual blocks that keep little and take long.
"""


@dataclass(frozen=True)
class Plan:
    """How an update is made.

    Attributes:
        batched: all samples of an update in one batch, or one after the other.
        checkpointing: share of the blocks whose activations are recomputed in the backward pass, 0 to 1.
    """

    batched: bool
    checkpointing: float

    @property
    def description(self) -> str:
        """The plan for people."""
        batch = "all samples in one batch" if self.batched else "one sample at a time"
        if not self.checkpointing:
            return f"{batch}, no checkpointing"
        blocks = "" if self.checkpointing == 1 else f" {self.checkpointing:.0%} of the blocks"
        return f"{batch}, checkpointing{blocks}"

    def recomputed(self, blocks: Sequence[nn.Module]) -> list[nn.Module]:
        """The blocks that recompute their activations: those where that pays most."""
        return in_order_of_worth(blocks)[: round(self.checkpointing * len(blocks))]


def plans(batching: Batching, checkpointing: Checkpointing) -> list[Plan]:
    """The plans that the settings allow, the fastest first, each smaller than the one before.

    Recomputing costs time and a second small batch hardly any, so the batch is taken apart first.
    """
    shares = {"on": (1.0,), "off": (0.0,), "auto": (0.0, *SHARES, 1.0)}[checkpointing]
    if batching == "together":
        return [Plan(True, share) for share in shares]
    separate = [Plan(False, share) for share in shares]
    return separate if batching == "separate" else [Plan(True, shares[0]), *separate]


def step_down(allowed: Sequence[Plan], work: Callable[[Plan], T]) -> tuple[T, Sequence[Plan]]:
    """The result of ``work`` under the first plan that fits the memory, and the plans from that one on.

    Raises:
        OutOfMemoryError: not even the last one fits.
    """
    while True:
        try:
            return work(allowed[0]), allowed
        except torch.cuda.OutOfMemoryError as problem:
            if len(allowed) == 1:
                raise OutOfMemoryError(
                    f"The GPU ran out of memory even with {allowed[0].description}. "
                    "Choose a smaller sample width and height, or close other programs that use the GPU."
                ) from problem
        allowed = allowed[1:]
        torch.cuda.empty_cache()


def in_order_of_worth(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The blocks, those first that keep the most activations for the work of recomputing them."""

    def activations_per_product(block: nn.Module) -> float:
        weights = [p for p in block.parameters() if p.ndim >= 2]
        features = sum(weight.shape[0] + weight.shape[1] for weight in weights)
        return features / max(1, sum(weight.numel() for weight in weights))

    return sorted(blocks, key=activations_per_product, reverse=True)
