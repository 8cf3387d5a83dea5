"""Time that a merge will take, from the merges that were made here."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
from pathlib import Path

from ..config import MergeRequest
from ..hosts import Host
from ..progress import units_of
from ..report.report import MergeReport
from .json_store import read_json, write_json

log = logging.getLogger(__name__)

REMEMBERED = 64
"""Sample sizes and checkpoints that are remembered."""

Key = tuple[int, int, str]
"""Width and height of the samples, and the checkpoint's name."""


class Timing:
    """Seconds of a UNet forward for each sample size and checkpoint, measured over whole merges.

    Any thread may ask. The file is read anew each time: others of the same host write it too.

    Args:
        folder: where they are kept, or None to forget them at the end of the program.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = folder / "pace.json" if folder else None
        self._lock = threading.Lock()
        self._seconds: dict[Key, float] = {}

    def note(self, request: MergeRequest, report: MergeReport) -> None:
        """Learn from a merge that has finished; a plain sum draws nothing and tells nothing."""
        if not request.settings.needs.model:
            return
        made = dataclasses.replace(request.settings, steps=max(1, report.learnt.steps))
        units = units_of(dataclasses.replace(request, settings=made))
        key = (*_size(request), report.checkpoint)
        with self._lock:
            others = {other: value for other, value in self._known().items() if other != key}
            newest = [*others.items(), (key, report.seconds / units)][-REMEMBERED:]
            self._seconds = dict(newest)
            if self._file:
                write_json(self._file, [[*other, value] for other, value in newest])

    def seconds(self, request: MergeRequest, host: Host) -> float | None:
        """Of a whole merge, roughly; None where nothing like it was made yet.

        The host is asked for its checkpoint only where that decides: it may have to read all of it.
        """
        known, size = self._known(), _size(request)
        if not any(key[:2] == size for key in known):
            return None
        per_unit = known.get((*size, host.checkpoint().name))
        return None if per_unit is None else per_unit * units_of(request)

    def _known(self) -> dict[Key, float]:
        """What the file holds, and beside it what could not be written into it."""
        return {**self._seconds, **_read(self._file)} if self._file else self._seconds


def _read(file: Path) -> dict[Key, float]:
    content = read_json(file)
    found: dict[Key, float] = {}
    for row in content[-REMEMBERED:] if isinstance(content, list) else ():
        try:
            width, height, checkpoint, seconds = row
            key, value = (int(width), int(height), str(checkpoint)), float(seconds)
        except (TypeError, ValueError, OverflowError) as error:
            log.warning("A time in %s is damaged (%s) and is left out.", file, error)
            continue
        if math.isfinite(value) and value > 0:
            found[key] = value
    return found


def _size(request: MergeRequest) -> tuple[int, int]:
    return request.settings.width, request.settings.height
