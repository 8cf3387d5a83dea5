"""What the disk holds is compared with what was written, and a new file's header with the layers it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import LoraFileError, OutputError
from ..formats.keys import ParsedKeys, parse
from ..layer import LoraLayer
from .container import RawHeader, read_header
from .inspect import describe, unsupported_reason
from .size import shapes_of


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        name: the file's, for people.
        header: its bytes, length included.
        data_sha256: of the data, lower-case hex.
        layers: by canonical name, as they were meant.
    """

    name: str
    header: bytes
    data_sha256: str
    layers: Mapping[str, LoraLayer]


class ReadBack:
    """Writes bytes, reads each megabyte back at once and compares it, while it is still in memory.

    Args:
        name: the file's, for people.
        stream: where to write.
        again: the same file, opened for reading without a buffer and standing at the same place.
    """

    SIZE = 1 << 20

    def __init__(self, name: str, stream: BufferedWriter, again: FileIO) -> None:
        self._name, self._stream, self._again = name, stream, again
        self._memory = memoryview(bytearray(self.SIZE))

    def update(self, data: memoryview) -> None:
        """Write, read and compare.

        Raises:
            OutputError: it is read back differently.
            OSError: the disk.
        """
        self._stream.write(data)
        self._stream.flush()
        for start in range(0, len(data), self.SIZE):
            meant = data[start : start + self.SIZE]
            found = self._memory[: len(meant)]
            if not self._fill(found) or not np.array_equal(_numbers(found), _numbers(meant)):
                raise _different(self._name)

    def _fill(self, part: memoryview) -> bool:
        """Read as much as there is place for; whether there was so much."""
        done = 0
        while done < len(part) and (count := self._again.readinto(part[done:])):
            done += count
        return done == len(part)


def _numbers(data: memoryview) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(data, np.uint8)


def verify(file: Path, written: Written) -> None:
    """Compare a file's size and header with what was meant; its data was compared by ``ReadBack``.

    Raises:
        OutputError: it is not what was meant, or can't be read.
        OSError: the disk.
    """
    try:
        with file.open("rb") as stream:
            raw = read_header(stream, file)
            stream.seek(0)
            same = stream.read(raw.data_start) == written.header
            if not same or not _holds(file, raw, parse(raw.tensors), written):
                raise _different(written.name)
    except LoraFileError as error:
        raise OutputError(f"{written.name} could not be read back, so it was not kept: {error}") from error


def _holds(file: Path, raw: RawHeader, parsed: ParsedKeys, written: Written) -> bool:
    """Whether our own reader finds the layers that were meant, and nothing else."""
    shapes = shapes_of(raw, parsed)
    meant = {name: (layer.rank, layer.weight_shape) for name, layer in written.layers.items()}
    found = {name: (shape.rank, shape.weight_shape) for name, shape in shapes.layers.items()}
    reason = unsupported_reason(describe(file, raw, parsed))
    return meant == found and not (parsed.unknown or parsed.duplicates or reason)


def _different(name: str) -> OutputError:
    return OutputError(
        f"{name} was read back differently from what was written, so it was not kept. "
        "Check the disk and try again."
    )
