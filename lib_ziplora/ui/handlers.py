"""What the tab's controls do: from their values to a request, through ``job``, to text for people.

No gradio, no torch, no WebUI: ``tab.py`` and the panels lay out the controls and hand their values here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import MergeRequest
from ..errors import ConfigError, ZipLoraError
from ..hosts import Host, Progress
from ..library.card import with_card
from ..library.catalog import entries_of
from ..library.json_store import data_folder
from ..library.merges import Steerable, steerable, steerables
from ..library.recent import RecentMerges
from ..library.timing import Timing
from ..pipeline.merge import run
from ..pipeline.preflight import Preflight, preflight
from ..pipeline.prepare import prepare
from ..pipeline.reexport import ReexportRequest, prepare_reexport
from ..report.report import MergeReport
from . import text
from .forms import STRENGTHS, both_chosen, free_name, reexport_from, request_from, suggested_name
from .shelf import Judged, Shelf
from .tasks import Follow, Outcome, Tickets
from .verdict import verdict

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """What the tab asks of ``job``; a test puts its own functions here."""

    check: Callable[[MergeRequest, Host], object] = prepare
    run: Callable[[MergeRequest, Host, Callable[[Progress], None]], MergeReport] = run
    judged: Judged = entries_of
    preflight: Callable[[MergeRequest, Host], Preflight] = preflight
    check_reexport: Callable[[ReexportRequest, Host], object] = prepare_reexport
    reexport: Callable[..., MergeReport] = run
    with_card: Callable[[MergeReport, Host], MergeReport] = with_card
    steerables: Callable[[Host], Sequence[str]] = steerables
    steerable: Callable[[Host, str], Steerable] = steerable


@dataclass(frozen=True)
class Steering:
    """What the steering panel shows of a merge: a line about it, a label for each slider in use, its
    rank and precision, and a free name. No labels: it can't be steered, and the line says why."""

    about: str
    labels: tuple[str, ...] = ()
    rank: str = ""
    precision: str = ""
    output: str = ""


class Desk(Tickets):
    """The tab's memory of one host: its LoRAs, and the tasks of its visitors."""

    def __init__(self, host: Host, engine: Engine | None = None) -> None:
        super().__init__(host)
        self.engine = engine or Engine()
        self.shelf = Shelf(host, self.engine.judged)
        self.recent = RecentMerges(data_folder(host))
        self._pace = Timing(data_folder(host))

    # Pickers

    def installed(self) -> list[str]:
        """Every installed LoRA's name, without reading a file."""
        return [lora.name for lora in self.host.loras()]

    def output_name(self, subject: str | None, style: str | None) -> str:
        """A free name for the merge of the two."""
        return suggested_name(subject, style, self.shelf.names())

    # Merging

    def prepare(self, values: Sequence[Any]) -> tuple[str, str]:
        """``admit`` the merge that the tab's values ask for."""
        return self.admit(lambda: self.engine.check(request_from(values), self.host))

    def work(self, ticket: str, values: Sequence[Any]) -> Outcome:
        """``perform`` the merge that the tab's values ask for."""

        def run(follow: Follow) -> MergeReport:
            request = request_from(values)
            report = self.engine.run(request, self.host, follow)
            self.note(request, report)
            self.shelf.forget()
            return self.engine.with_card(report, self.host)

        return self.perform(ticket, run)

    def note(self, request: MergeRequest, report: MergeReport) -> None:
        """Remember a merge that was made: how long it took, and of what it was made."""
        self._pace.note(request, report)
        self.recent.note(request)

    def foresee(self, values: Sequence[Any]) -> str:
        """A box with what can be told of the merge that the tab's values ask for, before it is made."""
        try:
            request = request_from(values)
            found = self.engine.preflight(request, self.host)
            seconds = self._pace.seconds(request, self.host)
        except ZipLoraError as error:
            return text.error(str(error))
        except Exception as problem:
            log.exception("The merge could not be looked at")
            return text.unexpected(problem)
        return verdict(found, seconds, request.settings.method)

    def foresee_pair(self, values: Sequence[Any]) -> str:
        """``foresee`` once a subject and a style are chosen, an empty string before."""
        return self.foresee(values) if both_chosen(values) else ""

    # Steering

    def steerables(self) -> list[str]:
        """The installed merges that can be exported again."""
        return list(self.engine.steerables(self.host))

    def steering(self, name: str | None) -> Steering:
        """What to show of a merge that was picked to be steered."""
        if not name:
            return Steering(text.steering(None))
        try:
            merge = self.engine.steerable(self.host, name)
        except ZipLoraError as error:
            return Steering(text.error(str(error)))
        sliders = tuple(
            f"Strength of {lora} ({label})" for lora, label in zip(merge.loras, merge.labels, strict=True)
        )
        output = free_name(f"{merge.name}_steered", self.installed())
        settings = merge.settings
        about = text.steering(merge, STRENGTHS)
        return Steering(about, sliders[:STRENGTHS], settings.rank, settings.precision, output)

    def prepare_reexport(self, values: Sequence[Any]) -> tuple[str, str]:
        """``admit`` the re-export that the steering panel's values ask for."""
        return self.admit(lambda: self.engine.check_reexport(self._reexport(values), self.host))

    def work_reexport(self, ticket: str, values: Sequence[Any]) -> Outcome:
        """``perform`` the re-export that the steering panel's values ask for."""

        def run(follow: Follow) -> MergeReport:
            report = self.engine.reexport(self._reexport(values), self.host, follow)
            return self.engine.with_card(report, self.host)

        return self.perform(ticket, run)

    def _reexport(self, values: Sequence[Any]) -> ReexportRequest:
        name = str(values[0] or "")
        if not name:
            raise ConfigError("No merged LoRA is chosen. Choose the one to export again.")
        return reexport_from(values, self.engine.steerable(self.host, name))
