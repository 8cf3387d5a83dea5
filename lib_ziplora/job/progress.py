"""Progress of a whole run, with the time left, and the user's wish to stop it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ..config import MergeRequest, MergeSettings
from ..errors import Interrupted
from ..hosts import Host, Progress


def heldout_steps(settings: MergeSettings) -> int:
    """Samples of each LoRA that are kept out of the training."""
    return max(4, settings.sampling_steps // 2)


def sampling_units(settings: MergeSettings) -> int:
    """UNet forwards of one sampling step: with guidance two, and the base's own for the scale."""
    return 3 if settings.guidance_scale > 1 else 2


def update_units(terms: int) -> int:
    """One update, with a sample of each of so many terms: the LoRAs, and the combined prompt."""
    return 1 + 2 * terms


def file_units(loras: int) -> int:
    """Reading so many LoRAs and writing the merged one."""
    return loras + 1


def units_of(request: MergeRequest) -> int:
    """Work of a run in UNet forwards of one sample, roughly; for the progress bar."""
    settings, loras = request.settings, len(request.loras)
    if settings.method == "direct":
        return file_units(loras)
    drawn = settings.sampling_steps * settings.trajectories
    terms = loras + settings.combines
    samples = (terms * drawn + loras * heldout_steps(settings)) * sampling_units(settings)
    evaluations = loras * 2 * heldout_steps(settings)
    return loras + samples + evaluations + update_units(terms) * settings.updates


class Meter:
    """Counts the units of a run, tells host and front end, and stops when asked to.

    Args:
        host: shows progress and holds the interrupt flags.
        on_event: the front end's own, or None.
        total: units of the whole run.
    """

    def __init__(self, host: Host, on_event: Callable[[Progress], None] | None, total: int) -> None:
        self._host, self._on_event, self._total = host, on_event, total
        self._stage, self._text = "reading", ""
        self._done = 0
        self._timed_from: tuple[float, int] | None = None

    def enter(self, stage: str, text: str) -> None:
        """A new stage begins.

        Raises:
            Interrupted: the user asked for it.
        """
        self._stage, self._text = stage, text
        self.advance(0)

    def advance(self, units: int, text: str = "", metrics: Mapping[str, float] | None = None) -> None:
        """Tell of ``units`` more that are done; ``text`` is the stage's own where it is empty.

        Raises:
            Interrupted: the user asked for it.
        """
        self.stop_if_interrupted()
        self._done = min(self._done + units, self._total - 1)
        self._tell(text or self._text, self._seconds_left(), metrics or {})

    def finish(self, text: str) -> None:
        """Tell that all is done."""
        self._done = self._total
        self._stage = "done"
        self._tell(text, 0.0, {})

    def skip(self, units: int) -> None:
        """Units that will not be needed (an early stop)."""
        self._done = min(self._done + units, self._total - 1)

    def stop_if_interrupted(self) -> None:
        """Raise Interrupted when the user asked for it."""
        if self._host.interrupted():
            raise Interrupted("The merge was interrupted; nothing was written.")

    def finish_requested(self) -> bool:
        """The user wants the file as it is now."""
        return self._host.finish_requested()

    def _seconds_left(self) -> float | None:
        if self._stage in ("reading", "encoding"):
            return None
        now = time.monotonic()
        if self._timed_from is None:
            self._timed_from = (now, self._done)
            return None
        since, done = self._timed_from
        if self._done == done:
            return None
        return (now - since) / (self._done - done) * (self._total - self._done)

    def _tell(self, text: str, seconds_left: float | None, metrics: Mapping[str, float]) -> None:
        event = Progress(self._stage, self._done, self._total, seconds_left, text, metrics)
        self._host.report(event)
        if self._on_event is not None:
            self._on_event(event)
