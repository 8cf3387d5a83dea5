"""How long a merge will take, from how long those took that were made here."""

from __future__ import annotations

import dataclasses

from ..config import MergeRequest
from ..hosts import Host
from .progress import units_of
from .report import MergeReport

Size = tuple[int, int]


class Pace:
    """Seconds of a UNet forward for each sample size and checkpoint, measured over whole merges."""

    def __init__(self) -> None:
        self._seconds: dict[Size, dict[str, float]] = {}

    def note(self, request: MergeRequest, report: MergeReport) -> None:
        """Learn from a merge that has finished; a plain sum draws nothing and tells nothing."""
        if request.settings.method == "direct":
            return
        made = dataclasses.replace(request.settings, steps=max(1, report.steps))
        units = units_of(dataclasses.replace(request, settings=made))
        self._seconds.setdefault(_size(request), {})[report.checkpoint] = report.seconds / units

    def seconds(self, request: MergeRequest, host: Host) -> float | None:
        """Of a whole merge, roughly; None where nothing like it was made yet.

        The host is asked for its checkpoint only where that decides: it may have to read all of it.
        """
        known = self._seconds.get(_size(request))
        if not known:
            return None
        per_unit = known.get(host.checkpoint().name)
        return None if per_unit is None else per_unit * units_of(request)


def _size(request: MergeRequest) -> Size:
    return request.settings.width, request.settings.height
