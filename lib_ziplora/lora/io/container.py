"""The container: a safetensors file's header, checked before anything is allocated.

Layout: 8 bytes little-endian length, that many bytes of JSON (tensor name -> dtype, shape,
data_offsets, and the strings of ``__metadata__``), then the data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeGuard

import torch

from ...errors import LoraFileError

HEADER_LIMIT = 100_000_000

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
    """A checked header: every tensor lies inside the file and none overlap."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int
    size: int


def read_header(stream: BufferedReader, file: Path) -> RawHeader:
    """Read and check the header of an open file; the stream then stands at the data.

    Raises:
        LoraFileError: anything wrong with it; the sentence names the file.
    """
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(64)
    if not start:
        raise LoraFileError(f"{file.name} is empty. Download or save it again.")
    length = int.from_bytes(start[:8], "little")
    if len(start) < 10 or start[8:9] != b"{" or length > size - 8:
        raise LoraFileError(_not_safetensors(file, start))
    if length > HEADER_LIMIT:
        raise LoraFileError(
            f"{file.name} has a header of {length} bytes, more than any LoRA has. Download it again."
        )
    stream.seek(8)
    try:
        table = json.loads(stream.read(length).decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise LoraFileError(f"{file.name} has a damaged header ({error}). Download it again.") from error
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise LoraFileError(f"{file.name} has a damaged header (metadata). Download it again.")
    tensors = {key: _entry(file, key, value) for key, value in table.items()}
    _check_places(file, tensors, size - 8 - length)
    strings = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return RawHeader(tensors, strings, 8 + length, size)


def in_file_order(raw: RawHeader) -> list[tuple[str, TensorEntry]]:
    """The tensors as they lie in the file."""
    return sorted(raw.tensors.items(), key=lambda item: (item[1].begin, item[1].end))


def read_into(stream: BufferedReader, file: Path, buffer: memoryview) -> None:
    """Fill a buffer of bytes from where the stream stands.

    Raises:
        LoraFileError: the file ends before it is full.
        OSError: the disk.
    """
    done = 0
    while done < len(buffer):
        count = stream.readinto(buffer[done:])
        if not count:
            raise LoraFileError(f"{file.name} became shorter while it was read. Try again.")
        done += count


def header_of(file: Path) -> RawHeader:
    """The checked header of a file; no tensor data is read.

    Raises:
        LoraFileError: it can't be read, or is not a whole safetensors file.
    """
    try:
        with file.open("rb") as stream:
            return read_header(stream, file)
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


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _entry(file: Path, key: str, value: object) -> TensorEntry:
    if isinstance(value, dict):
        dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
        if isinstance(dtype, str) and _sizes(shape) and _sizes(offsets) and len(offsets) == 2:
            entry = TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])
            _check_size(file, key, entry)
            return entry
    raise LoraFileError(f"{file.name} has a damaged header (tensor {key}). Download it again.")


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
