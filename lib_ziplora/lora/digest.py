"""Checksums of bytes that go by, counted beside the reading and writing instead of after it."""

from __future__ import annotations

import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

ALIGNMENT = 64


class Sink(Protocol):
    """What ``hashlib`` makes, and ``Crc32``."""

    def update(self, data: memoryview, /) -> None: ...


class Crc32:
    """CRC-32 of what it is given; ``value`` is the number."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: memoryview, /) -> None:
        self.value = zlib.crc32(data, self.value)


class BackgroundDigest:
    """Gives bytes to sinks in other threads, one each; ``hashlib`` and ``zlib`` free the interpreter meanwhile.

    All is counted when the block has ended.

    Args:
        sinks: each gets all bytes, in order.
        limit: how many bytes may wait; None for no limit. A buffer that was given must stay as it
            is until it is sure to have been counted, for which ``Ring`` is made.
    """

    def __init__(self, *sinks: Sink, limit: int | None = None) -> None:
        self._sinks = sinks
        self._limit = limit
        self._waiting = 0
        self._pending: deque[tuple[int, list[Future[None]]]] = deque()
        self._workers = [ThreadPoolExecutor(1, thread_name_prefix="ziplora-digest") for _ in sinks]

    def __enter__(self) -> BackgroundDigest:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for worker in self._workers:
            worker.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            self._wait_for(0)

    def update(self, data: memoryview) -> None:
        size = _aligned(len(data))
        if self._limit is not None and self._waiting + size > self._limit:
            # By half at once: to wake for every piece takes longer than the counting.
            self._wait_for(max(0, self._limit // 2 - size))
        jobs = zip(self._workers, self._sinks, strict=True)
        self._pending.append((size, [worker.submit(sink.update, data) for worker, sink in jobs]))
        self._waiting += size

    def _wait_for(self, most: int) -> None:
        while self._pending and self._waiting > most:
            size, jobs = self._pending.popleft()
            for job in jobs:
                job.result()
            self._waiting -= size


class Ring:
    """Memory for pieces that are made one after another and given to a ``BackgroundDigest``.

    Args:
        largest: bytes of the largest piece.
    """

    LIMIT = 1 << 25

    def __init__(self, largest: int) -> None:
        # What waits, the piece that is being made, and what doesn't fit before the end.
        self._memory = torch.empty(max(self.LIMIT, largest) + 2 * _aligned(largest), dtype=torch.uint8)
        self._next = 0

    def digest(self, *sinks: Sink) -> BackgroundDigest:
        """One that has counted every piece before its memory is taken again."""
        return BackgroundDigest(*sinks, limit=self.LIMIT)

    def take(self, size: int) -> Tensor:
        """(size,) uint8, to be filled and given to the digest before the next is taken."""
        if self._next + size > len(self._memory):
            self._next = 0
        piece = self._memory[self._next : self._next + size]
        self._next += _aligned(size)
        return piece


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
