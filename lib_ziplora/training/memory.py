"""What a merge needs of the device's memory, what is free, and a device that runs out of it, in words."""

from __future__ import annotations

import logging
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
from .footprint import estimate_memory

log = logging.getLogger(__name__)

MERGING = (
    "The device ran out of memory; nothing was written and the model is unchanged. Choose a smaller "
    "sample width and height, or close other programs that use the memory."
)

GIGABYTE = 1e9
NATIVE = 1024
CERTAIN = 0.8
"""Of an estimate: what is surely needed."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device, what PyTorch keeps for itself included; None where nothing tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return _free_ram() if device.type == "cpu" else None


def _free_ram() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def fitting_plans(
    loras: Sequence[Mapping[str, Shaped]], settings: MergeSettings, denoiser: Denoiser
) -> list[Plan]:
    """The plans that the settings allow and the free memory has room for, the fastest first.

    Smaller ones follow, for a device on which the estimate was too low.

    Raises:
        OutOfMemoryError: not even the smallest has room.
    """
    allowed = plans(settings.batching, settings.checkpointing)
    free = free_memory(denoiser.device)
    if free is None:
        return allowed
    needs = _needs(loras, settings, denoiser, allowed)
    if needs[-1] * CERTAIN > free:
        raise OutOfMemoryError(_too_little(needs[-1], free, settings))
    first = next((i for i, need in enumerate(needs) if need <= free), len(allowed) - 1)
    log.info("Plan: %s; %s", allowed[first].description, told(needs[first], free))
    return allowed[first:]


def fits_at_once(loras: Sequence[Mapping[str, Shaped]], settings: MergeSettings, denoiser: Denoiser) -> bool:
    """Whether the fastest plan has room in the memory that is free now."""
    free = free_memory(denoiser.device)
    fastest = plans(settings.batching, settings.checkpointing)[:1]
    return free is None or _needs(loras, settings, denoiser, fastest)[0] <= free


def _needs(
    loras: Sequence[Mapping[str, Shaped]],
    settings: MergeSettings,
    denoiser: Denoiser,
    allowed: Sequence[Plan],
) -> list[int]:
    """Bytes that each plan takes, by the estimate."""
    size = {"width": settings.width, "height": settings.height, "itemsize": denoiser.dtype.itemsize}
    coming = _weights_elsewhere(denoiser)
    return [estimate_memory(loras, plan=plan, **size) + coming for plan in allowed]


@dataclass(frozen=True)
class Foreseen:
    """What a merge will need beside the checkpoint: bytes, and a sentence."""

    need: int
    words: str


def foreseen_memory(
    loras: Sequence[Mapping[str, Shaped]], settings: MergeSettings, native: int | None = None
) -> Foreseen | None:
    """What a merge will need of this machine's memory; None where nothing is learnt.

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
    size = {edge: getattr(settings, edge) or native or NATIVE for edge in ("width", "height")}
    itemsize = 2 if device.type == "cuda" else 4
    needs = [estimate_memory(loras, plan=plan, itemsize=itemsize, **size) for plan in allowed]
    first = next((i for i, need in enumerate(needs) if free is None or need <= free), len(allowed) - 1)
    words = f"memory beside the checkpoint: {told(needs[first], free)} ({allowed[first].description})."
    if device.type == "cuda":
        return Foreseen(needs[first], f"GPU {words}")
    return Foreseen(needs[first], f"There is no CUDA GPU here, so it may take long. Main {words}")


def _weights_elsewhere(denoiser: Denoiser) -> int:
    """Bytes of the UNet that are not on its device yet, because the host brings them there when it computes."""
    kind = denoiser.device.type
    return sum(p.numel() * p.element_size() for p in denoiser.unet.parameters() if p.device.type != kind)


def told(need: int, free: int | None) -> str:
    """What is needed beside the checkpoint and what is free, where that is known, for people."""
    words = f"about {need / GIGABYTE:.1f} GB of memory needed"
    return words if free is None else f"{words}, {free / GIGABYTE:.1f} GB free"


def _too_little(need: int, free: int, settings: MergeSettings) -> str:
    words = (
        f"There is not enough memory for a merge at {settings.width} x {settings.height}: {told(need, free)}."
    )
    economical = settings.batching != "together" and settings.checkpointing != "off"
    if not economical:
        return f"{words} Set batching and checkpointing to auto, or choose a smaller sample width and height."
    return f"{words} Choose a smaller sample width and height, or close other programs that use the memory."


@contextmanager
def memory_in_words(words: str = MERGING) -> Iterator[None]:
    """A device that runs out of memory ends in our own error, the model restored before."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemoryError(words) from error


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA and Python have classes for it; the CPU's and MPS's allocators only have words."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(
        w in str(error) for w in words
    )
