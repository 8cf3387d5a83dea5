"""Where the bytes of a file lie while its tensors are in use: in memory of our own, or where the system keeps it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch

from .container import read_into, unreadable

# Whether a file can be replaced while it is mapped.
REPLACEABLE = os.name != "nt"


@dataclass(frozen=True)
class Data:
    """A file's bytes: all of them, and what makes a part of them ready, which are asked for in order."""

    whole: memoryview
    make_ready: Callable[[memoryview], None]


Placing = Callable[[BufferedReader, Path, int], Data]
"""(open file at its start, its path, its size) -> its bytes: ``copied`` or ``mapped``."""


def copied(stream: BufferedReader, file: Path, size: int) -> Data:
    """The bytes in memory of our own: whatever happens to the file, they stay."""

    def fill(part: memoryview) -> None:
        try:
            read_into(stream, file, part)
        except OSError as error:
            raise unreadable(file, error) from error

    # Not numpy's or Python's memory: the one asks for huge pages, which can take seconds to get, the
    # other writes zeros first.
    return Data(torch.empty(size, dtype=torch.uint8).numpy().data, fill)


def mapped(stream: BufferedReader, file: Path, size: int) -> Data:
    """The bytes where the system keeps the file, which saves the copy; what is changed in them stays ours.

    For LoRAs that are needed for a few seconds: while one is mapped the file may be replaced or deleted, but
    the process ends when another program cuts it off in place. Where files can't be mapped, and on Windows,
    where a mapped file can't be replaced, they are copied.
    """
    if not REPLACEABLE:
        return copied(stream, file, size)
    try:
        whole = memoryview(mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY))
    except (OSError, ValueError):
        return copied(stream, file, size)
    return Data(whole, lambda part: None)
