"""What the API answers: pydantic models, and how they are made. Names only, never a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from ..config import setting_defaults, setting_fields
from ..errors import OutputError
from ..hosts import Host, Progress
from ..job import CatalogEntry, Document, Overlap, Preflight, ReexportRequest
from ..job.document import finite
from ..job.overlap import KINDS
from ..job.queue import Job, Request
from .bodies import TYPE_NAMES


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(..., description="A sentence: what is wrong and what to do")


class Queued(BaseModel):
    """A merge that was taken."""

    id: str = Field(..., description="For GET /ziplora/v1/jobs/{id}")
    state: str = Field(..., description="queued")


class ProgressView(BaseModel):
    """How far a running merge is."""

    stage: str = Field(..., description="reading, encoding, sampling, optimising, writing or done")
    step: int = Field(..., description="Steps finished, all stages together")
    total: int = Field(..., description="Steps of the whole run")
    seconds_left: float | None = Field(None, description="An estimate; null while nothing is known")
    text: str = Field(..., description="One line for people")
    metrics: dict[str, float | None] = Field(
        ...,
        description="loss, a loss of each LoRA (subject_loss, style_loss; subject_1_loss, ... of several), "
        "similarity, travel while optimising",
    )


class JobLora(BaseModel):
    """One LoRA of a merge."""

    lora: str = Field(..., description="Its name")
    role: str = Field(..., description="subject or style")


class JobView(BaseModel):
    """One merge, or one that is exported again."""

    id: str
    kind: str = Field(..., description="merge or re-export")
    state: str = Field(..., description="queued, running, done, failed or interrupted")
    stopping: str = Field(..., description="interrupt or finish while a running job was asked to; else empty")
    loras: list[JobLora] = Field(..., description="What is merged; empty for a re-export")
    source: str = Field(..., description="Name of the merge that is exported again; empty for a merge")
    output: str = Field(..., description="Name of the merged LoRA")
    created: float = Field(..., description="Seconds since 1970")
    started: float | None = None
    finished: float | None = None
    progress: ProgressView | None = None
    report: dict[str, Any] | None = Field(
        None,
        description="The figures of a merge that is done, as in the command line's --report, and its tag",
    )
    error: str | None = Field(None, description="A sentence, when it failed or was interrupted")


class OverlapPlace(BaseModel):
    """The layers of one kind in one block."""

    block: str = Field(..., description="input 4, middle, output 0, ..., text encoder 1, rest of the UNet")
    kind: str = Field(..., description=", ".join(KINDS))
    overlap: float = Field(..., description="Mean |cosine| between the same columns of the LoRAs")


class OverlapView(BaseModel):
    """How much LoRAs get in each other's way."""

    mean: float = Field(..., description="Of all layers that were measured")
    chance: float = Field(..., description="What columns without anything in common have on average")
    measured: int = Field(
        ..., description="Layers that were measured; of many large ones, some of every place"
    )
    common: int = Field(..., description="Layers that could be")
    places: list[OverlapPlace]


class CheckView(BaseModel):
    """What is known of a merge before it is made."""

    names: list[str] = Field(..., description="Of the LoRAs")
    problems: list[str] = Field(
        ..., description="Why it would be refused; empty when nothing speaks against it"
    )
    remarks: list[str] = Field(..., description="What does not keep it from being made")
    common_layers: int | None = Field(None, description="Layers that at least two of the LoRAs have")
    single_layers: dict[str, int] = Field(..., description="Layers that only that LoRA has")
    size: int | None = Field(None, description="Bytes of the merged file, or the most that it can have")
    seconds: float | None = Field(None, description="It will take; null until one of its size has run here")
    overlap: OverlapView | None = None
    advice: str = Field(..., description="What the overlap speaks for, or empty")


class LoraView(BaseModel):
    """One installed LoRA, judged by its tensors."""

    name: str = Field(..., description="As in <lora:name:1>")
    base: str = Field(..., description="sdxl, sd1, flux, ..., unknown; empty for an unreadable file")
    rank: int = Field(..., description="The highest rank")
    layers: int
    prompt: str = Field(..., description="A prompt to start from, or empty")
    usable: bool = Field(..., description="It can be merged")
    reason: str = Field(..., description="Why not; empty when it can")


class SettingView(BaseModel):
    """One setting of a merge."""

    name: str
    type: str = Field(..., description="string, integer, number or boolean")
    label: str
    help: str
    default: Any
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: list[str] = Field(..., description="The values that it takes; empty when it takes others")
    advanced: bool


def job_view(job: Job) -> JobView:
    """A job as the API shows it."""
    request = job.request
    return JobView(
        id=job.id,
        kind="re-export" if isinstance(request, ReexportRequest) else "merge",
        state=job.state,
        stopping=job.stopping,
        loras=_job_loras(request),
        source=request.source if isinstance(request, ReexportRequest) else "",
        output=request.output,
        created=job.created,
        started=job.started or None,
        finished=job.finished or None,
        progress=_progress_view(job.progress),
        report=_report(job),
        error=job.error or None,
    )


def _job_loras(request: Request) -> list[JobLora]:
    if isinstance(request, ReexportRequest):
        return []
    return [JobLora(lora=one.lora, role=one.role) for one in request.loras]


def _progress_view(event: Progress | None) -> ProgressView | None:
    return None if event is None else ProgressView(**finite(dataclasses.asdict(event)))


def _report(job: Job) -> dict[str, Any] | None:
    if job.report is None:
        return None
    figures = {name: value for name, value in job.report.to_json().items() if name != "output"}
    shown: dict[str, Any] = finite({**figures, "tag": job.report.tag})
    return shown


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


def folders_of(host: Host, output: str) -> set[Path]:
    """The folders that a sentence about an installed LoRA, or about writing ``output``, may name."""
    folders = {lora.path.parent for lora in host.loras()}
    with contextlib.suppress(OutputError):
        folders.add(host.output_path(output).parent)
    return folders


def without_folders(sentence: str, folders: Collection[Path]) -> str:
    """A sentence for people with the names of files, but not of their folders."""
    for folder in sorted(map(str, folders), key=len, reverse=True):
        for mark in {os.sep, "/"}:
            sentence = sentence.replace(f"{folder}{mark}", "")
        sentence = sentence.replace(folder, "the LoRA folder")
    return sentence
