"""Progress of a whole run, with the time left, and the user's wish to stop it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .config import LoraInput, MergeRequest, MergeSettings
from .errors import Interrupted
from .hosts import Host, Progress, SharesInterrupt
from .ziplora.likelihood import TIMES

SEARCH_PICTURES, SEARCH_STEPS = 2, 4
"""Pictures that the search for strengths draws at each strength, and their sampling steps."""
EXPECTED_TRIES = 3


def heldout_steps(settings: MergeSettings) -> int:
    """Samples of each LoRA that are kept out of the training."""
    return max(3, settings.sampling_steps // 2)


def drawing_units(settings: MergeSettings, trajectories: int, steps: int) -> int:
    """UNet forwards of so many trajectories: with guidance two a step, but for the last step."""
    return trajectories * (2 * steps - 1 if settings.guidance_scale > 1 else steps)


def lora_units(settings: MergeSettings, lora: LoraInput) -> int:
    """UNet forwards for one LoRA beside the updates: its samples, those kept out, and what is measured on these.

    The base's forwards, for the scale, and both evaluations take the kept-out samples alone.
    """
    kept_out, trained = heldout_steps(settings), settings.trajectories * settings.sampling_steps
    if lora.images:
        return trained + 4 * kept_out
    drawn = drawing_units(settings, settings.trajectories, settings.sampling_steps)
    return drawn + drawing_units(settings, 1, kept_out) + 3 * kept_out


def combined_units(settings: MergeSettings) -> int:
    """UNet forwards for the samples of the combined prompt; the base sees one trajectory of them."""
    drawn = drawing_units(settings, settings.trajectories, settings.sampling_steps)
    return drawn + settings.sampling_steps


def search_units(settings: MergeSettings, loras: int) -> int:
    """UNet forwards of one sample that the search for strengths takes, roughly."""
    drawing = SEARCH_STEPS * (2 if settings.guidance_scale > 1 else 1)
    return SEARCH_PICTURES * (loras + EXPECTED_TRIES) * (drawing + loras * len(TIMES))


def update_units(loras: int) -> int:
    """One update of so many LoRAs, which draws as many samples, whatever terms the objective has."""
    return 1 + 2 * loras


def file_units(loras: int) -> int:
    """Reading so many LoRAs and writing the merged one."""
    return loras + 1


def units_of(request: MergeRequest) -> int:
    """Work of a run in UNet forwards of one sample, roughly; for the progress bar."""
    settings, loras = request.settings, len(request.loras)
    if not settings.needs.model:
        return file_units(loras)
    together = settings.uses_combined_prompt and (
        bool(settings.combined_prompt.strip()) or len({lora.role for lora in request.loras}) > 1
    )
    samples = sum(lora_units(settings, lora) for lora in request.loras)
    if together and settings.needs.closed_form:
        samples += combined_units(settings)
    if together and settings.searches_strengths:
        samples += search_units(settings, loras)
    return loras + samples + update_units(loras) * (settings.steps if settings.needs.updates else 0)


@dataclass(frozen=True)
class SubProgress:
    """Where a run stands that is one of several.

    Attributes:
        before: units of the runs before it.
        whole: units of all.
        words: what its texts begin with.
    """

    before: int
    whole: int
    words: str

    def placed(self, event: Progress) -> Progress:
        """An event of the run as one of the whole; its pace tells the time that is left for all."""
        left = event.seconds_left
        if left is not None:
            left *= (self.whole - self.before - event.step) / max(1, event.total - event.step)
        return dataclasses.replace(
            event,
            step=self.before + event.step,
            total=self.whole,
            seconds_left=left,
            text=f"{self.words}{event.text}",
        )


class Meter:
    """Counts the units of a run, tells host and front end, and stops when asked to.

    Args:
        host: shows progress and holds the interrupt flags.
        on_event: the front end's own, or None.
        total: units of the whole run.
        interrupted: the sentence about a run that the user has stopped.
        part: where it stands among several runs, or None.
    """

    def __init__(
        self,
        host: Host,
        on_event: Callable[[Progress], None] | None,
        total: int,
        interrupted: str = "The merge was interrupted; nothing was written.",
        part: SubProgress | None = None,
    ) -> None:
        self._host, self._on_event, self._total = host, on_event, total
        self._interrupted, self._part = interrupted, part
        self._stage, self._text = "reading", ""
        self._done = 0
        self.history: list[Mapping[str, float]] = []
        """The figures of every update."""
        self._timed_from: tuple[float, int] | None = None
        self.keeps_work = False
        """From now on an Interrupt that came from elsewhere ends the learning and no more: there is a result."""
        self.ended_from_elsewhere = False

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
        if metrics:
            self.history.append(metrics)
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
        host = self._host
        if not host.interrupted():
            return
        if self.keeps_work and isinstance(host, SharesInterrupt) and host.take_interrupt():
            self.ended_from_elsewhere = True
        else:
            raise Interrupted(self._interrupted)

    def finish_requested(self) -> bool:
        """The user wants the file as it is now, or an Interrupt meant for something else has ended the learning."""
        return self.ended_from_elsewhere or self._host.finish_requested()

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
        if self._part is not None:
            event = self._part.placed(event)
        self._host.report(event)
        if self._on_event is not None:
            self._on_event(event)
