"""Values computed from files, kept in memory until one of the files changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Stamp = tuple[int, int]
"""When a file was written (nanoseconds) and its size (bytes)."""


def stamp(file: Path) -> Stamp:
    """What changes when a file is written again; OSError when there is none."""
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size


def cached_by_stat(maxsize: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """A decorator for functions of paths: so many values are kept, each until a file of it has changed."""

    def decorate(compute: Callable[..., T]) -> Callable[..., T]:
        @lru_cache(maxsize)
        def remembered(stamped: tuple[tuple[Path, Stamp], ...]) -> T:
            return compute(*(file for file, _ in stamped))

        @wraps(compute)
        def cached(*files: Path) -> T:
            try:
                stamped = tuple((file, stamp(file)) for file in files)
            except OSError:  # which the function words better
                return compute(*files)
            return remembered(stamped)

        return cached

    return decorate
