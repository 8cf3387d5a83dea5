"""Bytes that go by are counted, and written, beside their making instead of after it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor


class Sink(Protocol):
    """What ``hashlib`` makes."""

    def update(self, data: memoryview, /) -> object: ...


class Background:
    """Gives bytes to sinks, each in a thread of its own; hashing and files free the interpreter meanwhile.

    All sinks are done when the block has ended. Handing over takes a moment, so give it megabytes at a time.

    Args:
        sinks: each gets all bytes, in order.
    """

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks
        self._workers = [ThreadPoolExecutor(1, thread_name_prefix="ziplora-sink") for _ in sinks]
        self._jobs: list[Future[object]] = []

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for worker in self._workers:
            worker.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            wait_for(self._jobs)

    def update(self, data: memoryview) -> list[Future[object]]:
        """Hand over bytes, which must stay as they are until the jobs that are returned are done."""
        pairs = zip(self._workers, self._sinks, strict=True)
        jobs = [worker.submit(sink.update, data) for worker, sink in pairs]
        self._jobs += jobs
        return jobs


def wait_for(jobs: list[Future[object]]) -> None:
    """Wait, and raise what a sink has raised."""
    for job in jobs:
        job.result()


class Blocks:
    """Memory for pieces that are made one after another and given to sinks; it is used again and again.

    The pieces lie close together in a few blocks, which are handed over when they hold enough: small, so
    that they are still in the processor's cache. All sinks are done when the block of the ``with`` statement
    has ended.

    Args:
        largest: bytes of the largest piece.
        sinks: as for ``Background``.
    """

    ENOUGH = 1 << 22
    COUNT = 3

    def __init__(self, largest: int, *sinks: Sink) -> None:
        size = self.ENOUGH + largest
        # Empty memory of torch's: numpy's may ask for huge pages, Python's is filled with zeros.
        self._blocks = [torch.empty(size, dtype=torch.uint8) for _ in range(self.COUNT)]
        self._jobs: list[list[Future[object]]] = [[] for _ in self._blocks]
        self._background = Background(*sinks)
        self._now = 0
        self._used = 0

    def __enter__(self) -> Blocks:
        self._background.__enter__()
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self._hand_over()
        self._background.__exit__(kind, *rest)

    def take(self, size: int) -> Tensor:
        """(size,) uint8, to be filled before the next is taken."""
        if self._used >= self.ENOUGH:
            self._hand_over()
            wait_for(self._jobs[self._now])
        piece = self._blocks[self._now][self._used : self._used + size]
        self._used += size
        return piece

    def _hand_over(self) -> None:
        """Give what the block holds to the sinks, and turn to the next one."""
        data = self._blocks[self._now][: self._used].numpy().data
        self._jobs[self._now] = self._background.update(data)
        self._now = (self._now + 1) % self.COUNT
        self._used = 0
