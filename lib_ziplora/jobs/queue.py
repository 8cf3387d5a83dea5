"""Jobs of one host: queued, running, ended; one at a time, first come first served."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import Interrupted, OutputError, ZipLoraError
from ..hosts import Host, Progress
from ..report.report import MergeReport
from .requests import Prepared, Request, Result, output_names, replaces, stopping_words

log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "interrupted"]
Stopping = Literal["", "interrupt", "finish"]
OnEvent = Callable[[Progress], None]

REMEMBERED = 32
"""Jobs that a queue holds, ended or not."""
WITH_PICTURES = 2
"""Jobs whose pictures are held: they are large."""
CANCELLED = "The job was taken off the queue; nothing was written."
INTERRUPTED = "The job was interrupted."
ELSEWHERE = " It was interrupted from elsewhere: the UI's own Interrupt stops whatever runs."
UNEXPECTED = (
    "The job failed unexpectedly ({kind}). Nothing was written. The log has the details; please report them."
)


class QueueFullError(ZipLoraError):
    """So many jobs wait already that no other is taken."""


class JobStateError(ZipLoraError):
    """A job can't be stopped or finished as it is now."""


@dataclass
class Job:
    """One merge, re-export, matrix or comparison from its request to its end; the queue alone changes it.

    Attributes:
        request: what to do.
        prepared: what is known of it beforehand.
        background: whether the queue's own thread runs it; else whoever calls ``JobQueue.run``.
        id: what front ends call it.
        state: ``queued`` until it has the host to itself, ``running``, then how it ended.
        stopping: what it was asked to do while it runs.
        progress: the newest event, None before the first.
        history: the figures of every update of the merge that runs (``Progress.metrics``).
        result: what it has made; of a matrix also while it runs.
        error: a sentence, once it has ``failed`` or was ``interrupted``.
        created: seconds since the epoch; ``started`` and ``finished``: 0 until then.
        on_event: told of every step, besides ``progress``.
    """

    request: Request
    prepared: Prepared
    background: bool = True
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    state: State = "queued"
    stopping: Stopping = ""
    progress: Progress | None = None
    history: list[Mapping[str, float]] = field(default_factory=list)
    result: Result = field(default_factory=Result)
    error: str = ""
    created: float = field(default_factory=time.time)
    started: float = 0.0
    finished: float = 0.0
    on_event: OnEvent | None = field(default=None, repr=False)

    @property
    def ended(self) -> bool:
        """It has neither to wait nor to run any more."""
        return self.state not in ("queued", "running")

    @property
    def report(self) -> MergeReport | None:
        """The figures of a merge or a re-export, once it is ``done``."""
        return self.result.report if self.state == "done" else None

    @property
    def stopping_words(self) -> str:
        """What becomes of it now that it was asked to stop, as a sentence; "" when it was not."""
        return stopping_words(self.request, self.stopping) if self.stopping else ""

    def follow(self, progress: Progress) -> None:
        """Keep an event of its run."""
        if progress.stage == "reading":  # a merge begins, perhaps one of several
            self.history.clear()
        self.progress = progress
        if "travel" in progress.metrics:
            self.history.append(dict(progress.metrics))
        if self.on_event is not None:
            self.on_event(progress)


