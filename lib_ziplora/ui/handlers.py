"""From the tab's values to a ``MergeRequest``, through ``job.run``, to text for people.

No gradio, no torch, no WebUI: ``tab.py`` lays out the controls and hands their values here.
"""

from __future__ import annotations

import logging
import re
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import job
from ..config import LoraInput, MergeRequest, setting_fields, settings_from
from ..errors import ConfigError, Interrupted, ZipLoraError
from ..hosts import Host, InstalledLora, Progress
from ..job import CatalogEntry, MergeReport
from . import text

log = logging.getLogger(__name__)

REQUEST_FIELDS = (
    "subject",
    "subject_prompt",
    "subject_weight",
    "style",
    "style_prompt",
    "style_weight",
    "output",
    "overwrite",
)
FORGOTTEN = (
    "The merge that ran here is not known any more: the UI was reloaded or the program restarted since. "
    "If its LoRA is not in the list, merge again."
)
REMEMBERED_TASKS = 16
LONGEST_STEM = 160
"""Bytes of a suggested name, so that a number and an extension still fit."""


def value_names() -> tuple[str, ...]:
    """The names of the values that the tab sends for a merge, in their order."""
    return REQUEST_FIELDS + tuple(setting_fields())


def request_from(values: Sequence[Any]) -> MergeRequest:
    """The request that the tab's values, in the order of ``value_names()``, ask for.

    Raises:
        ConfigError: no LoRA or no name is chosen, or a setting is outside its range.
    """
    given = dict(zip(value_names(), values, strict=True))
    settings = {name: given[name] for name in setting_fields() if given[name] is not None}
    subject, style = _lora_input("subject", given), _lora_input("style", given)
    output = str(given["output"] or "").strip()
    if not output:
        raise ConfigError("The merged LoRA has no name. Type one into Output name.")
    return MergeRequest(
        subject=subject,
        style=style,
        output=output,
        overwrite=bool(given["overwrite"]),
        settings=settings_from(settings),
    )


def _lora_input(side: str, given: Mapping[str, Any]) -> LoraInput:
    name, weight = given[side], given[f"{side}_weight"]
    if not name:
        raise ConfigError(f"No {side} is chosen. Choose a LoRA as {side}.")
    return LoraInput(str(name), str(given[f"{side}_prompt"] or ""), 1.0 if weight is None else float(weight))


def suggested_name(subject: str | None, style: str | None, taken: Sequence[str]) -> str:
    """A free name for the merge of two LoRAs: ``<subject>_x_<style>``, numbered if need be.

    Only characters that file systems and ``<lora:name:1>`` pass on unharmed are kept.
    """
    if not subject or not style:
        return ""
    stem = re.sub(r"[^\w .+-]+", "_", f"{subject}_x_{style}")
    stem = stem.encode()[:LONGEST_STEM].decode(errors="ignore").strip(" .")
    used = {name.casefold() for name in taken}
    number, name = 2, stem
    while name.casefold() in used:
        number, name = number + 1, f"{stem}_{number}"
    return name


@dataclass(frozen=True)
class Engine:
    """What the tab asks of ``job.py``; a test puts its own functions here."""

    check: Callable[[MergeRequest, Host], None] = job.check
    run: Callable[[MergeRequest, Host, Callable[[Progress], None]], MergeReport] = job.run
    catalog: Callable[[Host], Sequence[CatalogEntry]] = job.catalog
    prompt_for: Callable[[Host, str], str] = job.prompt_for


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
    """One press of Merge, from its ticket to its outcome."""

    state: text.TaskState = "waiting"
    cancelled: bool = False
    stopping: str = ""
    progress: Progress | None = None
    outcome: Outcome | None = None


