"""What a background job may be asked for, and what it has made in the end."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import MergeRequest
from ..errors import HostError, ZipLoraError
from ..hosts import Draws, Host, Progress
from ..library.card import with_card, write_preview
from ..pictures.compare import check_compare, compare
from ..pictures.comparison import CompareRequest, Comparison
from ..pictures.matrix_sheet import DRAWABLE, Sheet, draw_sheet
from ..pipeline.matrix import Cell, MatrixRequest, check_matrix, run_matrix
from ..pipeline.merge import check, run
from ..pipeline.reexport import ReexportRequest, check_reexport, reexport
from ..report.report import MergeReport

log = logging.getLogger(__name__)

Ending = Literal["done", "failed", "interrupted"]
NO_SHEET = "A sheet can't be drawn here: this host does not draw. Leave the sheet out."
STOPPED = "It was interrupted: {done} of {count} pairs are merged."
NOTHING_MERGED = "No pair could be merged. {output}: {sentence}"


@dataclass(frozen=True)
class MatrixTask:
    """Merge every subject with every style and, where ``sheet`` says so, draw all of them on one sheet."""

    matrix: MatrixRequest
    sheet: bool = False


@dataclass(frozen=True)
class CompareTask:
    """Draw a comparison; ``preview`` makes the merge's picture that of its card, where the user has none."""

    comparison: CompareRequest
    preview: bool = False


Request = MergeRequest | ReexportRequest | MatrixTask | CompareTask


