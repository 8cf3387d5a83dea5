"""What a LoRA file is, judged by its tensors once and remembered until the file changes.

A header takes some milliseconds to read, which thousands of files make a minute of; so the verdicts are
kept in memory and, once there are many, in a small file.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import LoraFileError
from ..lora.io.inspect import LoraHeader, inspect_header, unsupported_reason
from .json_store import read_json, write_json
from .prompts import suggested_prompt

FORMAT = 1
"""Of the file; a file of another format or of another release is not read."""
WORTH_KEEPING = 100
"""Verdicts since the file was written that make it worth writing again."""
MOST_KEPT = 50_000

Stamp = tuple[int, int]
"""When a file was written (nanoseconds) and its size (bytes)."""


@dataclass(frozen=True)
class Judgement:
    """What a file's header says.

    Attributes:
        base: ``sdxl``, ``sd1``, ..., ``unknown``.
        family: ``lora``, another family, or several joined with ``+``.
        ranks: the distinct ranks, ascending.
        layers: of the UNet and the text encoders.
        prompt: that its training metadata suggest, or "".
        reason: why it can't be merged, as a sentence; "" when it can.
    """

    base: str
    family: str
    ranks: tuple[int, ...]
    layers: int
    prompt: str
    reason: str


class Judge:
    """The verdicts on files, read anew only when a file has changed. Any thread may ask.

    Args:
        file: where they are kept, or None.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Stamp, Judgement]] = _read(file) if file else {}
        self._unreadable: dict[str, tuple[Stamp, str]] = {}
        self._new = 0

    def remembered(self, path: Path) -> Judgement | None:
        """The verdict on a file, if it needn't be read for that.

        Raises:
            LoraFileError: there is no such file, or it is remembered as no whole safetensors file.
        """
        stamp = _stamp(path)
        damaged = self._unreadable.get(str(path))
        if damaged and damaged[0] == stamp:
            raise LoraFileError(damaged[1])
        known = self._known.get(str(path))
        return known[1] if known and known[0] == stamp else None

    def judge(self, path: Path) -> Judgement:
        """The verdict on a file.

        Raises:
            LoraFileError: it is no whole safetensors file.
        """
        known = self.remembered(path)
        if known is not None:
            return known
        stamp = _stamp(path)
        try:
            found = _judgement(inspect_header(path))
        except LoraFileError as error:
            if not isinstance(error.__cause__, OSError):
                self._unreadable[str(path)] = (stamp, str(error))
            raise
        with self._lock:
            self._known[str(path)] = (stamp, found)
            self._new += 1
        return found

    def keep(self) -> None:
        """Write the file if there is enough that it doesn't say."""
        with self._lock:
            if self._file is None or self._new < WORTH_KEEPING:
                return
            self._new = 0
            newest = list(self._known.items())[-MOST_KEPT:]
        rows = {path: [*stamp, asdict(found)] for path, (stamp, found) in newest}
        write_json(self._file, {"format": FORMAT, "release": __version__, "files": rows})


@lru_cache(maxsize=8)
def judge_of(folder: Path | None) -> Judge:
    """The judge who keeps his verdicts in a folder, one for all who ask."""
    return Judge(folder / "catalog.json" if folder else None)


def _stamp(path: Path) -> Stamp:
    try:
        stat = path.stat()
    except OSError as error:
        raise LoraFileError(f"{path.name} can't be read ({error.strerror}). Refresh the list.") from error
    return stat.st_mtime_ns, stat.st_size


def _judgement(header: LoraHeader) -> Judgement:
    reason = unsupported_reason(header) or ("" if header.layers else f"{header.name} has no LoRA layers.")
    prompt = suggested_prompt({}, header.metadata)
    return Judgement(header.base, header.family, header.ranks, header.layers, prompt, reason)


def _read(file: Path) -> dict[str, tuple[Stamp, Judgement]]:
    content = read_json(file)
    if not isinstance(content, dict):
        return {}
    if (content.get("format"), content.get("release")) != (FORMAT, __version__):
        return {}
    try:
        return {
            path: ((int(modified), int(size)), _restored(found))
            for path, (modified, size, found) in content["files"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _restored(found: Mapping[str, Any]) -> Judgement:
    ranks = tuple(int(rank) for rank in found["ranks"])
    words = {name: str(found[name]) for name in ("base", "family", "prompt", "reason")}
    return Judgement(ranks=ranks, layers=int(found["layers"]), **words)
