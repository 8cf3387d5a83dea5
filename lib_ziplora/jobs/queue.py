"""Jobs that run in the background, one after the other, for front ends that don't wait."""

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
from ..report.report import MergeReport
from .service import Listener, Request, Result, carry_out, check_request, names_of, replaces

log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "interrupted"]
Stopping = Literal["", "interrupt", "finish"]

REMEMBERED = 32
"""Jobs that a queue holds, finished and unfinished together."""
CANCELLED = "The job was taken off the queue; nothing was written."
UNEXPECTED = "The job failed unexpectedly ({kind}). The server's log has the details."


class QueueFullError(ZipLoraError):
    """So many jobs wait already that no other is taken."""


class JobStateError(ZipLoraError):
    """A job can't be stopped or finished as it is now."""


@dataclass
class Job:
    """One merge, re-export, matrix or comparison from its request to its end; the queue alone changes it.

    Attributes:
        request: what to do.
        id: what front ends call it.
        state: ``queued`` until it has the host to itself, ``running``, then how it ended.
        stopping: what it was asked to do while it runs.
        progress: the newest event, None before the first.
        result: what it has made; of a matrix also while it runs.
        error: a sentence, once it has ``failed`` or was ``interrupted``.
        created: seconds since the epoch; ``started`` and ``finished``: 0 until then.
    """

    request: Request
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    state: State = "queued"
    stopping: Stopping = ""
    progress: Progress | None = None
    result: Result = field(default_factory=Result)
    error: str = ""
    created: float = field(default_factory=time.time)
    started: float = 0.0
    finished: float = 0.0

    @property
    def ended(self) -> bool:
        """It has neither to wait nor to run any more."""
        return self.state not in ("queued", "running")

    @property
    def report(self) -> MergeReport | None:
        """The figures of a merge or a re-export, once it is ``done``."""
        return self.result.report if self.state == "done" else None


class JobQueue:
    """The background jobs of one host, first come first served.

    Each runs with the host to itself (``Host.exclusive``), so it also waits for whatever
    else uses the host. The thread lives only while there is something to do.

    Args:
        host: where the jobs run.
        remembered: jobs that are held; the oldest that has ended makes room for a new one.
        wording: from a request to what makes, of each sentence about it, the sentence that is kept.
        on_merged: told of every merge that was written, and how it went.
    """

    def __init__(
        self,
        host: Host,
        remembered: int = REMEMBERED,
        wording: Callable[[Request], Callable[[str], str]] = lambda _request: str,
        on_merged: Callable[[MergeRequest, MergeReport], None] = lambda _request, _report: None,
    ) -> None:
        self._host = host
        self._wording, self._on_merged = wording, on_merged
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
            ZipLoraError: what ``check_request`` refuses.
        """
        check_request(request, self._host)
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
                self._end(job, "interrupted", CANCELLED)
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
        if replaces(request):
            return
        unfinished = [job.request for job in self._jobs.values() if not job.ended]
        taken = {name.casefold() for one in unfinished for name in names_of(one)}
        for name in names_of(request):
            if name.casefold() in taken:
                raise OutputError(
                    f"A job that has not ended yet will write {name}. Choose another name, or overwrite."
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
                        self._end(job, "failed", UNEXPECTED.format(kind=type(problem).__name__))

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
        state, error = self._carried_out(job)
        with self._lock:
            self._end(job, state, error)

    def _end(self, job: Job, state: State, error: str = "") -> None:
        job.error, job.finished, job.stopping = error, time.time(), ""
        job.state = state

    def _carried_out(self, job: Job) -> tuple[State, str]:
        """How a job ends, and why where it is not done; its result is kept. Never raises."""

        def follow(progress: Progress) -> None:
            job.progress = progress

        def keep(result: Result) -> None:
            job.result = result.worded(word)

        word: Callable[[str], str] = str
        try:
            word = self._wording(job.request)
            listener = Listener(follow, keep, self._on_merged)
            state, result, sentence = carry_out(job.request, self._host, listener)
            keep(result)
        except Interrupted as stop:
            return "interrupted", word(str(stop))
        except ZipLoraError as error:
            return "failed", word(str(error))
        except Exception as problem:
            log.exception("Job %s failed", job.id)
            return "failed", UNEXPECTED.format(kind=type(problem).__name__)
        return state, word(sentence)
