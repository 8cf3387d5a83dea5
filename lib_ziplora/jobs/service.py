"""Service for every front end: merges, re-exports, matrices and comparisons with everything around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..config import MergeRequest
from ..errors import HostError, ZipLoraError
from ..hosts import Draws, Host
from ..library.card import with_card, write_preview
from ..library.json_store import data_folder
from ..library.merges import MergeFiles, remove_merge, rename_merge
from ..library.recent import RecentMerges
from ..library.timing import Timing
from ..pictures.compare import PreparedComparison, compare, prepare_compare
from ..pictures.comparison import CompareRequest, Comparison
from ..pictures.matrix_sheet import DRAWABLE, NO_SHEET, Sheet, draw_sheet
from ..pipeline.matrix import Cell, PreparedMatrix, prepare_matrix, require_ready, run_matrix
from ..pipeline.merge import run
from ..pipeline.preflight import Preflight, preflight
from ..pipeline.prepare import prepare
from ..pipeline.reexport import ReexportRequest, prepare_reexport
from ..report.report import MergeReport, failure
from ..training.self_test import SelfTest, self_test
from .queue import REMEMBERED, Job, JobQueue, State
from .requests import Pictures, Prepared, Request, Result

STOPPED = "It was interrupted: {done} of {count} pairs are merged."
NOTHING_MERGED = "No pair could be merged. {output}: {sentence}"
NO_PREVIEW = "The merge's own picture was not drawn, so it is no preview."


class Service(JobQueue):
    """Everything that a front end asks of one host; one service a host, shared by all front ends.

    In the background (REST)::

        service = Service(host)
        job = service.submit(MergeRequest.pair(subject, style, "both"))  # ZipLoraError: it can't be done
        job.state, job.progress, job.history  # until job.ended
        job.report, job.error, job.result.pairs, job.result.pictures
        service.interrupt(job), service.finish(job)  # JobStateError: too late

    By a front end that waits for the host itself, such as a terminal::

        job = service.submit(request, background=False)
        with host.exclusive():
            service.run(job)  # never raises: job.state and job.error say how it ended

    Every job is in ``service.jobs()``, wherever it was begun, so each front end can show all of them:
    ``service.running()`` is the one that runs, ``service.get(id)`` the one of a page that was reloaded.
    What was merged is in ``service.recent``; lists of LoRAs are stale once ``service.written`` has grown.

    Args:
        host: where LoRAs are installed and jobs run.
        remembered: as in ``JobQueue``.

    Attributes:
        recent: the merges that were made last.
        timing: how long merges take here.
        written: number of LoRAs that were written since the start.
    """

    def __init__(self, host: Host, remembered: int = REMEMBERED) -> None:
        super().__init__(host, remembered)
        self.recent = RecentMerges(data_folder(host))
        self.timing = Timing(data_folder(host))
        self.written = 0

    def preflight(self, request: MergeRequest) -> Preflight:
        """What can be told of a merge before it is made: problems, layers, overlap, size, memory, seconds."""
        found = preflight(request, self.host)
        return replace(found, seconds=None if found.problems else self.timing.seconds(request, self.host))

    def self_test(self) -> SelfTest:
        """Whether the host's model can be merged against, by trying it: seconds, and nothing is written.

        Raises:
            HostError: a job runs or waits, for which the test would have to wait.
        """
        with self._alone("Start the self-test"):
            return self_test(self.host)

    def remove(self, name: str) -> MergeFiles:
        """Delete a merge with all that belongs to it, see ``library.merges.remove_merge``.

        Raises:
            HostError: a job runs or waits.
        """
        with self._alone("Delete the merge"):
            self.written += 1
            return remove_merge(self.host, name)

    def rename(self, name: str, output: str) -> MergeFiles:
        """Rename a merge with all that belongs to it, see ``library.merges.rename_merge``.

        Raises:
            HostError: a job runs or waits.
        """
        with self._alone("Rename the merge"):
            self.written += 1
            return rename_merge(self.host, name, output)

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """The host, while no job has it or waits for it."""
        if any(not job.ended for job in self.jobs()):
            raise HostError(f"A job is running or waiting. {what} when it has ended.")
        with self.host.exclusive():
            yield

    def prepare(self, request: Request) -> Prepared:
        """See ``JobQueue.prepare``."""
        if isinstance(request, MergeRequest):
            return prepare(request, self.host)
        if isinstance(request, ReexportRequest):
            return prepare_reexport(request, self.host)
        if isinstance(request, CompareRequest):
            return prepare_compare(request, self.host)
        if request.sheet and not isinstance(self.host, Draws):
            raise HostError(f"{NO_SHEET} Leave the sheet out.")
        matrix = prepare_matrix(request, self.host)
        require_ready(matrix)
        return matrix

    def perform(self, job: Job) -> tuple[State, str]:
        """See ``JobQueue.perform``."""
        if isinstance(job.prepared, PreparedMatrix):
            return self._matrix(job, job.prepared)
        if isinstance(job.prepared, PreparedComparison):
            return self._comparison(job, job.prepared)
        report = run(job.prepared, self.host, job.follow)
        request = job.request if isinstance(job.request, MergeRequest) else None
        job.result = Result(self._remember(request, report, job.prepared.request.card))
        return "done", ""

    def _remember(self, request: MergeRequest | None, report: MergeReport, card: bool) -> MergeReport:
        """What follows every LoRA that was written: the merge is remembered, the LoRA gets its card."""
        self.written += 1 + len(report.split)
        if request is not None:
            self.timing.note(request, report)
            self.recent.note(request)
        return with_card(report, self.host) if card else report

    def _matrix(self, job: Job, matrix: PreparedMatrix) -> tuple[State, str]:
        def follow(cell: Cell) -> None:
            job.result = Result(pairs=(*job.result.pairs, cell))

        def finish(request: MergeRequest, report: MergeReport) -> MergeReport:
            return self._remember(request, report, request.card)

        cells = run_matrix(matrix, self.host, job.follow, follow, finish)
        done = sum(cell.state == "done" for cell in cells)
        if self.host.interrupted():
            return "interrupted", STOPPED.format(done=done, count=len(cells))
        bad = next((cell for cell in cells if cell.state in ("failed", "refused")), None)
        if bad is not None and not done:
            return "failed", NOTHING_MERGED.format(output=bad.request.output, sentence=bad.sentence)
        if matrix.request.sheet:
            job.result = self._sheet(job, cells)
        return "done", ""

    def _sheet(self, job: Job, cells: Sequence[Cell]) -> Result:
        """The cells with their sheet, or the reason why there is none; what was merged stays in either case."""
        wanted = sum(cell.state in DRAWABLE for cell in cells)
        drawn: list[Sheet] = []
        problem = failure(lambda: drawn.append(draw_sheet(cells, self.host, on_event=job.follow)))
        if problem:
            pictures = Pictures(0, wanted, remarks=(f"The sheet was not drawn: {problem}",))
            return replace(job.result, pictures=pictures)
        sheet = drawn[0]
        pictures = Pictures(sheet.pictures, wanted, sheet.file, remarks=sheet.remarks)
        return replace(job.result, pictures=pictures, drawn=sheet)

    def _comparison(self, job: Job, comparison: PreparedComparison) -> tuple[State, str]:
        drawn = compare(comparison, self.host, job.follow)
        remarks = [drawn.stopped] if drawn.stopped else []
        preview = None
        if comparison.request.preview:
            preview, problem = self._preview(comparison.request.source, drawn)
            remarks += [problem] if problem else []
        pictures = Pictures(len(drawn.pictures), drawn.plan.count, drawn.file, preview, tuple(remarks))
        job.result = Result(pictures=pictures, drawn=drawn)
        return ("interrupted", drawn.stopped) if drawn.stopped and self.host.interrupted() else ("done", "")

    def _preview(self, merged: str, drawn: Comparison) -> tuple[Path | None, str]:
        """The picture that was made the preview, or why there is none."""
        best = drawn.best_preview()
        if best is None:
            return None, NO_PREVIEW
        try:
            return write_preview(merged, self.host, best), ""
        except ZipLoraError as error:
            return None, str(error)