class Desk:
    """The merges of one host: prepared, queued, running, finished.

    A task belongs to a ticket in the WebUI's own form ``task(…)``, so its progress can be
    followed, interrupted and its outcome fetched again after a page reload.
    """

    def __init__(self, host: Host, engine: Engine | None = None) -> None:
        self.host = host
        self.engine = engine or Engine()
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self._entries: dict[str, CatalogEntry] = {}
        self._lock = threading.Lock()

    # Pickers

    def installed(self) -> list[str]:
        """Every installed LoRA's name, without reading a file."""
        return [lora.name for lora in self.host.loras()]

    def refresh(self) -> list[str]:
        """The names for the pickers, read anew: usable LoRAs first, the others after them."""
        entries = list(self.engine.catalog(self.host))
        self._entries = {entry.name: entry for entry in entries}
        return [entry.name for entry in sorted(entries, key=lambda entry: not entry.usable)]

    def facts(self, name: str | None) -> str:
        """The line under a picker."""
        if not name:
            return text.facts(None, "", "")
        lora = self._lora(name)
        activation = str(lora.user_metadata.get("activation text") or "") if lora else ""
        return text.facts(self._entry(name), activation, name)

    def prompt(self, name: str | None) -> str:
        """The prompt that a LoRA's metadata suggests, or an empty string."""
        entry = self._entry(name) if name else None
        return self.engine.prompt_for(self.host, entry.name) if entry and entry.usable else ""

    def output_name(self, subject: str | None, style: str | None) -> str:
        """A free name for the merge of the two."""
        return suggested_name(subject, style, self.installed())

    def _entry(self, name: str) -> CatalogEntry | None:
        if name not in self._entries:
            self.refresh()
        return self._entries.get(name)

    def _lora(self, name: str) -> InstalledLora | None:
        return next((lora for lora in self.host.loras() if lora.name == name), None)

    # Merging

    def prepare(self, values: Sequence[Any]) -> tuple[str, str]:
        """Check a request before it waits for the host's queue.

        Returns:
            A ticket and an empty string, or an empty string and a box that says why not.
        """
        try:
            self.engine.check(request_from(values), self.host)
        except ZipLoraError as error:
            return "", text.error(str(error))
        except Exception as problem:
            log.exception("The request could not be checked")
            return "", text.unexpected(problem)
        ticket = f"task(ziplora-{uuid.uuid4().hex[:12]})"
        self._open(ticket)
        return ticket, ""

    def work(self, ticket: str, values: Sequence[Any]) -> Outcome:
        """Run a merge; the caller holds the host's lock. Never raises."""
        task = self._tasks.get(ticket) or self._open(ticket)
        if task.cancelled:
            outcome = Outcome(
                text.notice("The merge was taken off the queue; nothing was written.", "interrupted")
            )
        else:
            task.state = "running"
            outcome = self._run(task, values)
        task.outcome, task.state = outcome, "finished"
        return outcome

    def _run(self, task: Task, values: Sequence[Any]) -> Outcome:
        def follow(progress: Progress) -> None:
            task.progress = progress

        try:
            report = self.engine.run(request_from(values), self.host, follow)
        except Interrupted as stop:
            return Outcome(text.notice(str(stop), "interrupted"))
        except ZipLoraError as error:
            return Outcome(text.error(str(error)))
        except Exception as problem:
            log.exception("The merge failed")
            return Outcome(text.unexpected(problem))
        return Outcome(text.result(report), report.name)

    # Following, stopping, fetching

    def bar(self, ticket: str) -> str:
        """The progress bar of a task."""
        task = self._tasks.get(ticket)
        return text.bar(task.state, task.progress, task.stopping) if task else text.bar("unknown", None)

    def outcome(self, ticket: str) -> Outcome | None:
        """How a task ended, or None while it lasts; a notice when nobody remembers it."""
        task = self._tasks.get(ticket)
        return task.outcome if task else Outcome(text.notice(FORGOTTEN, "forgotten"))

    def interrupt(self, ticket: str) -> str:
        """Stop a task and throw its work away; one that still waits is taken off the queue.

        Returns:
            A sentence for the user.
        """
        return self._stop(ticket, self.host.interrupt, "Stopping, nothing will be written")

    def finish_now(self, ticket: str) -> str:
        """Stop a task's optimisation and have it write what there is."""
        return self._stop(ticket, self.host.finish_now, "Finishing, the file will be written")

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
