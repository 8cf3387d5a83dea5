"""Memory of an update: predicted from counts on SDXL's UNet, compared with what is free, and told in words.

The prediction is needed before a merge, and where a driver spills silently into main memory instead of failing;
``ziplora.memory.step_down`` catches what it got wrong. ``tests/training/test_footprint.py`` holds the table against
counts on the full-size UNet, ``tests/benchmarks/test_simulate.py`` against the peaks of a simulated card.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import MergeSettings
from ..denoiser import Denoiser
from ..errors import OutOfMemoryError
from ..lora.io.serialize import Shaped
from ..ziplora.memory import Plan, plans

log = logging.getLogger(__name__)

Layers = Mapping[str, Shaped]
"""A LoRA's UNet layers: anything with a rank and a weight's shape."""

OUT_OF_MEMORY = (
    "The device ran out of memory; nothing was written and the model is unchanged. Choose a smaller "
    "sample width and height, or close other programs that use the memory."
)
GIGABYTE = 1e9
NATIVE_SIZE = 1024
LATENT_PIXEL = 64
"""Pixels of a picture for each of its latents'."""
FP32 = 4
CERTAIN = 0.8
"""Of a prediction: what is surely needed."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of SDXL's UNet that keep alike, in values for each latent pixel of a sample.

    ``attention``: kept for the backward pass with LoRAs on the attention projections alone; ``everything``: with
    LoRAs on every layer; ``entering``: what is kept of a block that recomputes the rest.
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
"""Counted, in the order of ``ziplora.memory.in_order_of_worth``."""
OUTSIDE = Blocks(1, 3200, 6245, 0)
"""Counted: what is kept outside of every block."""
PASSING = 1500
"""Simulated: values for each latent pixel that come and go, such as gradients."""
LARGEST_SHARE = 0.1
"""Counted: of the merged factors, what one block that is recomputed has at most."""
RESERVE = 400 * 2**20
"""Assumed: what the device's libraries and the fragmentation of its memory take."""


def estimate_memory(
    loras: Sequence[Layers],
    width: int,
    height: int,
    plan: Plan,
    *,
    itemsize: int = 2,
) -> int:
    """Bytes that the loop takes at its peak, beside the checkpoint and what else is on the device.

    Args:
        loras: each LoRA's UNet layers.
        width: of the samples in pixels; ``height`` too.
        plan: how an update is made.
        itemsize: bytes of a value in the dtype that the UNet computes in.
    """
    batch = len(loras) if plan.batched else 1
    every = [(name, layer) for layers in loras for name, layer in layers.items()]
    attention = all("_attn1_" in name or "_attn2_" in name for name, _ in every)
    values = batch * width * height / LATENT_PIXEL * (activations(plan, attention) + PASSING)
    coefficients = sum(math.prod(layer.weight_shape[1:]) for _, layer in every)
    down = sum(layer.rank * math.prod(layer.weight_shape[1:]) for _, layer in every)
    up = sum(layer.rank * layer.weight_shape[0] for _, layer in every)
    # The merged ``down`` is kept for the backward pass; beside a coefficient lie its gradient and Adam's means.
    factors = down + up + down * max(1 - plan.checkpointing, LARGEST_SHARE)
    return math.ceil((values + factors) * itemsize + 6 * FP32 * coefficients + RESERVE)


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


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device, what PyTorch keeps for itself included; None where nothing tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type != "cpu":
        return None
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def fitting_plans(loras: Sequence[Layers], settings: MergeSettings, denoiser: Denoiser) -> list[Plan]:
    """The plans that the settings allow and the free memory has room for, the fastest first.

    Smaller ones follow, for a device on which the prediction was too low.

    Raises:
        OutOfMemoryError: not even the smallest has room.
    """
    allowed = plans(settings.batching, settings.checkpointing)
    free = free_memory(denoiser.device)
    if free is None:
        return allowed
    needs = predicted_needs(loras, settings, denoiser, allowed)
    if needs[-1] * CERTAIN > free:
        economical = settings.batching != "together" and settings.checkpointing != "off"
        advice = (
            "close other programs that use the memory"
            if economical
            else "set batching and checkpointing to auto"
        )
        raise OutOfMemoryError(
            f"There is not enough memory for a merge at {settings.width} x {settings.height}: "
            f"{in_gigabytes(needs[-1], free)}. Choose a smaller sample width and height, or {advice}."
        )
    first = _first_that_fits(needs, free)
    log.info("Plan: %s; %s", allowed[first].description, in_gigabytes(needs[first], free))
    return allowed[first:]


def predicted_needs(
    loras: Sequence[Layers], settings: MergeSettings, denoiser: Denoiser, allowed: Sequence[Plan]
) -> list[int]:
    """Bytes that each plan takes, with the UNet's weights that the host has yet to bring to the device."""
    kind, itemsize = denoiser.device.type, denoiser.dtype.itemsize
    elsewhere = sum(p.numel() * p.element_size() for p in denoiser.unet.parameters() if p.device.type != kind)
    return [
        elsewhere + estimate_memory(loras, settings.width, settings.height, plan, itemsize=itemsize)
        for plan in allowed
    ]


@dataclass(frozen=True)
class MemoryForecast:
    """What a merge will need beside the checkpoint: bytes, and a sentence."""

    need: int
    sentence: str


def forecast_memory(
    loras: Sequence[Layers], settings: MergeSettings, native: int | None = None
) -> MemoryForecast | None:
    """What a merge will need of this machine's memory; None where there are no updates.

    The device and its usual dtype are taken for granted: the model is not asked.

    Args:
        loras: each LoRA's UNet layers.
        settings: of the merge.
        native: the checkpoint's own size in pixels; None takes SDXL's.
    """
    if not settings.needs.updates:
        return None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = free_memory(device)
    allowed = plans(settings.batching, settings.checkpointing)
    width, height = (edge or native or NATIVE_SIZE for edge in (settings.width, settings.height))
    itemsize = 2 if device.type == "cuda" else 4
    needs = [estimate_memory(loras, width, height, plan, itemsize=itemsize) for plan in allowed]
    first = _first_that_fits(needs, free)
    words = (
        f"memory beside the checkpoint: {in_gigabytes(needs[first], free)} ({allowed[first].description})."
    )
    if device.type == "cuda":
        return MemoryForecast(needs[first], f"GPU {words}")
    return MemoryForecast(needs[first], f"There is no CUDA GPU here, so it may take long. Main {words}")


def _first_that_fits(needs: Sequence[int], free: int | None) -> int:
    return next((i for i, need in enumerate(needs) if free is None or need <= free), len(needs) - 1)


def in_gigabytes(need: int, free: int | None) -> str:
    """What is needed beside the checkpoint and what is free, where that is known, for people."""
    words = f"about {need / GIGABYTE:.1f} GB of memory needed"
    return words if free is None else f"{words}, {free / GIGABYTE:.1f} GB free"


@contextmanager
def memory_in_words(words: str = OUT_OF_MEMORY) -> Iterator[None]:
    """A device that runs out of memory ends in our own error, the model restored before."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # CUDA and Python have classes for it; the CPU's and MPS's allocators only have words.
        said = ("out of memory", "can't allocate memory", "not enough memory")
        known = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        if not known and not any(phrase in str(error) for phrase in said):
            raise
        raise OutOfMemoryError(words) from error
