"""Memory that an update takes beside the checkpoint, from counts on SDXL's UNet; nothing is tried out.

``tests/training/test_footprint.py`` holds the table against counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..lora.io.serialize import Shaped
from ..ziplora.memory import Plan

PIXELS_OF_A_LATENT = 64
FP32 = 4


@dataclass(frozen=True)
class Blocks:
    """Blocks of SDXL's UNet that keep alike, in values for each latent pixel of a sample.

    Attributes:
        count: how many.
        attention: kept for the backward pass, with LoRAs on the attention projections alone.
        everything: with LoRAs on every layer.
        entering: what is kept of a block that recomputes the rest.
    """

    count: int
    attention: int
    everything: int
    entering: int


SDXL = (
    Blocks(10, 3693, 4502, 160),
    Blocks(2, 0, 1920, 320),
    Blocks(2, 2880, 2880, 640),
    Blocks(60, 1855, 2255, 80),
    Blocks(1, 3840, 3840, 960),
    Blocks(1, 0, 720, 80),
    Blocks(1, 1200, 1200, 240),
    Blocks(1, 1440, 1440, 320),
    Blocks(1, 960, 960, 160),
    Blocks(1, 1920, 1920, 480),
    Blocks(1, 360, 360, 40),
    Blocks(1, 600, 600, 120),
    Blocks(2, 720, 720, 160),
    Blocks(3, 480, 480, 80),
)
"""In the order of ``memory.in_order_of_worth``."""
OUTSIDE = Blocks(1, 3200, 6245, 0)
"""What is kept outside of every block."""
PASSING = 4000
"""Values for each latent pixel of a sample that come and go: gradients, outputs, a convolution's workspace."""
MARGIN = 1.2
"""For what hosts keep in fp32 where the count has the compute dtype (normalisations under autocast)."""
LARGEST_SHARE = 0.1
"""Of the merged factors, what one block that is recomputed has at most."""
RESERVE = 400 * 2**20
"""What the device's libraries and the fragmentation of its memory take."""


def estimate_memory(
    loras: Sequence[Mapping[str, Shaped]],
    width: int,
    height: int,
    plan: Plan,
    *,
    itemsize: int = 2,
    samples: int | None = None,
) -> int:
    """Bytes that the loop takes at its peak, beside the checkpoint and what else is on the device.

    Args:
        loras: each LoRA's UNet layers: anything with a rank and a weight's shape.
        width: of the samples in pixels; ``height`` too.
        plan: how an update is made.
        itemsize: bytes of a value in the dtype that the UNet computes in.
        samples: of an update; as many as there are LoRAs when None.
    """
    batch = (len(loras) if samples is None else samples) if plan.batched else 1
    pixels = batch * width * height / PIXELS_OF_A_LATENT
    values = activations(plan, attention_only(loras)) + PASSING
    kept = pixels * values * MARGIN * itemsize
    held = factor_values(loras) + merged_values(loras) * max(1 - plan.checkpointing, LARGEST_SHARE)
    return math.ceil(kept + held * itemsize + 6 * FP32 * coefficient_values(loras) + RESERVE)


def activations(plan: Plan, attention: bool) -> int:
    """Values for each latent pixel of a sample at the peak: all that is kept, and the largest block recomputed."""
    left = round(plan.checkpointing * sum(block.count for block in SDXL))
    total, largest = OUTSIDE.attention if attention else OUTSIDE.everything, 0
    for block in SDXL:
        whole = block.attention if attention else block.everything
        recomputed = min(left, block.count)
        left -= recomputed
        total += recomputed * block.entering + (block.count - recomputed) * whole
        largest = max(largest, whole if recomputed else 0)
    return total + largest


def attention_only(loras: Sequence[Mapping[str, Shaped]]) -> bool:
    """Whether the LoRAs change the attentions' projections and nothing else."""
    return all("_attn1_" in name or "_attn2_" in name for layers in loras for name in layers)


def factor_values(loras: Sequence[Mapping[str, Shaped]]) -> int:
    """Values of all factors."""
    return sum(
        layer.rank * (layer.weight_shape[0] + math.prod(layer.weight_shape[1:]))
        for layers in loras
        for layer in layers.values()
    )


def merged_values(loras: Sequence[Mapping[str, Shaped]]) -> int:
    """Values of the merged ``down`` factors, which the backward pass needs again."""
    return sum(
        layer.rank * math.prod(layer.weight_shape[1:]) for layers in loras for layer in layers.values()
    )


def coefficient_values(loras: Sequence[Mapping[str, Shaped]]) -> int:
    """Merger coefficients; each has a gradient and Adam's means beside it."""
    return sum(math.prod(layer.weight_shape[1:]) for layers in loras for layer in layers.values())
