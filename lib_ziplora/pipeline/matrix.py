"""Matrix: every subject merged with every style, one after the other."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..config import LoraInput, MergeRequest, MergeSettings, card_option, report_option
from ..errors import ConfigError, Interrupted, OutputError, ZipLoraError
from ..hosts import Host, Progress
from ..lora.io.write import EXTENSION
from ..names import lora_name
from ..options import option
from ..progress import SubProgress, units_of
from ..report.report import MergeReport
from .merge import run
from .prepare import PreparedMerge, prepare

log = logging.getLogger(__name__)

Finish = Callable[[MergeRequest, MergeReport], MergeReport]
State = Literal["ready", "exists", "refused", "done", "failed", "interrupted", "left"]
SUBJECT, STYLE = "{subject}", "{style}"
NAMES = f"{SUBJECT}_{STYLE}"
LARGEST = 400
"""Pairs that one matrix may have."""
UNEXPECTED = "It failed unexpectedly ({kind}); the console has the details."
STOPPED = "It was not begun: the matrix was stopped before."
EXISTS = "Its file exists already and is kept."
MISSING_MERGE = "It is not merged yet."


@dataclass(frozen=True)
class MatrixRequest:
    """Which subjects and styles are to be merged, each with each; the same object for every front end."""

    subjects: tuple[LoraInput, ...] = option(
        MISSING, "Subjects", "LoRAs of subjects, each once", known={"role": "subject"}, flag="-"
    )
    styles: tuple[LoraInput, ...] = option(
        MISSING, "Styles", "LoRAs of styles, each once", known={"role": "style"}, flag="-"
    )
    names: str = option(
        NAMES,
        "Names of the merges",
        "Names of the merged LoRAs; {subject} and {style} stand for the LoRAs' names",
        flag="-o --output",
    )
    overwrite: bool = option(
        False, "Overwrite", "Replace merges that exist; otherwise they are left out", flag="--force"
    )
    settings: MergeSettings = option(
        MergeSettings, "Settings", "Of every merge; without a combined prompt each pair gets one of its own"
    )
    report: bool = report_option()
    card: bool = card_option()
    sheet: bool = option(False, "Sheet", "Draw a sheet with a picture of every merge", flag="-")
    shard: str = option(
        "", "Shard", "I/N merges only every Nth pair, from the Ith on: one share of N for as many machines"
    )
    collect: bool = option(False, "Collect", "Merge nothing: tell which merges exist, for a sheet of them")

    def __post_init__(self) -> None:
        _share(self.shard)
        if self.shard and (self.collect or self.sheet):
            raise ConfigError(
                "A shard makes only its own merges, and no sheet. When all shards have ended, collect draws it."
            )
        for role, loras, sign in (("subject", self.subjects, SUBJECT), ("style", self.styles, STYLE)):
            if not loras:
                raise ConfigError(f"No {role} is chosen. Choose at least one.")
            if len(loras) > 1 and sign not in self.names:
                raise ConfigError(
                    f"{self.names!r} gives several merges one name. Write {sign} into it, which stands for the "
                    f"{role}'s name."
                )
        if len(self.subjects) * len(self.styles) > LARGEST:
            raise ConfigError(f"These are more than {LARGEST} merges. Choose fewer subjects or styles.")

    def pairs(self) -> list[MergeRequest]:
        """A merge for every pair of the shard, all styles of the first subject first."""
        return self.all_pairs()[_share(self.shard)]

    def all_pairs(self) -> list[MergeRequest]:
        """The pairs of every shard."""
        return [
            dataclasses.replace(
                MergeRequest.pair(subject, style, self._name(subject, style), self.overwrite, self.settings),
                report=self.report,
                card=self.card,
            )
            for subject, style in itertools.product(self.subjects, self.styles)
        ]

    def _name(self, subject: LoraInput, style: LoraInput) -> str:
        parts = {SUBJECT: Path(subject.lora).stem, STYLE: Path(style.lora).stem}
        cleaned = {sign: re.sub(r"[^\w .()+-]+", "_", part) for sign, part in parts.items()}
        signs = re.compile("|".join(map(re.escape, parts)))
        return signs.sub(lambda found: cleaned[found.group()], self.names.strip())


def _share(shard: str) -> slice:
    """The pairs of a shard ``I/N``; all without one."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard.strip() or "1/1")
    first, step = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= step:
        raise ConfigError(f"shard must be I/N with I from 1 to N, such as 1/4, not {shard!r}.")
    return slice(first - 1, None, step)


@dataclass(frozen=True)
class Cell:
    """One pair of a matrix.

    Attributes:
        request: its merge.
        state: ``ready``, ``exists`` (its file is there and is kept) or ``refused`` beforehand;
            ``done``, ``failed``, ``interrupted`` or ``left`` (not begun) afterwards.
        sentence: why it is refused, failed or not made; or "".
        report: of its merge, once it is done.
        seconds: that it took.
        prepared: what is known of its merge, while it is ready.
    """

    request: MergeRequest
    state: State = "ready"
    sentence: str = ""
    report: MergeReport | None = None
    seconds: float = 0.0
    prepared: PreparedMerge | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """What the merge is called once it is there; its file, where it was given as one."""
        output = self.request.output
        return output if output.endswith(EXTENSION) else lora_name(output)

    @property
    def subject(self) -> str:
        """The name of the pair's subject."""
        return Path(self.request.loras[0].lora).stem

    @property
    def style(self) -> str:
        """The name of its style."""
        return Path(self.request.loras[1].lora).stem

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "subject": self.subject,
            "style": self.style,
            "output": self.request.output,
            "state": self.state,
            "sentence": self.sentence,
            "seconds": self.seconds,
            "report": self.report.to_json() if self.report else None,
        }


