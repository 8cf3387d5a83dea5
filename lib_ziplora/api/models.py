"""Response models of the API (pydantic), which are the schemas of its description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from ..lora.blocks import KINDS


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(..., description="A sentence: what is wrong and what to do")


class Queued(BaseModel):
    """A job that was taken."""

    id: str = Field(..., description="For GET /ziplora/v1/jobs/{id}")
    state: str = Field(..., description="queued")


class ProgressView(BaseModel):
    """How far a running job is."""

    stage: str = Field(
        ..., description="reading, encoding, sampling, solving, optimising, writing, drawing or done"
    )
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


class PairView(BaseModel):
    """One pair of a matrix."""

    subject: str = Field(..., description="Name of its subject")
    style: str = Field(..., description="Name of its style")
    output: str = Field(..., description="Name of the merged LoRA")
    state: str = Field(
        ...,
        description="done, exists (its file was there and is kept), refused, failed, interrupted or left (not "
        "begun)",
    )
    sentence: str = Field(..., description="Why it was not merged, or empty")
    seconds: float = Field(..., description="That it took")
    report: dict[str, Any] | None = Field(None, description="As in the job of a merge, when it is done")


class PicturesView(BaseModel):
    """What was drawn: a comparison, or the sheet of a matrix."""

    drawn: int = Field(..., description="Pictures on the sheet")
    wanted: int = Field(..., description="Pictures that were asked for")
    file: str | None = Field(
        None,
        description="File name of the sheet, where the host saves its pictures; null where it saves none",
    )
    preview: str | None = Field(None, description="File name of the picture that the merge's card got")
    remarks: list[str] = Field(..., description="Why anything is missing")


class JobView(BaseModel):
    """One merge, one that is exported again, a matrix of merges, or a comparison."""

    id: str
    kind: str = Field(..., description="merge, re-export, matrix or compare")
    state: str = Field(..., description="queued, running, done, failed or interrupted")
    stopping: str = Field(..., description="interrupt or finish while a running job was asked to; else empty")
    loras: list[JobLora] = Field(..., description="What is merged; empty for a re-export and a comparison")
    source: str = Field(
        ..., description="Name of the merge that is exported again or compared; empty for the others"
    )
    output: str = Field(
        ..., description="Name of the merged LoRA; of a matrix its names; empty for a comparison"
    )
    created: float = Field(..., description="Seconds since 1970")
    started: float | None = None
    finished: float | None = None
    progress: ProgressView | None = None
    report: dict[str, Any] | None = Field(
        None,
        description="The figures of a merge that is done, as in the command line's --report, and its tag",
    )
    pairs: list[PairView] = Field(..., description="Of a matrix, those that have ended; it grows as it runs")
    pictures: PicturesView | None = Field(None, description="Of a comparison, or of a matrix with a sheet")
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
    problems: list[str] = Field(..., description="Why it would be refused; empty when it is ready to merge")
    remarks: list[str] = Field(..., description="What does not keep it from being made")
    common_layers: int | None = Field(None, description="Layers that at least two of the LoRAs have")
    single_layers: dict[str, int] = Field(..., description="Layers that only that LoRA has")
    size: int | None = Field(None, description="Bytes of the merged file, or the most that it can have")
    memory: int | None = Field(
        None,
        description="Bytes of the GPU's memory (without one, of main memory) that it will take beside the "
        "checkpoint, roughly; null where nothing is learnt",
    )
    seconds: float | None = Field(None, description="It will take; null until one of its size has run here")
    overlap: OverlapView | None = None
    advice: str = Field(..., description="What the overlap suggests, or empty")


class LoraView(BaseModel):
    """One installed LoRA."""

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
