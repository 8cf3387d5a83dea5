"""Controller of the tab: from the values of its controls to requests, through the jobs' service, to HTML.

No gradio, no torch, no WebUI: ``tab.py`` and the panels lay out the controls and hand their values here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError, ZipLoraError
from ..jobs.queue import Job
from ..jobs.requests import Request
from ..jobs.service import Service
from ..library.card import write_preview
from ..library.merges import steerable, steerables
from ..pictures.compare import merge_prompts
from ..pictures.comparison import Comparison
from ..pipeline.matrix import prepare_matrix
from ..pipeline.reexport import ReexportRequest
from ..pipeline.scan import PATIENCE, scan
from . import curves, jobs, text
from .forms import (
    Values,
    both_chosen,
    matrix_request,
    merge_request,
    reexport_request,
    scan_request,
    suggested_name,
)
from .lora_list import LoraList
from .preflight import preflight_box

log = logging.getLogger(__name__)

CHOOSE_MERGE = "Choose a merged LoRA whose coefficients were saved."
NO_PICTURES = "There are no pictures to choose from. Press Compare first."
SHEET = "All pictures"


class TabController:
    """What the tab's events do; one for all pages that are open.

    Args:
        service: runs the jobs of every front end; the tab shows all of them.
        folder: for merges: the subfolder of the LoRA folder that suggested names begin with.
    """

    def __init__(self, service: Service, folder: str = "") -> None:
        self.service, self.host = service, service.host
        self.folder = f"{folder}/" if folder else ""
        self.loras = LoraList(service.host)

    # Jobs

    def submit(self, build: Callable[[Values], Request], given: Values) -> tuple[str, str]:
        """Queue what the values ask for.

        Returns:
            The job's id and an empty string, or an empty string and a box that says why not.
        """
        try:
            return self.service.submit(build(given)).id, ""
        except ZipLoraError as error:
            return "", text.error(str(error))
        except Exception as problem:
            log.exception("The request could not be checked")
            return "", text.unexpected(problem)

    def job(self, job_id: str) -> Job | None:
        """The job of an id; without an id the one that runs, or waits longest, wherever it was begun."""
        if job_id:
            return self.service.get(job_id)
        waiting = (job for job in self.service.jobs() if job.state == "queued" and job.background)
        return self.service.running() or next(waiting, None)

    def bar(self, job_id: str) -> str:
        """The progress bar of ``job(job_id)``; it also tells the page's script what there is to follow."""
        revision = f"{self.service.written} {max((job.finished for job in self.service.jobs()), default=0)}"
        return jobs.bar(self.job(job_id), job_id, revision)

    def curves(self, job_id: str) -> str:
        """The training curves of ``job(job_id)`` so far; empty before the second update."""
        job = self.job(job_id)
        return curves.chart(list(job.history)) if job else ""

    def outcome(self, job_id: str) -> jobs.Outcome | None:
        """How a job ended; None while it lasts or when none is asked for."""
        return jobs.outcome(self.service.get(job_id)) if job_id else None

    def interrupt(self, job_id: str) -> str:
        """Stop a job and throw its work away; one that still waits is taken off the queue."""
        return self._stop(job_id, self.service.interrupt)

    def finish(self, job_id: str) -> str:
        """Stop a job's optimisation and have it write what there is."""
        return self._stop(job_id, self.service.finish)

    def _stop(self, job_id: str, ask: Callable[[Job], None]) -> str:
        job = self.job(job_id)
        if job is None or job.ended:
            return text.notice("No merge is running.")
        try:
            ask(job)
        except ZipLoraError as error:
            return text.notice(str(error))
        return text.notice(job.stopping_words or job.error)

    # The form

    def output_name(self, subject: str | None, style: str | None) -> str:
        """A free name for the merge of the two."""
        name = suggested_name(subject, style, self.loras.names())
        return name and self.folder + name

    def tag(self, name: str) -> str:
        """What to write into a prompt to use a LoRA: its tag and, as on its card, its activation text."""
        return f"<lora:{name}:1> {self.loras.trigger(name)}".strip() if name else ""

    def preflight(self, given: Values) -> str:
        """A box with what is known of the merge that the values ask for, before it is made."""
        try:
            request = merge_request(given)
            return preflight_box(self.service.preflight(request), request.settings.method)
        except ZipLoraError as error:
            return text.error(str(error))
        except Exception as problem:
            log.exception("Pre-flight failed")
            return text.unexpected(problem)

    def preflight_pair(self, given: Values) -> str:
        """``preflight`` once a subject and a style are chosen, an empty string before.

        Empty also when a job was begun meanwhile: the box would come after it.
        """
        before = {job.id for job in self.service.jobs()}
        box = self.preflight(given) if both_chosen(given) else ""
        return box if before.issuperset(job.id for job in self.service.jobs()) else ""

    # Finished merges

    def merges(self) -> list[str]:
        """The installed merges whose coefficients were saved."""
        return steerables(self.host)

    def reexport_request(self, given: Values) -> ReexportRequest:
        """The re-export that the panel's values ask for."""
        name = str(given["adjust_source"] or "")
        if not name:
            raise ConfigError("No merged LoRA is chosen. Choose the one to export again.")
        return reexport_request(given, steerable(self.host, name))

    def rename(self, name: str, output: str) -> tuple[str, str]:
        """Rename a merge with all that belongs to it; its name then, and a box that says so or why not."""
        try:
            files = self.service.rename(name, output.strip())
        except ZipLoraError as error:
            return name, text.error(str(error))
        return files.lora.stem, text.gone(f"{name} is {files.lora.stem} now.", name, files.lora.stem)

    def remove(self, name: str, _: str) -> tuple[str, str]:
        """Delete a merge with all that belongs to it; "", and a box that says so, or its name and why not."""
        try:
            files = self.service.remove(name)
        except ZipLoraError as error:
            return name, text.error(str(error))
        words = f"Deleted {', '.join(path.name for path in files.written)}."
        words += f" {', '.join(path.name for path in files.own)} is yours and stays." if files.own else ""
        return "", text.gone(words, name)

    def self_test(self) -> str:
        """The self-test's paragraph, or why it can't be made now."""
        try:
            return self.service.self_test().paragraph
        except ZipLoraError as error:
            return str(error)

    # Matrix and comparisons

    def matrix_plan(self, given: Values) -> str:
        """A box with every pair of a matrix and what speaks against it."""
        try:
            cells = prepare_matrix(matrix_request(given), self.host).cells
        except ZipLoraError as error:
            return text.error(str(error))
        ready = sum(cell.state == "ready" for cell in cells)
        return (
            f'<div class="ziplora-box" role="status" data-matrix="plan"><p>{ready} of {len(cells)} pairs can be '
            f"merged.</p>{jobs.pairs(cells)}</div>"
        )

    def matrix_scan(self, given: Values) -> str:
        """A box with the pairs of a matrix, those that go together best first."""
        try:
            found = scan(scan_request(given), self.host, PATIENCE)
        except ZipLoraError as error:
            return text.error(str(error))
        more = f" {found.pending} pairs are left: press again to go on." if found.pending else ""
        return (
            f'<div class="ziplora-box" role="status" data-matrix="scan"><p>The pairs that disturb each other '
            f"least come first.{more}</p>{jobs.scanned(found.pairs)}</div>"
        )

    def compare_prompts(self, merge: str | None) -> str:
        """The prompts that a merge is best compared with, one a line; "" where none are known."""
        try:
            return "\n".join(merge_prompts(self.host, merge)) if merge else ""
        except ZipLoraError:
            return ""

    def gallery(self, job_id: str) -> list[tuple[Any, str]]:
        """The sheet and each picture of a comparison with its caption; empty when they are not kept."""
        drawn = self._comparison(job_id)
        if drawn is None:
            return []
        return [(drawn.grid, SHEET), *[(picture.image, caption) for picture, caption in drawn.gallery()]]

    def use_as_preview(self, job_id: str, chosen: int, replace: bool) -> str:
        """Make a picture of a comparison the preview of its merge's card.

        Args:
            job_id: of the comparison.
            chosen: number of the picture in ``gallery``; below 0 the merge's own best one.
            replace: also a picture of the user's.

        Returns:
            A box that says what became of it.
        """
        done = self._comparison(job_id)
        if done is None or chosen > len(done.pictures):
            return text.error(NO_PICTURES)
        if chosen == 0:
            return text.error("The sheet is too large for a card. Choose one of the pictures after it.")
        drawn = done.best_preview() if chosen < 0 else done.gallery()[chosen - 1][0]
        if drawn is None:
            return text.error("The merge's own picture was not drawn. Choose another one.")
        try:
            file = write_preview(done.plan.name, self.host, drawn, replace)
        except ZipLoraError as error:
            return text.error(str(error))
        return text.notice(f"{file.name} is now the preview of {done.plan.name}.", "preview")

    def _comparison(self, job_id: str) -> Comparison | None:
        job = self.service.get(job_id)
        return job.result.drawn if job and isinstance(job.result.drawn, Comparison) else None
