"""What waits and runs under a ticket: its state, its progress, its end."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..errors import Interrupted, ZipLoraError
from ..hosts import Host, Progress
from ..report.report import MergeReport
from . import curves, text

log = logging.getLogger(__name__)

FORGOTTEN = (
    "The merge that ran here is not known any more: the UI was reloaded or the program restarted since. "
    "If its LoRA is not in the list, merge again."
)
REMEMBERED_TASKS = 16
NOTHING_WRITTEN = "Stopping, nothing will be written"
FINISHING = "Finishing, the file will be written"

Follow = Callable[[Progress], None]


@dataclass(frozen=True)
class Outcome:
    """How a task ended: a box to show and, if a file was written, the LoRA's name."""

    html: str
    name: str = ""

    @property
    def tag(self) -> str:
        """What to write into a prompt, or an empty string."""
        return f"<lora:{self.name}:1>" if self.name else ""


@dataclass
class Task:
    """One press of a button, from its ticket to its outcome."""

    state: text.TaskState = "waiting"
    cancelled: bool = False
    stopping: str = ""
    progress: Progress | None = None
    outcome: Outcome | None = None
    history: list[Mapping[str, float]] = field(default_factory=list)
    if_interrupted: str = NOTHING_WRITTEN
    if_finished: str = FINISHING

    def follow(self, progress: Progress) -> None:
        """Note how far it is; the figures of every update are kept for the curves."""
        if progress.stage == "reading":  # a merge begins, perhaps one of several
            self.history.clear()
        self.progress = progress
        if "travel" in progress.metrics:
            self.history.append(dict(progress.metrics))


class Tickets:
    """The tasks of one host: prepared, queued, running, finished.

    A task belongs to a ticket in the WebUI's own form ``task(…)``, so its progress can be
    followed, interrupted and its outcome fetched again after a page reload.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self._lock = threading.Lock()

    def admit(
        self,
        check: Callable[[], object],
        if_interrupted: str = NOTHING_WRITTEN,
        if_finished: str = FINISHING,
    ) -> tuple[str, str]:
        """Check a request before it waits for the host's queue.

        Args:
            check: raises what speaks against it.
            if_interrupted: what is told when it is interrupted while it runs, without a full stop.
            if_finished: the same when it is asked to finish now.

        Returns:
            A ticket and an empty string, or an empty string and a box that says why not.
        """
        try:
            check()
        except ZipLoraError as error:
            return "", text.error(str(error))
        except Exception as problem:
            log.exception("The request could not be checked")
            return "", text.unexpected(problem)
        ticket = f"task(ziplora-{uuid.uuid4().hex[:12]})"
        task = self._open(ticket)
        task.if_interrupted, task.if_finished = if_interrupted, if_finished
        return ticket, ""

    def perform(self, ticket: str, run: Callable[[Follow], MergeReport | Outcome]) -> Outcome:
        """Run what was admitted; the caller holds the host's lock. Never raises."""
        task = self._tasks.get(ticket) or self._open(ticket)
        if task.cancelled:
            outcome = Outcome(
                text.notice("The merge was taken off the queue; nothing was written.", "interrupted")
            )
        else:
            task.state = "running"
            outcome = _outcome(lambda: run(task.follow))
        task.outcome, task.state = outcome, "finished"
        return outcome

    def running(self) -> str:
        """The ticket of the task that runs now, or an empty string."""
        return next((ticket for ticket, task in list(self._tasks.items()) if task.state == "running"), "")

    def bar(self, ticket: str) -> str:
        """The progress bar of a task."""
        task = self._tasks.get(ticket)
        return text.bar(task.state, task.progress, task.stopping) if task else text.bar("unknown", None)

    def curves(self, ticket: str) -> str:
        """The curves of a task's figures so far; empty before the first update."""
        task = self._tasks.get(ticket)
        return curves.chart(list(task.history)) if task else ""

    def outcome(self, ticket: str) -> Outcome | None:
        """How a task ended, or None while it lasts; a notice when nobody remembers it."""
        task = self._tasks.get(ticket)
        return task.outcome if task else Outcome(text.notice(FORGOTTEN, "forgotten"))

    def interrupt(self, ticket: str) -> str:
        """Stop a task and throw its work away; one that still waits is taken off the queue.

        Returns:
            A sentence for the user.
        """
        task = self._tasks.get(ticket)
        sentence = task.if_interrupted if task else NOTHING_WRITTEN
        return self._stop(ticket, self.host.interrupt, sentence)

    def finish_now(self, ticket: str) -> str:
        """Stop a task's optimisation and have it write what there is."""
        task = self._tasks.get(ticket)
        return self._stop(ticket, self.host.finish_now, task.if_finished if task else FINISHING)

    def interrupt_running(self) -> None:
        """Stop everything, for when the WebUI unloads the extension."""
        for ticket in list(self._tasks):
            self.interrupt(ticket)

    def _stop(self, ticket: str, ask: Callable[[], None], sentence: str) -> str:
        task = self._tasks.get(ticket)
        if task is None or task.state == "finished":
            return "No merge is running."
        if task.state == "running":
            ask()
        elif ask == self.host.interrupt:
            task.cancelled = True
        else:
            return "The merge has not begun; Interrupt takes it off the queue."
        task.stopping = sentence
        return f"{sentence}."

    def _open(self, ticket: str) -> Task:
        with self._lock:
            task = self._tasks.setdefault(ticket, Task())
            while len(self._tasks) > REMEMBERED_TASKS:
                self._tasks.popitem(last=False)
            return task


def _outcome(run: Callable[[], MergeReport | Outcome]) -> Outcome:
    try:
        report = run()
    except Interrupted as stop:
        return Outcome(text.notice(str(stop), "interrupted"))
    except ZipLoraError as error:
        return Outcome(text.error(str(error)))
    except Exception as problem:
        log.exception("The merge failed")
        return Outcome(text.unexpected(problem))
    return report if isinstance(report, Outcome) else Outcome(text.result(report), report.name)
