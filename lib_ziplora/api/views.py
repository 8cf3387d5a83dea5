"""What the API answers, made from what ``job`` knows. Names only, never a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..config import LoraInput, setting_defaults, setting_fields
from ..errors import OutputError
from ..hosts import Host, Progress
from ..jobs.queue import Job
from ..jobs.service import CompareTask, MatrixTask, Pictures, Request
from ..library.catalog import CatalogEntry
from ..pipeline.matrix import Cell
from ..pipeline.overlap import Overlap
from ..pipeline.preflight import Preflight
from ..pipeline.reexport import ReexportRequest
from ..report.document import Document, finite
from ..report.report import MergeReport
from .fields import TYPE_NAMES
from .models import (
    CheckView,
    JobLora,
    JobView,
    LoraView,
    OverlapPlace,
    OverlapView,
    PairView,
    PicturesView,
    ProgressView,
    SettingView,
)

FOLDERS = re.compile(r"(?<![^\s'\"(])(?:[A-Za-z]:)?[/\\](?:[^/\\'\"():]*[^/\\'\"():\s][/\\])+")
"""The folders of an absolute path; one folder alone may be no path."""


def job_view(job: Job) -> JobView:
    """A job as the API shows it."""
    request = job.request
    kind, source, output = _named(request)
    pictures = job.result.pictures
    return JobView(
        id=job.id,
        kind=kind,
        state=job.state,
        stopping=job.stopping,
        loras=[JobLora(lora=one.lora, role=one.role) for one in _loras(request)],
        source=source,
        output=output,
        created=job.created,
        started=job.started or None,
        finished=job.finished or None,
        progress=_progress_view(job.progress),
        report=_report(job.report) if job.report else None,
        pairs=[_pair_view(cell) for cell in job.result.pairs],
        pictures=_pictures_view(pictures) if pictures else None,
        error=job.error or None,
    )


def _named(request: Request) -> tuple[str, str, str]:
    """What a request is called: its kind, what it begins with, what it makes."""
    if isinstance(request, MatrixTask):
        return "matrix", "", request.matrix.names
    if isinstance(request, CompareTask):
        return "compare", request.comparison.merged, ""
    if isinstance(request, ReexportRequest):
        return "re-export", request.source, request.output
    return "merge", "", request.output


def _loras(request: Request) -> Sequence[LoraInput]:
    if isinstance(request, MatrixTask):
        return (*request.matrix.subjects, *request.matrix.styles)
    return () if isinstance(request, (CompareTask, ReexportRequest)) else request.loras


def _progress_view(event: Progress | None) -> ProgressView | None:
    return None if event is None else ProgressView(**finite(dataclasses.asdict(event)))


def _report(report: MergeReport) -> dict[str, Any]:
    figures = {name: value for name, value in report.to_json().items() if name != "output"}
    shown: dict[str, Any] = finite({**figures, "tag": report.tag})
    return shown


def _pair_view(cell: Cell) -> PairView:
    kept = ("subject", "style", "state", "sentence", "seconds")
    return PairView(
        **{name: getattr(cell, name) for name in kept},
        output=cell.request.output,
        report=_report(cell.report) if cell.report else None,
    )


def _pictures_view(pictures: Pictures) -> PicturesView:
    return PicturesView(
        drawn=pictures.drawn,
        wanted=pictures.wanted,
        file=pictures.file.name if pictures.file else None,
        preview=pictures.preview.name if pictures.preview else None,
        remarks=list(pictures.remarks),
    )


def check_view(found: Preflight, seconds: float | None, folders: Collection[Path]) -> CheckView:
    """A look at a merge as the API shows it."""
    names = [without_folders(name, folders) for name in found.names]
    told = {"problems": found.problems, "remarks": found.remarks}
    return CheckView(
        names=names,
        **{key: [without_folders(one, folders) for one in sentences] for key, sentences in told.items()},
        common_layers=found.common_layers,
        single_layers=dict(found.single_layers),
        size=found.size,
        memory=found.memory,
        seconds=seconds,
        overlap=_overlap_view(found.overlap) if found.overlap else None,
        advice=found.advice,
    )


def _overlap_view(overlap: Overlap) -> OverlapView:
    return OverlapView(
        **{name: getattr(overlap, name) for name in ("mean", "chance", "measured", "common")},
        places=[
            OverlapPlace(block=block, kind=kind, overlap=value)
            for (block, kind), value in overlap.places.items()
        ],
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
    kept = ("name", "base", "rank", "layers", "prompt", "usable")
    return [
        LoraView(
            **{name: getattr(entry, name) for name in kept}, reason=without_folders(entry.reason, folders)
        )
        for entry in entries
    ]


def setting_views() -> list[SettingView]:
    """Every setting, in the order of the configuration."""
    defaults = setting_defaults()
    return [
        SettingView(
            name=name,
            type=TYPE_NAMES[type(defaults[name])],
            default=defaults[name],
            **{**dataclasses.asdict(option), "choices": list(option.choices)},
        )
        for name, option in setting_fields().items()
    ]


def overview_view(summary: dict[str, Any]) -> dict[str, Any]:
    """A description of files (``overview``) without their paths."""
    shown = {name: value for name, value in summary.items() if name != "file"}
    if "files" in shown:
        shown["files"] = [overview_view(one) for one in shown["files"]]
    cleaned: dict[str, Any] = finite(shown)
    return cleaned


def folders_of(host: Host, outputs: Sequence[str] = ()) -> set[Path]:
    """The folders that a sentence about an installed LoRA, or about writing ``outputs``, may name."""
    folders = {lora.path.parent for lora in host.loras()}
    for output in outputs:
        with contextlib.suppress(OutputError):
            folders.add(host.output_path(output).parent)
    return folders


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
