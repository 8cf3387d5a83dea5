"""Cached inspection of LoRA headers, keyed by path, and mtime and size of the file and of PEFT's configuration.

A header takes some milliseconds to read, which thousands of files make a minute of; so what is shown of each
is kept in memory and, once there are many, in a small file.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from .. import __version__
from ..errors import LoraFileError
from ..file_cache import cached_by_stat, stamp
from ..lora.formats.peft_config import SIDECAR
from ..lora.io.container import header_of
from ..lora.io.inspect import LoraHeader, describe, inspect_header, parse_header, unsupported_reason
from ..lora.io.size import FileShapes, shapes_of
from .json_store import read_json, write_json
from .prompts import suggested_prompt

FORMAT = 2
"""Of the file; a file of another format or of another release is not read."""
WORTH_SAVING = 100
"""Entries since the file was written that make it worth writing again."""
MOST_SAVED = 50_000
Stamps = tuple[int, ...]
"""When a file was written and its size; behind them the same of PEFT's configuration beside it, if any."""


@dataclass(frozen=True)
class InspectedFile:
    """A LoRA file's header: what it is, and the ranks and shapes of its layers."""

    header: LoraHeader
    shapes: FileShapes


def inspect_file(path: Path) -> InspectedFile:
    """Inspect a file by its header, read again only when it or PEFT's configuration beside it has changed.

    Raises:
        LoraFileError: it is no whole safetensors file.
    """
    return _inspected(*_read_with(path))


def _read_with(path: Path) -> tuple[Path, ...]:
    """A LoRA file, and PEFT's configuration where there is one beside it."""
    beside = path.parent / SIDECAR
    return (path, beside) if beside.is_file() else (path,)


@cached_by_stat(32)
def _inspected(path: Path, *_: Path) -> InspectedFile:
    raw = header_of(path)
    parsed = parse_header(path, raw)
    return InspectedFile(describe(path, raw, parsed), shapes_of(raw, parsed))


@dataclass(frozen=True)
class LoraInfo:
    """What is shown of a LoRA file.

    Attributes:
        base: ``sdxl``, ``sd1``, ..., ``unknown``.
        family: ``lora``, another family, or several joined with ``+``.
        ranks: the distinct ranks, ascending.
        layers: of the UNet and the text encoders.
        prompt: that its training metadata suggest, or "".
        reason: why it can't be merged, as a sentence; "" when it can.
    """

    base: str = ""
    family: str = ""
    ranks: tuple[int, ...] = ()
    layers: int = 0
    prompt: str = ""
    reason: str = ""

    @classmethod
    def of(cls, header: LoraHeader) -> LoraInfo:
        """What is shown of a file with this header."""
        reason = unsupported_reason(header) or ("" if header.layers else f"{header.name} has no LoRA layers.")
        prompt = suggested_prompt({}, header.metadata)
        return cls(header.base, header.family, header.ranks, header.layers, prompt, reason)


class HeaderCache:
    """What is shown of LoRA files, read anew only when a file has changed. Any thread may ask.

    Args:
        file: where it is kept, or None.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Stamps, LoraInfo]] = _read(file) if file else {}
        self._unreadable: dict[str, tuple[Stamps, str]] = {}
        self._new = 0

    def cached(self, path: Path) -> LoraInfo | None:
        """What is shown of a file, if it needn't be read for that.

        Raises:
            LoraFileError: there is no such file, or it is known as no whole safetensors file.
        """
        now, key = _stamp(path), str(path)
        damaged, known = self._unreadable.get(key), self._known.get(key)
        if damaged and damaged[0] == now:
            raise LoraFileError(damaged[1])
        return known[1] if known and known[0] == now else None

    def inspect(self, path: Path) -> LoraInfo:
        """What is shown of a file.

        Raises:
            LoraFileError: it is no whole safetensors file.
        """
        known = self.cached(path)
        if known is not None:
            return known
        now = _stamp(path)
        try:
            found = LoraInfo.of(inspect_header(path))
        except LoraFileError as error:
            if not isinstance(error.__cause__, OSError):
                self._unreadable[str(path)] = (now, str(error))
            raise
        with self._lock:
            self._known[str(path)] = (now, found)
            self._new += 1
        return found

    def save(self) -> None:
        """Write the file if there is enough that it doesn't say."""
        with self._lock:
            if self._file is None or self._new < WORTH_SAVING:
                return
            self._new = 0
            newest = list(self._known.items())[-MOST_SAVED:]
        rows = {path: [stamped, asdict(found)] for path, (stamped, found) in newest}
        write_json(self._file, {"format": FORMAT, "release": __version__, "files": rows})


@lru_cache(maxsize=8)
def header_cache(folder: Path | None) -> HeaderCache:
    """The cache that is kept in a folder, one for all who ask."""
    return HeaderCache(folder / "catalog.json" if folder else None)


def _stamp(path: Path) -> Stamps:
    try:
        return tuple(number for file in _read_with(path) for number in stamp(file))
    except OSError as error:
        raise LoraFileError(f"{path.name} can't be read ({error.strerror}). Refresh the list.") from error


def _read(file: Path) -> dict[str, tuple[Stamps, LoraInfo]]:
    content = read_json(file)
    if not isinstance(content, dict):
        return {}
    if (content.get("format"), content.get("release")) != (FORMAT, __version__):
        return {}
    try:
        return {
            path: (tuple(map(int, stamped)), LoraInfo(**{**found, "ranks": tuple(found["ranks"])}))
            for path, (stamped, found) in content["files"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
