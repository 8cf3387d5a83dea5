"""The safetensors container: its header, checked before anything is allocated.

Layout: 8 bytes little-endian length, that many bytes of JSON (tensor name -> dtype, shape,
data_offsets, and the strings of ``__metadata__``), then the data. A header is read piece by piece and refused at
the first piece that no LoRA has, so that a hostile one costs little more than its own bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeGuard

import torch

from ...errors import LoraFileError
from ..untrusted_json import Scanner

# What the header of a LoRA, or of the checkpoint that somebody takes for one, needs at most. Training tags
# take up to some 60 MB.
HEADER_LIMIT = 100_000_000
TENSOR_LIMIT = 8_192
METADATA_LIMIT = 8_192
DIMENSION_LIMIT = 8
SIZE_LIMIT = 1 << 28
# Characters of a tensor's entry.
ENTRY_LIMIT = 400

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_CONVERT = (
    "Open it in a program you trust it with and save its tensors with safetensors.torch.save_file, "
    "or get the file as .safetensors"
)
# First bytes -> what the file is.
MAGIC = (
    (b"PK\x03\x04", f"is a pickle (a torch .pt or .ckpt file), which can run code when opened. {_CONVERT}"),
    (b"\x80", f"is a pickle, which can run code when opened. {_CONVERT}"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself. Download the file"),
    (b"<", "is a web page, not a LoRA: the download went wrong. Download it again"),
    (b"GGUF", "is a GGUF file. Get the LoRA as .safetensors"),
)


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: ``begin`` and ``end`` count from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class RawHeader:
    """A checked header: every tensor lies inside the file and none overlap.

    ``version`` is what ``version`` said of the file before the header was read.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int
    size: int
    version: tuple[int, int]


def version(stream: BufferedReader) -> tuple[int, int]:
    """(size in bytes, time of the last change in ns) of an open file; both stay while nobody writes to it."""
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


def read_header(stream: BufferedReader, file: Path) -> RawHeader:
    """Read and check the header of an open file.

    Raises:
        LoraFileError: anything wrong with it; the sentence names the file.
        OSError: the disk.
    """
    before = version(stream)
    size = before[0]
    start = stream.read(64)
    if not start:
        raise LoraFileError(f"{file.name} is empty. Download or save it again.")
    length = int.from_bytes(start[:8], "little")
    if len(start) < 10 or start[8:9] != b"{" or length > size - 8:
        raise LoraFileError(_not_safetensors(file, start))
    if length > HEADER_LIMIT:
        raise _too_much(file, f"a header of {length} bytes")
    stream.seek(8)
    try:
        tensors, metadata = _parsed(file, stream.read(length).decode("utf-8"))
    except ValueError as error:
        raise LoraFileError(f"{file.name} has a damaged header ({error}). Download it again.") from error
    _check_places(file, tensors, size - 8 - length)
    return RawHeader(tensors, metadata, 8 + length, size, before)


def _parsed(file: Path, text: str) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """(tensors, metadata) of a header's text.

    Raises:
        ValueError: it is no JSON object, or a name occurs twice.
        LoraFileError: it holds what no header of a LoRA does.
    """
    tensors: dict[str, TensorEntry] = {}
    metadata: dict[str, str] | None = None
    if text.count('"data_offsets"') > TENSOR_LIMIT:
        raise _too_much(file, f"over {TENSOR_LIMIT} tensors")
    scanner = Scanner(text)
    for key in scanner.members():
        if key in tensors or (key == "__metadata__" and metadata is not None):
            raise ValueError("a name occurs twice")
        if key == "__metadata__":
            metadata = _strings(file, scanner)
        else:
            tensors[key] = _entry(file, key, scanner.flat_object(ENTRY_LIMIT))
        if len(tensors) > TENSOR_LIMIT:
            raise _too_much(file, f"over {TENSOR_LIMIT} tensors")
    scanner.end()
    return tensors, metadata or {}


def _strings(file: Path, scanner: Scanner) -> dict[str, str]:
    """The metadata, strings by name; null is none."""
    strings: dict[str, str] = {}
    if not scanner.stands_at("{"):
        if scanner.scalar() is not None:
            raise ValueError("metadata")
        return strings
    for key in scanner.members():
        if key in strings:
            raise ValueError("a name occurs twice")
        strings[key] = scanner.string() if scanner.stands_at('"') else json.dumps(scanner.scalar())
        if len(strings) > METADATA_LIMIT:
            raise _too_much(file, f"over {METADATA_LIMIT} strings of metadata")
    return strings


def header_of(file: Path) -> RawHeader:
    """The checked header of a file; no tensor data is read.

    Raises:
        LoraFileError: it can't be read, or is not a whole safetensors file.
    """
    with reading(file), file.open("rb") as stream:
        return read_header(stream, file)


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns an error of the disk into a LoraFileError."""
    try:
        yield
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: OSError) -> LoraFileError:
    """The error for a file that can't be opened or read."""
    return LoraFileError(
        f"{file} can't be read ({error.strerror or error}). Check that it exists and may be read."
    )


def _not_safetensors(file: Path, start: bytes) -> str:
    for magic, what in MAGIC:
        if start.startswith(magic):
            return f"{file.name} {what}."
    if start[8:9] == b"{":
        return f"{file.name} is cut off: its header is longer than the file. Download it again."
    return f"{file.name} is not a safetensors file, or a damaged one. Download it again as .safetensors."


def _entry(file: Path, key: str, value: Any) -> TensorEntry:
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not (isinstance(dtype, str) and _sizes(shape) and _sizes(offsets) and len(offsets) == 2):
        raise LoraFileError(f"{file.name} has a damaged header (tensor {key}). Download it again.")
    if len(shape) > DIMENSION_LIMIT or max(shape, default=0) > SIZE_LIMIT:
        raise _too_much(file, f"dimensions in tensor {key}")
    entry = TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])
    _check_size(file, key, entry)
    return entry


def _too_much(file: Path, what: str) -> LoraFileError:
    return LoraFileError(f"{file.name} has {what}, more than any LoRA has. Download it again.")


def _check_size(file: Path, key: str, entry: TensorEntry) -> None:
    if entry.dtype not in DTYPES:
        raise LoraFileError(
            f"{file.name}: tensor {key} has the dtype {entry.dtype}. Save it as fp16, bf16 or fp32."
        )
    if entry.end - entry.begin != math.prod(entry.shape) * DTYPES[entry.dtype].itemsize:
        raise LoraFileError(
            f"{file.name}: tensor {key} has another size than its shape says. Download it again."
        )


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_places(file: Path, tensors: Mapping[str, TensorEntry], data_size: int) -> None:
    """Tensors must fill the data without overlap; anything else is a truncated or forged file."""
    position = 0
    for key, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise LoraFileError(f"{file.name}: tensor {key} is not where its header says. Download it again.")
        position = entry.end
    if position > data_size:
        raise LoraFileError(
            f"{file.name} is cut off: {data_size} bytes of tensors are there, {position} are needed. Download it again."
        )
    if position < data_size:
        raise LoraFileError(
            f"{file.name} has {data_size - position} bytes too many at its end. Download it again."
        )
