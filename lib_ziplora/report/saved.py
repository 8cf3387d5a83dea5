"""Saved merges: what is kept beside a merged file, so that it can be written again without learning anything."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import LoraInput, MergeSettings, settings_from
from ..errors import ConfigError, LoraFileError, OutputError
from ..file_cache import cached_by_stat
from ..hosts import CheckpointInfo, Host
from ..lora.algebra import Vectors
from ..lora.io.inspect import inspect_header
from ..lora.io.metadata import read_recipe
from ..lora.io.sidecar import ENDING, Sidecar, damaged, read_sidecar, sidecar_path
from ..training.learnt import Learnt
from .report import SUMMARY

LORA_ENDING = ".safetensors"
CHUNK = 1 << 22
SHOWN_DIGITS = 12
LONGEST_FILE_NAME = 255
HISTORY_DIGITS = 6


@dataclass(frozen=True)
class Source:
    """A LoRA file that a merge was made of: its stem, the sha256 of the whole file, and its bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class SavedMerge:
    """Everything that a merge was made with, and what it has learnt.

    Attributes:
        loras: as they were asked for.
        settings: as they were used.
        sources: the file of each LoRA.
        coefficients: of each LoRA; empty after a plain sum.
        checkpoint: what it was merged against; empty names after a plain sum.
        summary: figures of the learning.
        history: figures of every update (``Progress.metrics``); empty where there was none.
    """

    loras: tuple[LoraInput, ...]
    settings: MergeSettings
    sources: tuple[Source, ...]
    coefficients: tuple[Vectors, ...]
    checkpoint: CheckpointInfo
    summary: Mapping[str, float]
    history: tuple[Mapping[str, float], ...] = ()

    def learnt(self) -> Learnt:
        """The figures that are about the coefficients alone; the others are as of a plain sum."""
        known: dict[str, Any] = {name: self.summary[name] for name in SUMMARY if name in self.summary}
        return Learnt(**{**known, "steps": int(known.get("steps", 0))})

    def pack(self) -> bytes:
        """The bytes of the file that holds it."""
        about = {
            "loras": [dataclasses.asdict(lora) for lora in self.loras],
            "settings": dataclasses.asdict(self.settings),
            "sources": [dataclasses.asdict(source) for source in self.sources],
            "checkpoint": dataclasses.asdict(self.checkpoint),
            "summary": dict(self.summary),
            "learnt": bool(self.coefficients),
            "history": _columns(self.history),
        }
        return Sidecar(self.coefficients or tuple({} for _ in self.loras), about).pack()

    @staticmethod
    def of(path: Path, sidecar: Sidecar) -> SavedMerge:
        """The merge that a file holds.

        Raises:
            LoraFileError: it is damaged, or of another version of ZipLoRA.
        """
        about = sidecar.about
        try:
            loras = tuple(_lora_input(item) for item in about["loras"])
            sources = tuple(_source(item) for item in about["sources"])
            checkpoint = CheckpointInfo(str(about["checkpoint"]["name"]), str(about["checkpoint"]["sha256"]))
            summary = {name: value for name, value in about["summary"].items() if type(value) in (int, float)}
            settings = settings_from(about["settings"])
            history = _steps(about.get("history", ()))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ConfigError) as error:
            raise damaged(path) from error
        if not len(loras) == len(sources) == len(sidecar.vectors) >= 2:
            raise damaged(path)
        coefficients = sidecar.vectors if about.get("learnt") else ()
        return SavedMerge(loras, settings, sources, coefficients, checkpoint, summary, history)


def _lora_input(item: Mapping[str, Any]) -> LoraInput:
    return LoraInput(
        str(item["lora"]),
        str(item["prompt"]),
        float(item["weight"]),
        tuple(str(image) for image in item["images"]),
        str(item.get("blocks", "")),
        item["role"],
    )


def _columns(history: Sequence[Mapping[str, float]]) -> list[list[Any]]:
    """Each figure's name and its values, in the order of the figures."""
    names = list(history[0]) if history else []
    return [[name, *(float(f"{step[name]:.{HISTORY_DIGITS}g}") for step in history)] for name in names]


def _steps(columns: Sequence[Sequence[Any]]) -> tuple[Mapping[str, float], ...]:
    names = [str(name) for name, *_ in columns]
    rows = zip(*(map(float, values) for _, *values in columns), strict=True)
    return tuple(dict(zip(names, row, strict=True)) for row in rows)


