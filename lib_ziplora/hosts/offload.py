"""Parts of a model off the GPU for a while, and back again exactly where they were."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
OWN_MEMORY = ("cuda", "xpu")
"""Devices whose memory is not the CPU's."""


@contextmanager
def parked(parts: Sequence[nn.Module]) -> Iterator[None]:
    """The parts' parameters and buffers in the CPU's memory inside the block, those of a GPU that has its own.

    Tensors keep their identity and, since nothing but copies is made, every bit; afterwards, also after an
    exception, each is on the device that it came from. What is in the CPU's memory anyway stays as it is.
    """
    places: list[tuple[Tensor, torch.device]] = []
    try:
        for tensor in _tensors(parts):
            place = device_of(tensor)
            if place.type in OWN_MEMORY:
                places.append((tensor, place))
                move(tensor, CPU)
        yield
    except BaseException as problem:
        if places:
            _let_go(problem)
        raise
    finally:
        for tensor, place in places:
            move(tensor, place)


def _tensors(parts: Sequence[nn.Module]) -> list[Tensor]:
    """Every parameter and buffer once, also of parts that share some."""
    found = (tensor for part in parts for tensor in (*part.parameters(), *part.buffers()))
    return list({id(tensor): tensor for tensor in found}.values())


def device_of(tensor: Tensor) -> torch.device:
    """Where a tensor is."""
    return tensor.device


def move(tensor: Tensor, device: torch.device) -> None:
    """Bring a tensor to a device, in place."""
    tensor.data = tensor.data.to(device)


def _let_go(problem: BaseException) -> None:
    """Free what an error's frames hold, such as the activations of the update that ran out of memory."""
    seen: BaseException | None = problem
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
