"""SHA-256 of bytes that are read or written, computed beside the caller's own work."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor


class Digest:
    """SHA-256 in one thread; ``hashlib`` and files free the interpreter meanwhile.

    The bytes that are handed over must stay as they are until the next call.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ziplora-sha256")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Digest:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown(wait=True)

    def update(self, data: memoryview) -> None:
        self._wait()
        self._pending = self._worker.submit(self._sha256.update, data)

    def hexdigest(self) -> str:
        self._wait()
        return self._sha256.hexdigest()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
