"""The answers of the API, from jobs, reports and catalogs. Names only, never a folder."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from ..config import LoraInput
from ..errors import OutputError
from ..hosts import Host
from ..jobs.queue import Job
from ..jobs.requests import Pictures, Request, outputs
from ..library.catalog import CatalogEntry
from ..options import TYPE_NAMES, described
from ..pictures.comparison import CompareRequest
from ..pipeline.matrix import Cell, MatrixRequest
from ..pipeline.preflight import Preflight
from ..pipeline.reexport import ReexportRequest
from ..report.document import Document, finite
from ..report.report import MergeReport
from .models import CheckView, JobLora, JobView, LoraView, PairView, PicturesView, ProgressView, SettingView

FOLDERS = re.compile(r"(?<![^\s'\"(])(?:[A-Za-z]:)?[/\\](?:[^/\\'\"():]*[^/\\'\"():\s][/\\])+")
"""The folders of an absolute path; one folder alone may be no path."""
Wording = Callable[[str], str]


def job_view(job: Job, word: Wording) -> JobView:
    """A job as the API shows it; its sentences as ``word`` puts them."""
    request, result = job.request, job.result
    kind, source, output = _named(request)
    return JobView(
        id=job.id,
        kind=kind,
        state=job.state,
        stopping=job.stopping,
        loras=[JobLora(lora=one.lora, role=one.role) for one in loras_of(request)],
        source=source,
        output=output,
        created=job.created,
        started=job.started or None,
        finished=job.finished or None,
        progress=ProgressView(**finite(asdict(job.progress))) if job.progress else None,
        report=_report(job.report, word),
        pairs=[_pair_view(cell, word) for cell in result.pairs],
        pictures=_pictures_view(result.pictures, word) if result.pictures else None,
        error=word(job.error) if job.error else None,
    )


def _named(request: Request) -> tuple[str, str, str]:
    """What a request is called: its kind, what it begins with, what it makes."""
    if isinstance(request, MatrixRequest):
        return "matrix", "", request.names
    if isinstance(request, CompareRequest):
        return "compare", request.source, ""
    if isinstance(request, ReexportRequest):
        return "re-export", request.source, request.output
    return "merge", "", request.output


def loras_of(request: Request) -> Sequence[LoraInput]:
    """The LoRAs that a request merges."""
    if isinstance(request, MatrixRequest):
        return (*request.subjects, *request.styles)
    return () if isinstance(request, (CompareRequest, ReexportRequest)) else request.loras


def _report(report: MergeReport | None, word: Wording) -> dict[str, Any] | None:
    if report is None:
        return None
    figures = {**report.to_json(), "tag": report.tag, "warnings": list(map(word, report.warnings))}
    del figures["output"]
    shown: dict[str, Any] = finite(figures)
    return shown


def _pair_view(cell: Cell, word: Wording) -> PairView:
    shown = {name: getattr(cell, name) for name in ("subject", "style", "state", "seconds")}
    report = _report(cell.report, word)
    return PairView(**shown, output=cell.request.output, sentence=word(cell.sentence), report=report)


def _pictures_view(pictures: Pictures, word: Wording) -> PicturesView:
    return PicturesView(
        drawn=pictures.drawn,
        wanted=pictures.wanted,
        file=pictures.file.name if pictures.file else None,
        preview=pictures.preview.name if pictures.preview else None,
        remarks=list(map(word, pictures.remarks)),
    )


def check_view(found: Preflight, word: Wording) -> CheckView:
    """A look at a merge as the API shows it."""
    shown = found.to_json()
    return CheckView(
        **{**shown, **{name: list(map(word, shown[name])) for name in ("names", "problems", "remarks")}}
    )


def explanation_view(document: Document) -> dict[str, Any]:
    """A merge explained, without paths."""
    found = document.to_json()
    del found["report"]
    for lora, source in zip(found["loras"], document.saved.sources, strict=True):
        lora["lora"] = source.name
        del lora["images"]
    shown: dict[str, Any] = finite(found)
    return shown


def lora_views(entries: Collection[CatalogEntry]) -> list[LoraView]:
    """The catalog without its paths."""
    folders = {entry.path.parent for entry in entries}
    names = ("name", "base", "rank", "layers", "prompt", "usable")
    return [
        LoraView(
            **{name: getattr(entry, name) for name in names}, reason=without_folders(entry.reason, folders)
        )
        for entry in entries
    ]


def setting_views(cls: type) -> list[SettingView]:
    """Every setting, in the order of the configuration."""
    return [
        SettingView(name=one.name, type=TYPE_NAMES[one.kind], default=one.default, **asdict(one.option))
        for one in described(cls)
    ]


def overview_view(summary: dict[str, Any]) -> dict[str, Any]:
    """A description of files (``overview``) without their paths."""
    shown = {name: value for name, value in summary.items() if name != "file"}
    if "files" in shown:
        shown["files"] = [overview_view(one) for one in shown["files"]]
    cleaned: dict[str, Any] = finite(shown)
    return cleaned


def wording(host: Host, request: Request | None = None) -> Wording:
    """What hides, in sentences, the folders of the installed LoRAs and of what a request writes."""

    @cache
    def folders() -> set[Path]:
        found = {lora.path.parent for lora in host.loras()}
        for output in outputs(request)[:1] if request else ():
            with contextlib.suppress(OutputError):
                found.add(host.output_path(output).parent)
        return found

    return lambda sentence: without_folders(sentence, folders()) if sentence else ""


def without_folders(sentence: str, folders: Collection[Path]) -> str:
    """A sentence for people with the names of files, but not of their folders.

    Args:
        sentence: what is to be told.
        folders: the LoRA folders; of other files the folders are cut off too.
    """
    for folder in sorted(map(str, folders), key=len, reverse=True):
        for mark in {os.sep, "/"}:
            sentence = sentence.replace(f"{folder}{mark}", "")
        sentence = sentence.replace(folder, "the LoRA folder")
    return FOLDERS.sub("", sentence)
