"""Ranks and shapes of a file's layers from its header alone, and from them the size of a merged file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats.families import NORM, SIDE_PARTS, is_bias_alone
from ..formats.keys import ParsedKeys
from ..formats.limits import rank_and_shape
from .container import RawHeader, header_of
from .inspect import parse_header
from .serialize import (
    TEXT_PREFIX,
    LayerShape,
    Shaped,
    file_entries,
    header_bytes,
    missing_text_attention,
    own_strings,
    text_rank,
)


@dataclass(frozen=True)
class FileShapes:
    """The layers of a file by its header.

    Attributes:
        layers: canonical name -> rank and shape; of families that become low-rank layers only when they
            are read, the highest rank that they can get.
        extras: name, as in ``Lora.extras`` -> shape.
        unknown: canonical names of layers whose shape the header doesn't say, because the
            family changes the checkpoint's own weight.
    """

    layers: Mapping[str, LayerShape]
    extras: Mapping[str, tuple[int, ...]]
    unknown: tuple[str, ...] = ()


def file_shapes(path: str | os.PathLike[str]) -> FileShapes:
    """What a file's header says of its layers' ranks and shapes; no tensor data is read.

    Raises:
        LoraFileError: not a whole safetensors file.
    """
    file = Path(path)
    raw = header_of(file)
    return shapes_of(raw, parse_header(file, raw))


def shapes_of(raw: RawHeader, parsed: ParsedKeys) -> FileShapes:
    """``file_shapes`` of a header that has been read; layers that don't fit themselves are ``unknown``."""
    layers: dict[str, LayerShape] = {}
    extras: dict[str, tuple[int, ...]] = {}
    unknown = []
    for name, keys in parsed.modules.items():
        parts = {part: raw.tensors[key].shape for part, key in keys.items()}
        if parts.keys() & NORM:
            extras.update({f"{name}.{part}": shape for part in NORM for shape in parts.values()})
            continue
        extras.update({f"{name}.diff_b": parts[part] for part in SIDE_PARTS if part in parts})
        if is_bias_alone(parts):
            continue
        found = _told(name, parts)
        if found is None:
            unknown.append(name)
        elif parsed.start(name):  # the adapter's own rank, and that of what beginning it took off
            layers[name] = LayerShape(min(2 * found.rank, *found.weight_shape), found.weight_shape)
        else:
            layers[name] = found
    return FileShapes(layers, extras, tuple(unknown))


def merged_shapes(
    sources: Sequence[Mapping[str, Shaped]], rank: int | float | None = None
) -> dict[str, LayerShape]:
    """The layers that merging the sources gives.

    Args:
        sources: the layers of each LoRA that go into the file (``Lora.layers``, ``FileShapes.layers``).
        rank: None keeps all of every source; a whole number is the highest rank of a layer;
            a fraction, the share of energy to keep, gives the highest rank that it can need.
    """
    merged: dict[str, LayerShape] = {}
    for name in dict.fromkeys(name for source in sources for name in source):
        found = [source[name] for source in sources if name in source]
        whole, shape = sum(layer.rank for layer in found), found[0].weight_shape
        full = min(whole, shape[0], math.prod(shape[1:]))
        if isinstance(rank, float):
            whole = full
        elif rank is not None and whole > rank:
            whole = min(full, rank)
        merged[name] = LayerShape(whole, shape)
    return merged


def expected_size(
    sources: Sequence[Mapping[str, Shaped]],
    precision: str = "fp16",
    rank: int | float | None = None,
    extras: Mapping[str, tuple[int, ...]] | None = None,
    metadata: Mapping[str, str] | None = None,
    name: str = "",
) -> int:
    """Bytes of the file that ``write_lora`` makes of the merged sources, before they are merged.

    Exact, but for strings that are not in ``metadata``, when ``rank`` is None or a whole number and no
    layer is of lower rank than its factors are; otherwise the most that it can be. A split file is
    that of one source.

    Args:
        sources: the layers of each LoRA that go into the file (``Lora.layers``, ``FileShapes.layers``).
        precision: ``fp16``, ``bf16`` or ``fp32``.
        rank: as in ``merged_shapes``.
        extras: shapes of what no low-rank layer holds, of all sources together.
        metadata: the header's strings, as far as they are known.
        name: the file's stem, which is one of them.
    """
    layers: dict[str, LayerShape] = merged_shapes(sources, rank)
    layers.update(missing_text_attention(layers))
    text = text_rank(layers)
    written = {
        key: LayerShape(text, layer.weight_shape) if key.startswith(TEXT_PREFIX) else layer
        for key, layer in layers.items()
    }
    entries = file_entries(written, precision, extras)
    header = header_bytes(entries, own_strings(name, metadata or {}))
    return len(header) + sum(entry.size for entry in entries.values())


def _told(name: str, parts: Mapping[str, tuple[int, ...]]) -> LayerShape | None:
    try:
        told = rank_and_shape(name, parts)
    except ValueError:
        return None
    if told is None:
        return None
    rank, shape = told
    return LayerShape(rank, shape[:2] if shape[2:] == (1, 1) else shape)