@dataclass(frozen=True)
class Pictures:
    """What was drawn.

    Attributes:
        drawn: pictures on the sheet.
        wanted: pictures that were asked for.
        file: of the sheet; None where the host saves none.
        preview: the picture that was given to the merge's card, if any.
        remarks: why anything is missing, as sentences.
    """

    drawn: int
    wanted: int
    file: Path | None = None
    preview: Path | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a job has made.

    Attributes:
        report: of a merge or a re-export.
        pairs: of a matrix, those that have ended.
        pictures: of a comparison, or of a matrix's sheet.
    """

    report: MergeReport | None = None
    pairs: tuple[Cell, ...] = ()
    pictures: Pictures | None = None

    def worded(self, word: Callable[[str], str]) -> Result:
        """With every sentence as ``word`` puts it."""
        pictures = self.pictures
        if pictures is not None:
            pictures = dataclasses.replace(pictures, remarks=tuple(map(word, pictures.remarks)))
        pairs = tuple(
            dataclasses.replace(cell, sentence=word(cell.sentence), report=_worded(cell.report, word))
            for cell in self.pairs
        )
        return Result(_worded(self.report, word), pairs, pictures)


def _worded(report: MergeReport | None, word: Callable[[str], str]) -> MergeReport | None:
    if report is None:
        return None
    return dataclasses.replace(report, warnings=tuple(map(word, report.warnings)))


@dataclass(frozen=True)
class Listener:
    """Who is told while a job runs.

    Attributes:
        progress: of every step.
        result: of what there is so far, each time that there is more.
        merged: of every merge that is written.
    """

    progress: Callable[[Progress], None]
    result: Callable[[Result], None]
    merged: Callable[[MergeRequest, MergeReport], None]


def names_of(request: Request) -> tuple[str, ...]:
    """The names of the LoRAs that a request will write."""
    if isinstance(request, MatrixTask):
        return tuple(pair.output for pair in request.matrix.pairs())
    return () if isinstance(request, CompareTask) else (request.output,)


def replaces(request: Request) -> bool:
    """Whether names that are taken by then do not keep it from being carried out.

    A matrix replaces them, or leaves their pairs out.
    """
    return isinstance(request, (MatrixTask, CompareTask)) or request.overwrite


def check_request(request: Request, host: Host) -> None:
    """Refuse what ``carry_out`` would refuse: call it before queueing.

    Raises:
        ZipLoraError: the same errors, in the same words.
    """
    if isinstance(request, MatrixTask):
        if request.sheet and not isinstance(host, Draws):
            raise HostError(NO_SHEET)
        check_matrix(request.matrix, host)
    elif isinstance(request, CompareTask):
        check_compare(request.comparison, host)
    elif isinstance(request, ReexportRequest):
        check_reexport(request, host)
    else:
        check(request, host)


def carry_out(request: Request, host: Host, listener: Listener) -> tuple[Ending, Result, str]:
    """Do what a request asks for; the caller holds the host's lock.

    Returns:
        How it ended, what there is, and a sentence where it did not end as ``done``.

    Raises:
        ZipLoraError: there is nothing.
    """
    if isinstance(request, MatrixTask):
        return _matrix(request, host, listener)
    if isinstance(request, CompareTask):
        return _comparison(request, host, listener)
    if isinstance(request, ReexportRequest):
        return "done", Result(with_card(reexport(request, host, listener.progress), host)), ""
    report = run(request, host, listener.progress)
    listener.merged(request, report)
    return "done", Result(with_card(report, host)), ""


def _matrix(task: MatrixTask, host: Host, listener: Listener) -> tuple[Ending, Result, str]:
    ended: list[Cell] = []

    def follow(cell: Cell) -> None:
        ended.append(cell)
        if cell.report is not None:
            listener.merged(cell.request, cell.report)
        listener.result(Result(pairs=tuple(ended)))

    cells = run_matrix(task.matrix, host, listener.progress, follow)
    done = sum(cell.state == "done" for cell in cells)
    result = Result(pairs=tuple(cells))
    if host.interrupted():
        return "interrupted", result, STOPPED.format(done=done, count=len(cells))
    bad = next((cell for cell in cells if cell.state in ("failed", "refused")), None)
    if bad is not None and not done:
        words = NOTHING_MERGED.format(output=bad.request.output, sentence=bad.sentence)
        return "failed", result, words
    if task.sheet:
        result = dataclasses.replace(result, pictures=_sheet(cells, host, listener))
    return "done", result, ""


def _sheet(cells: Sequence[Cell], host: Host, listener: Listener) -> Pictures:
    """The sheet, or why there is none; what was merged stays in either case."""
    wanted = sum(cell.state in DRAWABLE for cell in cells)
    sheet: Sheet | None = None
    try:
        sheet = draw_sheet(cells, host, on_event=listener.progress)
    except ZipLoraError as error:
        reason = str(error)
    except Exception as problem:
        log.exception("The sheet could not be drawn")
        reason = f"{type(problem).__name__}, the server's log has the details."
    else:
        reason = "no merge is there."
    if sheet is None:
        return Pictures(0, wanted, remarks=(f"The sheet was not drawn: {reason}",))
    return Pictures(sheet.pictures, wanted, sheet.file, remarks=sheet.remarks)


def _comparison(task: CompareTask, host: Host, listener: Listener) -> tuple[Ending, Result, str]:
    drawn = compare(task.comparison, host, listener.progress)
    remarks = [drawn.stopped] if drawn.stopped else []
    preview = None
    if task.preview:
        preview, problem = _preview(drawn, host)
        remarks += [problem] if problem else []
    pictures = Pictures(len(drawn.pictures), drawn.plan.count, drawn.file, preview, tuple(remarks))
    if drawn.stopped and host.interrupted():
        return "interrupted", Result(pictures=pictures), drawn.stopped
    return "done", Result(pictures=pictures), ""


def _preview(drawn: Comparison, host: Host) -> tuple[Path | None, str]:
    """The picture that was made the preview, or why there is none."""
    best = drawn.best_preview()
    if best is None:
        return None, "The merge's own picture was not drawn, so it is no preview."
    try:
        return write_preview(drawn.plan.name, host, best), ""
    except ZipLoraError as error:
        return None, str(error)
