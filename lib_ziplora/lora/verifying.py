"""Read a new file back from start to end and compare it with what was meant, without holding it in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from torch import Tensor

from ..errors import LoraFileError, OutputError
from .casting import Trace, signs
from .container import DTYPES, RawHeader, in_file_order, read_header, read_into
from .digest import Crc32, Ring
from .header import describe, unsupported_reason
from .keys import ParsedKeys, parse
from .layer import LoraLayer
from .shapes import shapes_of


@dataclass(frozen=True)
class Written:
    """What was written, and how the layers that it was made of act.

    Attributes:
        name: the file's, for people.
        header: its bytes, length included.
        data_crc: CRC-32 of the data.
        layers: by canonical name, as they were meant.
        traces: their traces.
        precision: of the factors in the file.
    """

    name: str
    header: bytes
    data_crc: int
    layers: Mapping[str, LoraLayer]
    traces: Mapping[str, Trace]
    precision: str


def verify(file: Path, written: Written) -> str:
    """Compare a file with what was meant: every byte by checksum, every delta weight by its trace.

    Returns:
        sha256 of the file, lower-case hex.

    Raises:
        OutputError: it is not what was meant, or can't be read.
        OSError: the disk.
    """
    whole, crc = hashlib.sha256(), Crc32()
    try:
        with file.open("rb") as stream:
            raw = read_header(stream, file)
            parsed = parse(raw.tensors)
            _compare_headers(stream, file, raw, parsed, written)
            whole.update(written.header)
            comparison = _Comparison(raw, parsed, written)
            ring = Ring(max(entry.end - entry.begin for entry in raw.tensors.values()))
            with ring.digest(whole, crc) as digest:
                for key, data in _pieces(stream, file, raw, ring):
                    digest.update(data.numpy().data)
                    comparison.add(key, data)
    except LoraFileError as error:
        raise OutputError(f"{written.name} could not be read back, so it was not kept: {error}") from error
    if crc.value != written.data_crc:
        raise _different(written)
    if comparison.wrong:
        raise OutputError(
            f"Layer {comparison.wrong[0]} of {written.name} loses too much in {written.precision}, so the file was "
            "not kept. Choose bf16 or fp32."
        )
    return whole.hexdigest()


def _compare_headers(
    stream: BufferedReader, file: Path, raw: RawHeader, parsed: ParsedKeys, written: Written
) -> None:
    """The header is the one that was written, and our own reader finds the layers in it that were meant."""
    stream.seek(0)
    same = stream.read(raw.data_start) == written.header
    shapes = shapes_of(raw, parsed)
    meant = {name: (layer.rank, layer.weight_shape) for name, layer in written.layers.items()}
    found = {name: (shape.rank, shape.weight_shape) for name, shape in shapes.layers.items()}
    reason = unsupported_reason(describe(file, raw, parsed))
    if not same or meant != found or parsed.unknown or parsed.duplicates or reason:
        raise _different(written)


def _pieces(stream: BufferedReader, file: Path, raw: RawHeader, ring: Ring) -> Iterator[tuple[str, Tensor]]:
    """Every tensor's bytes as they lie in the file."""
    for key, entry in in_file_order(raw):
        data = ring.take(entry.end - entry.begin)
        read_into(stream, file, data.numpy().data)
        yield key, data


class _Comparison:
    """Each layer's response to the signs must be the one that it was meant to have; ``wrong`` are those that differ."""

    def __init__(self, raw: RawHeader, parsed: ParsedKeys, written: Written) -> None:
        self._parts = {
            key: (name, part) for name, keys in parsed.modules.items() for part, key in keys.items()
        }
        self._raw = raw
        self._written = written
        self._scalings: dict[str, float] = {}
        self._inner: dict[str, Tensor] = {}
        self.wrong: list[str] = []

    def add(self, key: str, data: Tensor) -> None:
        """The next tensor of the file; alpha comes before down, and down before up."""
        (name, part), entry = self._parts[key], self._raw.tensors[key]
        tensor = data.view(DTYPES[entry.dtype])
        if part == "alpha":
            self._scalings[name] = float(tensor) / self._written.layers[name].rank
        elif part == "down":
            columns = self._written.layers[name].columns
            self._inner[name] = tensor.view(-1, columns).float() @ signs(columns)
        elif part == "up":
            image = tensor.view(entry.shape[:2]).float() @ self._inner.pop(name)
            if not self._written.traces[name].agrees(self._scalings[name] * image):
                self.wrong.append(name)


def _different(written: Written) -> OutputError:
    return OutputError(
        f"{written.name} was read back differently from what was written, so it was not kept. "
        "Check the disk and try again."
    )