@dataclass(frozen=True)
class PreparedMatrix:
    """A matrix that was looked at: every pair, in its order, and what is known of it."""

    request: MatrixRequest
    cells: tuple[Cell, ...]


def prepare_matrix(matrix: MatrixRequest, host: Host) -> PreparedMatrix:
    """Look at every pair before any is merged; reads headers alone.

    Raises:
        ConfigError: two pairs have one name.
    """
    _require_different_names(matrix.all_pairs())
    look = _collected if matrix.collect else _prepared
    return PreparedMatrix(matrix, tuple(look(request, host) for request in matrix.pairs()))


def require_ready(prepared: PreparedMatrix) -> None:
    """Refuse a matrix of which no pair can be merged, or collected; a shard may have nothing left to do.

    Raises:
        ZipLoraError: what keeps the first pair from being merged.
    """
    cells, wanted = prepared.cells, "exists" if prepared.request.collect else "ready"
    if any(cell.state == wanted for cell in cells):
        return
    if prepared.request.collect:
        raise OutputError(f"None of the {len(cells)} merges exists yet.")
    if all(cell.state == "exists" for cell in cells):
        if prepared.request.shard:
            return
        which = "The merge exists" if len(cells) == 1 else f"All {len(cells)} merges exist"
        raise OutputError(f"{which} already. Choose other names, or allow them to be replaced.")
    refused = next(cell for cell in cells if cell.state == "refused")
    raise ConfigError(
        f"There is no pair left that can be merged. {refused.request.output}: {refused.sentence}"
    )


def run_matrix(
    matrix: PreparedMatrix | MatrixRequest,
    host: Host,
    on_event: Callable[[Progress], None] | None = None,
    on_cell: Callable[[Cell], None] | None = None,
    finish: Finish | None = None,
) -> list[Cell]:
    """Merge every pair that can be; one that fails doesn't stop the others.

    Interrupt throws away the pair that runs, *finish now* writes it as it is; both leave the pairs
    after it. What was finished before stays.

    Args:
        matrix: what to merge; a request is prepared first.
        host: as in ``run``.
        on_event: told of every step of the whole.
        on_cell: told of every pair that has ended.
        finish: what is done with every merge that is written; it gives the report back.

    Returns:
        Every pair, in its order, and how it ended.
    """
    prepared = prepare_matrix(matrix, host) if isinstance(matrix, MatrixRequest) else matrix
    cells = list(prepared.cells)
    units = [units_of(cell.request) if cell.state == "ready" else 0 for cell in cells]
    ready, begun, stopped = sum(map(bool, units)), 0, False
    for index, cell in enumerate(cells):
        if cell.state == "ready":
            begun += 1
            words = f"{begun} of {ready}, {cell.request.output}: "
            part = SubProgress(sum(units[:index]), sum(units), words)
            stopped = stopped or host.interrupted()
            cells[index] = _left(cell) if stopped else _merged(cell, host, on_event, part, finish)
            stopped = stopped or host.interrupted() or host.finish_requested()
        if on_cell is not None:
            on_cell(cells[index])
    return cells


def _require_different_names(pairs: Sequence[MergeRequest]) -> None:
    taken: dict[str, MergeRequest] = {}
    for request in pairs:
        other = taken.setdefault(request.output.casefold(), request)
        if other is not request:
            both = " and ".join(" + ".join(lora.lora for lora in one.loras) for one in (other, request))
            raise ConfigError(f"{both} would both be called {request.output}. Choose each LoRA once.")


def _prepared(request: MergeRequest, host: Host) -> Cell:
    try:
        if not request.overwrite and host.output_path(request.output).exists():
            return Cell(request, "exists", EXISTS)
        return Cell(request, prepared=prepare(request, host))
    except ZipLoraError as error:
        return Cell(request, "refused", str(error))


def _collected(request: MergeRequest, host: Host) -> Cell:
    there = host.output_path(request.output).exists()
    return Cell(request, *(("exists", EXISTS) if there else ("left", MISSING_MERGE)))


def _left(cell: Cell) -> Cell:
    return dataclasses.replace(cell, state="left", sentence=STOPPED)


def _merged(
    cell: Cell,
    host: Host,
    on_event: Callable[[Progress], None] | None,
    part: SubProgress,
    finish: Finish | None,
) -> Cell:
    """A pair that was merged, or why it was not; never raises."""
    started = time.monotonic()
    state: State
    if cell.prepared and cell.prepared.output.exists() and not cell.request.overwrite:
        return dataclasses.replace(cell, state="exists", sentence=EXISTS)  # made meanwhile by another process
    try:
        report = run(cell.prepared or cell.request, host, on_event, part)
        report = finish(cell.request, report) if finish else report
        return dataclasses.replace(cell, state="done", report=report, seconds=report.seconds)
    except Interrupted as stop:
        state, sentence = "interrupted", str(stop)
    except ZipLoraError as error:
        state, sentence = "failed", str(error)
    except Exception as problem:
        log.exception("The merge %s failed", cell.request.output)
        state, sentence = "failed", UNEXPECTED.format(kind=type(problem).__name__)
    seconds = round(time.monotonic() - started, 2)
    return dataclasses.replace(cell, state=state, sentence=sentence, seconds=seconds)
