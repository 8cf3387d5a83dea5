"""A device that runs out of memory, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import OutOfMemoryError


@contextmanager
def memory_in_words() -> Iterator[None]:
    """A device that runs out of memory ends in our own error, the model restored before."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            "The device ran out of memory; nothing was written and the model is unchanged. Choose a smaller "
            "sample width and height, or close other programs that use the memory."
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA and Python have classes for it; the CPU's and MPS's allocators only have words."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(
        w in str(error) for w in words
    )
