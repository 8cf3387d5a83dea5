"""Merges that run in the background, one after the other, for front ends that don't wait."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ..config import MergeRequest
from ..errors import Interrupted, OutputError, ZipLoraError
from ..hosts import Host, Progress
from .card import with_card
from .reexport import ReexportRequest, check_reexport, reexport
from .report import MergeReport
from .run import check, run

log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "interrupted"]
Stopping = Literal["", "interrupt", "finish"]

Request = MergeRequest | ReexportRequest

REMEMBERED = 32
"""Jobs that a queue holds, finished and unfinished together."""
CANCELLED = "The merge was taken off the queue; nothing was written."
UNEXPECTED = "The merge failed unexpectedly ({kind}). The server's log has the details."


class QueueFullError(ZipLoraError):
    """So many jobs wait already that no other is taken."""


class JobStateError(ZipLoraError):
    """A job can't be stopped or finished as it is now."""


@dataclass
class Job:
    """One merge or re-export from its request to its end; the queue alone changes it.

    Attributes:
        request: what to merge or to export again.
        id: what front ends call it.
        state: ``queued`` until it has the host to itself, ``running``, then how it ended.
        stopping: what it was asked to do while it runs.
        progress: the newest event, None before the first.
        report: the figures, once it is ``done``.
        error: a sentence, once it has ``failed`` or was ``interrupted``.
        created: seconds since the epoch; ``started`` and ``finished``: 0 until then.
    """

    request: Request
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    state: State = "queued"
    stopping: Stopping = ""
    progress: Progress | None = None
    report: MergeReport | None = None
    error: str = ""
    created: float = field(default_factory=time.time)
    started: float = 0.0
    finished: float = 0.0

    @property
    def ended(self) -> bool:
        """It has neither to wait nor to run any more."""
        return self.state not in ("queued", "running")


class JobQueue:
    """The background merges of one host, first come first served.

    Each runs with the host to itself (``Host.exclusive``), so it also waits for whatever
    else uses the host. The thread lives only while there is something to do.

    Args:
        host: where the merges run.
        remembered: jobs that are held; the oldest that has ended makes room for a new one.
        wording: from a failed request and the sentence about it to the sentence that is kept.
        on_done: told of every request that was carried out, and how it went.
    """

    def __init__(
        self,
        host: Host,
        remembered: int = REMEMBERED,
        wording: Callable[[Request, str], str] = lambda _request, sentence: sentence,
        on_done: Callable[[Request, MergeReport], None] = lambda _request, _report: None,
    ) -> None:
        self._host = host
        self._wording, self._on_done = wording, on_done
        self._remembered = remembered
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._worker: threading.Thread | None = None
        # Held for every change of a state and while the host is asked to stop, so that the
        # job that is asked is the one that runs. Reentrant for ``stop``.
        self._lock = threading.RLock()

    def submit(self, request: Request) -> Job:
        """Check a request and queue it.

        Raises:
            QueueFullError: too many wait.
            OutputError: an unfinished job will write a file of that name.
            ZipLoraError: what ``job.check`` or ``job.check_reexport`` refuses.
        """
        if isinstance(request, ReexportRequest):
            check_reexport(request, self._host)
        else:
            check(request, self._host)
        with self._lock:
            self._refuse_taken_name(request)
            self._make_room()
            job = Job(request)
            self._jobs[job.id] = job
            if self._worker is None:
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

    def interrupt(self, job: Job) -> None:
        """Stop a job and throw its work away; one that waits is taken off the queue.

        Raises:
            JobStateError: it has ended.
        """
        with self._lock:
            if job.ended:
                raise JobStateError(f"Job {job.id} has ended already ({job.state}).")
            if job.state == "queued":
                self._end(job, "interrupted", error=CANCELLED)
            else:
                job.stopping = "interrupt"
                self._host.interrupt()

    def finish(self, job: Job) -> None:
        """Have a running job stop optimising and write what there is.

        Raises:
            JobStateError: it doesn't run, or is being interrupted.
        """
        with self._lock:
            if job.ended:
                raise JobStateError(f"Job {job.id} has ended already ({job.state}).")
            if job.state == "queued":
                raise JobStateError(f"Job {job.id} has not begun. Interrupt takes it off the queue.")
            if job.stopping == "interrupt":
                raise JobStateError(f"Job {job.id} is being interrupted; nothing will be written.")
            job.stopping = "finish"
            self._host.finish_now()

    def stop(self, timeout: float = 0.0) -> None:
        """Interrupt everything; wait up to ``timeout`` seconds for the running job to end."""
        with self._lock:
            for job in self._jobs.values():
                if not job.ended:
                    self.interrupt(job)
            worker = self._worker
        if worker is not None and timeout > 0:
            worker.join(timeout)

    def _refuse_taken_name(self, request: Request) -> None:
        """Two unfinished jobs of one name: the second would fail after its work."""
        names = {job.request.output.casefold() for job in self._jobs.values() if not job.ended}
        if request.output.casefold() in names and not request.overwrite:
            raise OutputError(
                f"A job that has not ended yet will write {request.output}. Choose another name, or overwrite."
            )

    def _make_room(self) -> None:
        while len(self._jobs) >= self._remembered:
            oldest = next((job for job in self._jobs.values() if job.ended), None)
            if oldest is None:
                raise QueueFullError(f"{self._remembered} jobs wait already. Try again when one has ended.")
            del self._jobs[oldest.id]

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                with self._host.exclusive():
                    self._run(job)
            except Exception as problem:
                log.exception("Job %s could not be run", job.id)
                with self._lock:
                    if not job.ended:
                        self._end(job, "failed", error=UNEXPECTED.format(kind=type(problem).__name__))

    def _next(self) -> Job | None:
        """The job that waits longest; without one the thread ends."""
        with self._lock:
            waiting = next((job for job in self._jobs.values() if job.state == "queued"), None)
            if waiting is None:
                self._worker = None
            return waiting

    def _run(self, job: Job) -> None:
        """Run a job that has the host to itself, unless it was cancelled while it waited."""
        with self._lock:
            if job.state != "queued":
                return
            job.state, job.started = "running", time.time()
        state, report, sentence = _outcome(job, self._host)
        error = sentence and self._wording(job.request, sentence)
        if report is not None:
            self._on_done(job.request, report)
        with self._lock:
            self._end(job, state, report, error)

    def _end(self, job: Job, state: State, report: MergeReport | None = None, error: str = "") -> None:
        job.report, job.error, job.finished, job.stopping = report, error, time.time(), ""
        job.state = state


def _outcome(job: Job, host: Host) -> tuple[State, MergeReport | None, str]:
    """How a merge ends; never raises."""

    def follow(progress: Progress) -> None:
        job.progress = progress

    try:
        if isinstance(job.request, ReexportRequest):
            return "done", with_card(reexport(job.request, host, follow), host), ""
        return "done", with_card(run(job.request, host, follow), host), ""
    except Interrupted as stop:
        return "interrupted", None, str(stop)
    except ZipLoraError as error:
        return "failed", None, str(error)
    except Exception as problem:
        log.exception("Job %s failed", job.id)
        return "failed", None, UNEXPECTED.format(kind=type(problem).__name__)
