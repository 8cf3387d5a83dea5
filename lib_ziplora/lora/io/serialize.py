"""The safetensors file of some layers in kohya's names: what is in it, where, and its header.

All of it follows from the layers' ranks and shapes; no factor is looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from ..formats.sdxl import POINTWISE_CONVOLUTION, TEXT_ATTENTION


@dataclass(frozen=True)
class Format:
    """A dtype of the file: torch's, and safetensors' word for it."""

    dtype: torch.dtype
    word: str


FORMATS = {
    "fp16": Format(torch.float16, "F16"),
    "bf16": Format(torch.bfloat16, "BF16"),
    "fp32": Format(torch.float32, "F32"),
}
# The strings that are sha256 sums of the data, and so are known last.
HASH_KEYS = {"sshs_model_hash": "", "modelspec.hash_sha256": "0x"}
HASH_LENGTH = 64
TEXT_PREFIX = "lora_te"


class Shaped(Protocol):
    """What a layer's place in a file depends on: a ``LoraLayer``, or a ``LayerShape``."""

    @property
    def rank(self) -> int: ...

    @property
    def weight_shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class LayerShape:
    """Rank and delta weight shape, (out, in) or (out, in, kh, kw), of a layer without its numbers."""

    rank: int
    weight_shape: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One tensor of the file to be."""

    word: str
    shape: tuple[int, ...]
    size: int


AnyShaped = TypeVar("AnyShaped", bound=Shaped)


def missing_text_attention(layers: Mapping[str, AnyShaped]) -> dict[str, AnyShaped]:
    """The q, k, v, out of the second text encoder that are not there -> a sibling that is.

    The WebUI has them as one module and drops all of them unless all four are there, so a file
    needs zeros in their place.
    """
    missing: dict[str, AnyShaped] = {}
    for name, layer in layers.items():
        ending = next((ending for ending in TEXT_ATTENTION if name.endswith(ending)), None)
        if ending is not None and name.startswith("lora_te2_"):
            stem = name[: -len(ending)]
            others = (stem + other for other in TEXT_ATTENTION)
            missing.update({other: layer for other in others if other not in layers})
    return missing


def text_rank(layers: Mapping[str, Shaped]) -> int:
    """The rank of every text-encoder layer of a file, the highest that one needs; 0 without any.

    Diffusers gives all layers of a text encoder the alpha that most of them have, so a file has one alpha
    for them, and with it one rank.
    """
    return max((layer.rank for name, layer in layers.items() if name.startswith(TEXT_PREFIX)), default=0)


def file_entries(
    layers: Mapping[str, Shaped], precision: str, extras: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Entry]:
    """The file's tensors by name, in the file's order: alphas, each layer's down and up, extras.

    Args:
        layers: all that the file will have, ``missing_text_attention`` included.
        precision: a key of ``FORMATS``.
        extras: shapes of what no low-rank layer holds.
    """
    names = sorted(layers)
    form = FORMATS[precision]

    def entry(shape: tuple[int, ...]) -> Entry:
        return Entry(form.word, shape, math.prod(shape) * form.dtype.itemsize)

    entries = {f"{name}.alpha": Entry("F32", (), 4) for name in names}
    for name in names:
        down, up = factor_shapes(name, layers[name])
        entries[f"{name}.lora_down.weight"] = entry(down)
        entries[f"{name}.lora_up.weight"] = entry(up)
    return {**entries, **{name: entry(shape) for name, shape in (extras or {}).items()}}


def factor_shapes(name: str, layer: Shaped) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of down and up in the file, where convolutions have four dimensions."""
    out, *columns = layer.weight_shape
    if len(columns) == 1 and name.endswith(POINTWISE_CONVOLUTION):
        columns += [1, 1]
    return (layer.rank, *columns), (out, layer.rank, *[1] * (len(columns) - 1))


def header_bytes(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of the header, padded so that the data starts at a multiple of 8."""
    table: dict[str, object] = {"__metadata__": {_clean(k): _clean(v) for k, v in metadata.items()}}
    position = 0
    for name, entry in entries.items():
        end = position + entry.size
        table[name] = {"dtype": entry.word, "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def own_strings(
    stem: str, metadata: Mapping[str, str], data_sha256: str = "0" * HASH_LENGTH
) -> dict[str, str]:
    """The header's strings, with those that follow from the file itself: its name and its data's sha256."""
    hashes = {key: prefix + data_sha256 for key, prefix in HASH_KEYS.items()}
    return {**metadata, "ss_output_name": stem, **hashes}


def _clean(text: str) -> str:
    """Text without lone surrogates, which JSON readers in other languages refuse."""
    return text.encode("utf-8", "replace").decode("utf-8")