class JobQueue(ABC):
    """The jobs of one host. Each runs with the host to itself (``Host.exclusive``).

    The thread lives only while a background job waits or runs.

    Args:
        host: where the jobs run.
        remembered: jobs that are held; the oldest that has ended makes room for a new one.
    """

    def __init__(self, host: Host, remembered: int = REMEMBERED) -> None:
        self.host = host
        self._remembered = remembered
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._worker: threading.Thread | None = None
        # Held for every change of a state and while the host is asked to stop, so that the
        # job that is asked is the one that runs. Reentrant for ``stop``.
        self._lock = threading.RLock()

    @abstractmethod
    def prepare(self, request: Request) -> Prepared:
        """Everything that can be known before the job runs; raises ZipLoraError for what can't be done."""

    @abstractmethod
    def perform(self, job: Job) -> tuple[State, str]:
        """Do what a job asks for; the host is held. How it ended, and why where it is not ``done``."""

    def submit(self, request: Request, *, background: bool = True) -> Job:
        """Prepare a request and queue it.

        Args:
            request: what to do.
            background: run it in the queue's own thread once the host is free. Otherwise the caller
                does, with ``run``; until then others may take its name, and it may be forgotten.

        Raises:
            QueueFullError: too many wait.
            OutputError: an unfinished job will write a file of that name.
            ZipLoraError: what keeps it from being done, in the user's words.
        """
        prepared = self.prepare(request)
        with self._lock:
            self._refuse_taken_name(request)
            self._make_room()
            job = Job(request, prepared, background)
            self._jobs[job.id] = job
            if background and self._worker is None:
                self._worker = threading.Thread(target=self._work, name="ziplora-jobs", daemon=True)
                self._worker.start()
        return job

    def jobs(self) -> list[Job]:
        """Every job that is remembered, the oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def get(self, job_id: str) -> Job | None:
        """The job of that id, None when there is none or it is forgotten."""
        with self._lock:
            return self._jobs.get(job_id)

    def running(self) -> Job | None:
        """The job that runs now, wherever it was begun."""
        return next((job for job in self.jobs() if job.state == "running"), None)

    def run(self, job: Job, on_event: OnEvent | None = None) -> None:
        """Run a job that has the host to itself, unless it was cancelled while it waited. Never raises."""
        with self._lock:
            if job.state != "queued":
                return
            job.state, job.started, job.on_event = "running", time.time(), on_event
        state: State
        try:
            state, error = self.perform(job)
        except Interrupted as stop:
            state, error = "interrupted", str(stop) + ("" if job.stopping else ELSEWHERE)
        except ZipLoraError as problem:
            state, error = "failed", str(problem)
        except Exception as problem:
            log.exception("Job %s failed", job.id)
            state, error = "failed", UNEXPECTED.format(kind=type(problem).__name__)
        # Loaders answer an interrupt with errors of all kinds.
        if state == "failed" and job.stopping == "interrupt":
            state, error = "interrupted", INTERRUPTED
        with self._lock:
            self._end(job, state, error)
            self._drop_pictures()

    def interrupt(self, job: Job) -> None:
        """Stop a job and throw its work away; one that waits is taken off the queue.

        Raises:
            JobStateError: it has ended.
        """
        with self._lock:
            self._require_unfinished(job)
            if job.state == "queued":
                self._end(job, "interrupted", CANCELLED)
            else:
                job.stopping = "interrupt"
                self.host.interrupt()

    def finish(self, job: Job) -> None:
        """Have a running job stop optimising and write what there is.

        Raises:
            JobStateError: it doesn't run, or is being interrupted.
        """
        with self._lock:
            self._require_unfinished(job)
            if job.state == "queued":
                raise JobStateError("The job has not begun. Interrupt takes it off the queue.")
            if job.stopping == "interrupt":
                raise JobStateError("The job is being interrupted already.")
            job.stopping = "finish"
            self.host.finish_now()

    def stop(self, timeout: float = 0.0) -> None:
        """Interrupt everything; wait up to ``timeout`` seconds for the running job to end."""
        with self._lock:
            for job in self._jobs.values():
                if not job.ended:
                    self.interrupt(job)
            worker = self._worker
        if worker is not None and timeout > 0:
            worker.join(timeout)

    @staticmethod
    def _require_unfinished(job: Job) -> None:
        if job.ended:
            raise JobStateError(f"The job has ended already ({job.state}).")

    def _refuse_taken_name(self, request: Request) -> None:
        """Two unfinished jobs of one name: the second would fail after its work."""
        if replaces(request):
            return
        unfinished = [job for job in self._jobs.values() if job.state == "running" or _waits(job)]
        taken = {name.casefold() for job in unfinished for name in output_names(job.request)}
        for name in output_names(request):
            if name.casefold() in taken:
                raise OutputError(
                    f"A job that has not ended yet will write {name}. Choose another name, or overwrite."
                )

    def _make_room(self) -> None:
        while len(self._jobs) >= self._remembered:
            ended = (job for job in self._jobs.values() if job.ended)
            idle = (job for job in self._jobs.values() if job.state == "queued" and not job.background)
            oldest = next(ended, None) or next(idle, None)
            if oldest is None:
                raise QueueFullError(f"{self._remembered} jobs wait already. Try again when one has ended.")
            del self._jobs[oldest.id]

    def _drop_pictures(self) -> None:
        drawn = [job for job in self._jobs.values() if job.result.drawn is not None]
        for job in sorted(drawn, key=lambda job: job.finished)[:-WITH_PICTURES]:
            job.result = replace(job.result, drawn=None)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                with self.host.exclusive():
                    self.run(job)
            except Exception as problem:
                log.exception("Job %s could not be run", job.id)
                with self._lock:
                    if not job.ended:
                        self._end(job, "failed", UNEXPECTED.format(kind=type(problem).__name__))

    def _next(self) -> Job | None:
        """The background job that waits longest; without one the thread ends."""
        with self._lock:
            waiting = next((job for job in self._jobs.values() if _waits(job)), None)
            if waiting is None:
                self._worker = None
            return waiting

    @staticmethod
    def _end(job: Job, state: State, error: str = "") -> None:
        job.error, job.finished, job.stopping = error, time.time(), ""
        job.state = state


def _waits(job: Job) -> bool:
    return job.state == "queued" and job.background
