"""Requests and results of jobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import MergeRequest
from ..names import lora_name
from ..pictures.compare import PreparedComparison
from ..pictures.comparison import CompareRequest, Comparison
from ..pictures.matrix_sheet import Sheet
from ..pipeline.matrix import Cell, MatrixRequest, PreparedMatrix
from ..pipeline.prepare import PreparedMerge
from ..pipeline.reexport import ReexportRequest
from ..report.report import MergeReport

Prepared = PreparedMerge | PreparedMatrix | PreparedComparison
Request = MergeRequest | ReexportRequest | MatrixRequest | CompareRequest


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
        pictures: figures of a comparison, or of a matrix's sheet.
        drawn: the comparison or the sheet itself, as long as it is kept.
    """

    report: MergeReport | None = None
    pairs: tuple[Cell, ...] = ()
    pictures: Pictures | None = None
    drawn: Comparison | Sheet | None = None


def outputs(request: Request) -> tuple[str, ...]:
    """The output names of the LoRAs that a request will write."""
    if isinstance(request, MatrixRequest):
        return tuple(pair.output for pair in request.pairs())
    return () if isinstance(request, CompareRequest) else (request.output,)


def output_names(request: Request) -> tuple[str, ...]:
    """What the LoRAs that a request will write are called, whatever their folder."""
    return tuple(map(lora_name, outputs(request)))


def replaces(request: Request) -> bool:
    """Whether names that are taken by then do not keep it from being done: a matrix leaves their pairs out."""
    return isinstance(request, (MatrixRequest, CompareRequest)) or request.overwrite


def stopping_words(request: Request, how: str) -> str:
    """What becomes of a running job that was asked to ``interrupt`` or ``finish``, as a sentence."""
    if isinstance(request, CompareRequest):
        return "Stopping; the pictures that are finished stay."
    if how == "finish":
        return "Finishing; the file will be written."
    if isinstance(request, MatrixRequest):
        return "Stopping; the merges that are finished stay."
    return "Stopping; nothing will be written."
