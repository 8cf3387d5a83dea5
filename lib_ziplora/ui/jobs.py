"""Jobs of the queue as HTML: how far one is, its curves, and how it ended."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..jobs.queue import Job
from ..jobs.requests import Pictures
from ..pictures.comparison import CompareRequest
from ..pictures.matrix_sheet import Sheet
from ..pipeline.matrix import Cell
from ..pipeline.scan import ScannedPair
from ..plots import counted, number
from ..report.document import FIGURE_HELP, figures
from ..report.report import MergeReport
from ..report.sentences import verdict
from . import text

if TYPE_CHECKING:
    from PIL.Image import Image

FORGOTTEN = (
    "The merge that ran here is not known any more: the UI was reloaded or the program restarted since. "
    "If its LoRA is not in the list, merge again."
)
CELL_STATES = {
    "ready": "can be merged",
    "exists": "exists, left out",
    "refused": "can't be merged",
    "done": "done",
    "failed": "failed",
    "interrupted": "interrupted",
    "left": "not begun",
}
BAD = ("refused", "failed")
SHEET_WIDTH, QUALITY = 1600, 85


@dataclass(frozen=True)
class Outcome:
    """How a job ended: a box to show, the name of the element for it, and the merge that is there now, if any."""

    html: str
    name: str = ""
    place: str = "result"


def bar(job: Job | None, job_id: str = "", revision: str = "") -> str:
    """The progress bar: stage and step, percent, time left, and this step's numbers; hidden unless a job is alive.

    Args:
        job: the one to show; None when none is alive or nobody remembers it.
        job_id: of the job that was asked for, if one was.
        revision: changes whenever a job ends.
    """
    state = job.state if job else "unknown" if job_id else "idle"
    data = f'class="ziplora-bar" data-job="{escape(job.id if job else job_id)}" data-state="{state}"'
    data += f' data-revision="{escape(revision)}" data-kind="{type(job.request).__name__ if job else ""}"'
    if job is None or job.ended:
        return f"<div {data} hidden></div>"
    percent, words, metrics = 0.0, "Queued" if job.state == "queued" else "Starting", ""
    progress, stopping = job.progress, job.stopping_words.rstrip(".")
    if progress is not None:
        percent = 100 * min(1.0, progress.step / max(1, progress.total))
        parts = [progress.text or progress.stage.capitalize(), f"{percent:.0f} %"]
        if progress.seconds_left is not None and not stopping:
            parts.append(f"about {text.duration(progress.seconds_left)} left")
        words = " · ".join(parts)
        metrics = " · ".join(
            f"{name.replace('_', ' ')} {number(value)}" for name, value in progress.metrics.items()
        )
    if stopping:
        words = f"{stopping} · {words}"
    return (
        f'<div {data} role="progressbar" aria-label="Progress of the merge" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent:.0f}">'
        f'<div class="ziplora-bar-track"><div class="ziplora-bar-fill" style="width:{percent:.1f}%"></div></div>'
        f'<div class="ziplora-bar-text">{escape(words)}</div>'
        f'<div class="ziplora-bar-metrics">{escape(metrics)}</div></div>'
    )


def outcome(job: Job | None) -> Outcome | None:
    """How a job ended; None while it lasts, and a notice when nobody remembers it."""
    if job is None:
        return Outcome(text.notice(FORGOTTEN, "forgotten"))
    if not job.ended:
        return None
    result, place = job.result, "result"
    if isinstance(job.request, CompareRequest):
        place = "drawn_note" if job.request.brief else "compare_result"
    if result.pairs:
        return Outcome(_matrix(job))
    if isinstance(job.request, CompareRequest) and result.pictures:
        return Outcome(_comparison(job, job.request.source, result.pictures), job.request.source, place)
    if result.report and job.state == "done":
        return Outcome(merged(result.report), result.report.name)
    box = text.notice(job.error, "interrupted") if job.state == "interrupted" else text.error(job.error)
    return Outcome(box, place=place)


def merged(report: MergeReport) -> str:
    """What was written, how well it keeps the LoRAs, its key figures and its warnings."""
    file, names = Path(report.output), ", ".join(report.report_files)
    early = " Optimisation was stopped early." if report.learnt.stopped_early else ""
    beside = f'<p class="ziplora-path">Report: {escape(names)}</p>' if names else ""
    return (
        '<div class="ziplora-box ziplora-done" role="status" data-outcome="done">'
        f"<p>Wrote <b>{escape(file.name)}</b> in {escape(text.duration(report.seconds))}.{early}</p>"
        f'<p class="ziplora-verdict">{escape(verdict(report))}</p>'
        f'<p class="ziplora-path">{escape(str(file.parent))}</p>{beside}'
        f"{text.listed(report.warnings, 'ziplora-warnings')}{text.table(figures(report), FIGURE_HELP)}</div>"
    )


def _comparison(job: Job, name: str, pictures: Pictures) -> str:
    """What was drawn, where it is, and why anything is missing."""
    words = f"Drew {pictures.drawn} of {pictures.wanted} pictures of <b>{escape(name)}</b>"
    words += f" in {escape(text.duration(job.finished - job.started))}."
    if pictures.preview:
        words += f" The merge's picture is its preview, {escape(pictures.preview.name)}."
    complete = job.state == "done" and pictures.drawn == pictures.wanted
    kind, style = ("done", " ziplora-done") if complete else ("interrupted", "")
    return (
        f'<div class="ziplora-box{style}" role="status" data-outcome="{kind}"><p>{words}</p>'
        f"{_path(pictures.file)}{text.listed(pictures.remarks, 'ziplora-warnings')}</div>"
    )


def _matrix(job: Job) -> str:
    """How every pair has ended, and the sheet."""
    cells = job.result.pairs
    done = sum(cell.state == "done" for cell in cells)
    failed = sum(cell.state in BAD for cell in cells)
    state = "done" if done else "error" if failed else "interrupted"
    kind = "ziplora-done" if done and not failed else "ziplora-error" if failed and not done else ""
    seconds = sum(cell.seconds for cell in cells)
    return (
        f'<div class="ziplora-box {kind}" role="status" data-outcome="{state}" data-matrix="result">'
        f"<p><b>{done} of {len(cells)} pairs merged</b> in {escape(text.duration(seconds))}.</p>"
        f"{pairs(cells)}{_sheet(job)}</div>"
    )


def pairs(cells: Sequence[Cell]) -> str:
    """A row for every pair of a matrix: its LoRAs, its name, its state, and why."""
    rows = "".join(
        f'<tr data-state="{cell.state}"><td>{_name(cell.subject)}</td><td>{_name(cell.style)}</td>'
        f"<td>{_name(cell.request.output)}</td>"
        f"<td{' class=ziplora-bad' if cell.state in BAD else ''}>{_state(cell)}</td></tr>"
        for cell in cells
    )
    return _pairs_table(("subject", "style", "name", "result"), rows)


def scanned(found: Sequence[ScannedPair]) -> str:
    """A row for every pair of a scan: its LoRAs, their overlap in multiples of chance, and what it means."""
    rows = "".join(
        f"<tr><td>{_name(pair.subject)}</td><td>{_name(pair.style)}</td>"
        f"<td>{'' if pair.overlap is None else f'{pair.ratio:.1f} × chance'}</td><td>{escape(pair.advice)}</td></tr>"
        for pair in found
    )
    return _pairs_table(("subject", "style", "overlap", "advice"), rows)


def _pairs_table(names: Sequence[str], rows: str) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<div class="ziplora-pairs"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _name(name: str) -> str:
    """A name whose lines break between its parts."""
    return escape(name).replace("_", "_<wbr>")


def _state(cell: Cell) -> str:
    words = CELL_STATES[cell.state]
    if cell.state == "done":
        words += f", {text.duration(cell.seconds)}"
    elif cell.sentence and cell.state != "exists":
        words += f": {cell.sentence}"
    return escape(words) + text.listed(cell.report.warnings if cell.report else (), "ziplora-warnings")


def _sheet(job: Job) -> str:
    pictures, sheet = job.result.pictures, job.result.drawn
    remarks = text.listed(pictures.remarks if pictures else (), "ziplora-warnings")
    if not isinstance(sheet, Sheet):
        return remarks
    words = f"Pictures of {counted(sheet.pictures, 'merge')}: a row for each subject, a column for each style"
    image = f'<img class="ziplora-sheet" src="{_small(sheet.image)}" alt="{escape(words)}">'
    return f"{remarks}{image}{_path(sheet.file)}"


def _small(sheet: Image) -> str:
    """A picture as a ``data:`` URL that is not too large for a page."""
    image, buffer = sheet.copy(), io.BytesIO()
    image.thumbnail((SHEET_WIDTH, 4 * SHEET_WIDTH))
    image.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _path(file: Path | None) -> str:
    return f'<p class="ziplora-path">{escape(str(file))}</p>' if file else ""
