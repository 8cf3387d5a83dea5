"""The file beside a merged LoRA that holds what was learnt: ``<name>.ziplora``.

A safetensors file under another ending, so that no program lists it as a LoRA: one fp32 vector
``<number of the LoRA>.<layer>`` for every layer of every LoRA, and one header string of JSON.
fp32 because that is what was learnt: with fp16 a merge that is made again from the vectors would
not be the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import LoraFileError
from ..algebra import Vectors
from ..untrusted_json import load_json
from .atomic import taken
from .container import RawHeader, read_header, unreadable
from .serialize import Entry, header_bytes

ENDING = ".ziplora"
KEY = "ziplora"
FORMAT = 1
# More than a merge can have.
LORA_LIMIT = 64


@dataclass(frozen=True)
class Sidecar:
    """What such a file holds.

    Attributes:
        vectors: for each LoRA, layer name -> (columns,), fp32.
        about: plain data; the writer's business.
    """

    vectors: tuple[Vectors, ...]
    about: Mapping[str, Any]

    def pack(self) -> bytes:
        """The whole file; the same content gives the same bytes.

        The header is our own: that of safetensors 0.4.2 is no JSON where there is no vector.
        """
        tensors = {
            f"{index}.{name}": vector.detach().cpu().float()
            for index, vectors in enumerate(self.vectors)
            for name, vector in sorted(vectors.items())
        }
        entries = {name: Entry("F32", tuple(v.shape), v.numel() * 4) for name, v in tensors.items()}
        about = {"format": FORMAT, "loras": len(self.vectors), "about": self.about}
        header = header_bytes(entries, {KEY: json.dumps(about, sort_keys=True)})
        return header + b"".join(vector.numpy().tobytes() for vector in tensors.values())


def sidecar_path(lora: Path) -> Path:
    """Where the coefficients of a merged file are: beside it, under its name."""
    return lora.with_suffix(ENDING)


def check_sidecar(lora: Path, overwrite: bool) -> None:
    """Raise OutputError when the coefficients of a LoRA that is yet to be written have no free place."""
    path = sidecar_path(lora)
    if os.path.lexists(path) and (path.is_dir() or not overwrite):
        raise taken(path)


def write_sidecar(path: Path, content: bytes) -> None:
    """Write packed coefficients to a new file of ``atomic_writes``, flushed to the disk."""
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def read_sidecar(path: Path) -> tuple[Sidecar, str]:
    """Read coefficients; nothing in the file is run, and nothing is allocated beyond its size.

    Returns:
        The content and the sha256 of the whole file.

    Raises:
        LoraFileError: it can't be read, is damaged, or was written by a later version.
    """
    try:
        with path.open("rb") as stream:
            raw = read_header(stream, path)
            stream.seek(0)
            content = bytearray(stream.read(raw.size))
    except OSError as error:
        raise unreadable(path, error) from error
    except LoraFileError as error:
        raise damaged(path) from error
    if len(content) < raw.size:
        raise damaged(path)
    count, about = _about(path, raw)
    return Sidecar(_vectors(path, raw, content, count), about), hashlib.sha256(content).hexdigest()


def damaged(path: Path) -> LoraFileError:
    """The error for coefficients that are not whole."""
    return LoraFileError(f"{path.name} is damaged, so nothing is known of its merge any more. Merge again.")


def _about(path: Path, raw: RawHeader) -> tuple[int, Mapping[str, Any]]:
    try:
        table = load_json(raw.metadata[KEY])
        written, count, about = table["format"], table["loras"], table["about"]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path) from error
    if type(written) is int and written > FORMAT:
        raise LoraFileError(f"{path.name} was written by a later version of ZipLoRA. Update ZipLoRA.")
    if type(count) is not int or not 0 < count <= LORA_LIMIT or not isinstance(about, dict):
        raise damaged(path)
    return count, about


def _vectors(path: Path, raw: RawHeader, content: bytearray, count: int) -> tuple[Vectors, ...]:
    found: list[dict[str, Tensor]] = [{} for _ in range(count)]
    numbers = {str(index): index for index in range(count)}
    for key, entry in raw.tensors.items():
        number, _, name = key.partition(".")
        if entry.dtype != "F32" or len(entry.shape) != 1 or entry.begin == entry.end:
            raise damaged(path)
        if number not in numbers:
            raise damaged(path)
        start = raw.data_start + entry.begin
        vector = torch.frombuffer(content, dtype=torch.float32, count=entry.shape[0], offset=start)
        if not bool(torch.isfinite(vector).all()):
            raise damaged(path)
        found[numbers[number]][name] = vector
    return tuple(found)
