"""How much memory an update may take: samples together or one by one, activations kept or recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..config import Batching, Checkpointing

SHARES = (0.3, 0.6, 0.85)
"""Shares of the blocks that the plans between none and all of them recompute.

Of SDXL's 87, the last leaves out the residual blocks that keep little and take long.
"""


@dataclass(frozen=True)
class Plan:
    """How an update is made.

    Attributes:
        together: all samples of an update in one batch, or one after the other.
        checkpointing: share of the blocks whose activations are recomputed in the backward pass:
            0 keeps all of them, 1 none.
    """

    together: bool
    checkpointing: float

    @property
    def words(self) -> str:
        """The plan for people."""
        batch = "all samples in one batch" if self.together else "one sample at a time"
        share = float(self.checkpointing)
        kept = {0.0: "no checkpointing", 1.0: "checkpointing"}.get(
            share, f"checkpointing {share:.0%} of the blocks"
        )
        return f"{batch}, {kept}"

    def recomputed(self, blocks: Sequence[nn.Module]) -> list[nn.Module]:
        """Which of the blocks recompute their activations: those where that pays most."""
        return in_order_of_worth(blocks)[: round(self.checkpointing * len(blocks))]


def plans(batching: Batching, checkpointing: Checkpointing) -> list[Plan]:
    """The plans that the settings allow, the fastest first, each smaller than the one before.

    Recomputing costs time and a second small batch hardly any, so the batch is taken apart first.
    """
    if checkpointing == "on":
        shares: tuple[float, ...] = (1.0,)
    else:
        shares = (0.0,) if checkpointing == "off" else (0.0, *SHARES, 1.0)
    if batching == "together":
        return [Plan(True, share) for share in shares]
    separate = [Plan(False, share) for share in shares]
    return separate if batching == "separate" else [Plan(True, shares[0]), *separate]


def in_order_of_worth(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The blocks, those first that keep the most activations for the work of recomputing them."""
    return sorted(blocks, key=_activations_per_product, reverse=True)


def _activations_per_product(block: nn.Module) -> float:
    """Features in and out of a block's weights, for every product that they take: the same per pixel."""
    weights = [p for p in block.parameters() if p.ndim >= 2]
    features = sum(weight.shape[0] + weight.shape[1] for weight in weights)
    return features / max(1, sum(weight.numel() for weight in weights))
