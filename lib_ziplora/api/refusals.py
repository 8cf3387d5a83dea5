"""HTTP statuses of our errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastapi import HTTPException

from ..errors import ConfigError, HostError, OutputError, ZipLoraError
from ..jobs.queue import JobStateError, QueueFullError

STATUS: Sequence[tuple[type[ZipLoraError], int]] = (
    (ConfigError, 422),
    (QueueFullError, 429),
    (JobStateError, 409),
    (OutputError, 409),
    (HostError, 409),
    (ZipLoraError, 422),
)
"""Kind of error -> HTTP status; the first that fits counts."""


@contextmanager
def refusals() -> Iterator[None]:
    """Our errors as HTTP statuses, in their own words."""
    try:
        yield
    except ZipLoraError as error:
        status = next(code for kind, code in STATUS if isinstance(error, kind))
        raise HTTPException(status, str(error)) from error