def _source(item: Mapping[str, Any]) -> Source:
    name = str(item["name"])
    if Path(name).name != name or not 0 < len(name.encode()) <= LONGEST_FILE_NAME:
        raise ValueError(name)
    return Source(name, str(item["sha256"]), int(item["size"]))


def saved_path(name: str, host: Host) -> Path:
    """The file of coefficients that belongs to a merged LoRA.

    Args:
        name: the LoRA's name; where the host allows paths, its file or that of the coefficients.
        host: where it is installed. The LoRA itself need not be there any more.

    Raises:
        LoraFileError: there is no such LoRA, or it has no coefficients beside it.
    """
    lora = name.removesuffix(ENDING) + LORA_ENDING if name.endswith(ENDING) else name
    try:
        path = sidecar_path(host.resolve(lora))
    except LoraFileError:
        orphan = _without_lora(lora, host)
        if orphan is None:
            raise
        return orphan
    if not path.is_file():
        raise LoraFileError(
            f"{path.stem} has no coefficients beside it: there is no {path.name}. Only merges that ZipLoRA made "
            "have it, and the two must be moved together. Merge again."
        )
    return path


def merged_file(path: Path) -> Path:
    """The merged LoRA that a file of coefficients lies beside.

    Raises:
        LoraFileError: it is gone.
    """
    lora = path.with_suffix(LORA_ENDING)
    if not lora.is_file():
        raise LoraFileError(
            f"{lora.name} is not beside {path.name} any more. Put it back, or re-export it from its coefficients."
        )
    return lora


def _without_lora(name: str, host: Host) -> Path | None:
    """The coefficients of a merged LoRA that is gone, where it would be written."""
    try:
        path = sidecar_path(host.output_path(name))
    except OutputError:
        return None
    return path if path.is_file() else None


def read_saved(path: Path) -> SavedMerge:
    """Read a merge back.

    Raises:
        LoraFileError: it is damaged, or belongs to another LoRA than the one beside it.
    """
    sidecar, sha256 = read_sidecar(path)
    lora = path.with_suffix(LORA_ENDING)
    if lora.is_file():
        note = read_recipe(inspect_header(lora).metadata).get("coefficients")
        if not isinstance(note, dict) or note.get("sha256") != sha256:
            raise LoraFileError(
                f"{path.name} and {lora.name} are of different merges. Put the two files back together that "
                "were written together, or merge again."
            )
    return SavedMerge.of(path, sidecar)


def find_sources(saved: SavedMerge, path: Path, host: Host) -> list[Path]:
    """The files that a merge was made of, wherever they are installed now.

    Args:
        saved: the merge.
        path: the file that it was read from.
        host: where LoRAs are installed.

    Raises:
        LoraFileError: one has changed or is gone; the sentence says which.
    """
    return [
        _find(source, chosen.lora, path, host)
        for source, chosen in zip(saved.sources, saved.loras, strict=True)
    ]


def _find(source: Source, given: str, path: Path, host: Host) -> Path:
    named = list(_by_name(source, given, path, host))
    installed = [lora.path for lora in host.loras()]
    for candidate in (*named, *installed):
        if _has_content(candidate, source):
            return candidate
    shown = source.sha256[:SHOWN_DIGITS]
    if named:
        raise LoraFileError(
            f"{named[0].name} has changed since {path.stem} was merged from it (the old one's sha256 begins with "
            f"{shown}). Bring the old file back, under any name, or merge again."
        )
    raise LoraFileError(
        f"The LoRA {source.name}, which {path.stem} was merged from, is not installed any more (its sha256 begins "
        f"with {shown}). Install it again, under any name."
    )


def _by_name(source: Source, given: str, path: Path, host: Host) -> Iterator[Path]:
    """Files that have the source's name: as it was given, as it is installed, beside the merged file."""
    for name in dict.fromkeys((given, source.name)):
        try:
            found = host.resolve(name)
        except LoraFileError:
            continue
        if found.is_file():
            yield found
    beside = path.with_name(f"{source.name}{LORA_ENDING}")
    if beside.is_file():
        yield beside


def _has_content(file: Path, source: Source) -> bool:
    try:
        return file.stat().st_size == source.size and _sha256(file) == source.sha256
    except OSError:
        return False


@cached_by_stat(64)
def _sha256(file: Path) -> str:
    """Of the whole file; read again only when it has changed."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()
