"""LoRA files of SDXL, of any dialect, into canonical layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from ...errors import LoraFileError
from ..formats.convert import Weights, convert
from ..formats.families import family_of, needs_weight, rank_of
from ..formats.keys import ParsedKeys, TensorName
from ..formats.peft_config import AdapterConfigs
from ..layer import Lora
from ..lowrank import RankRule
from .container import DTYPES, RawHeader, TensorEntry, read_header, reading, version
from .digest import Digest
from .inspect import LoraHeader, describe, parse_header, require_sdxl

# Bytes that are read at a time.
CHUNK = 1 << 22


def read_lora(
    path: str | os.PathLike[str],
    weights: Weights | None = None,
    rule: RankRule | None = None,
    on_step: Callable[[], None] | None = None,
    *,
    text: bool = True,
) -> Lora:
    """Read a LoRA of SDXL into canonical layers.

    The file is read once, into memory, and closed; size and sha256 are those of the bytes that were read.
    The factors of LoRA and LoCon keep their dtype (fp8 becomes fp16, which holds it exactly; fp64
    becomes fp32) and share those bytes. Layers of other families become low-rank layers in fp32, listed
    in ``approximations``; what no low-rank layer holds, norms and biases, is in ``extras``.

    Args:
        path: the file.
        weights: canonical module name -> the checkpoint's weight, which (IA)3, GLoRA, OFT, DoRA, PiSSA and OLoRA
            need.
        rule: the rank of layers of other families; 99.5 % of the energy by default.
        on_step: called for every few megabytes and before each layer, which can take a second in
            some families; what it raises ends the reading.
        text: whether text encoder layers that need the checkpoint's weight are read; they are left out otherwise.

    Raises:
        LoraFileError: not a whole, finite LoRA; the sentence names the file and the layer.
        UnsupportedLoraError: for another base model, or of a family that can't be read (so).
    """
    file, step = Path(path), on_step or (lambda: None)
    with reading(file):
        stream = file.open("rb")
    with stream:
        with reading(file):
            raw = read_header(stream, file)
        parsed = parse_header(file, raw)
        header = describe(file, raw, parsed)
        require_sdxl(header, checkpoint=weights is not None, text=text)
        _refuse(header, parsed)
        content, sha256 = _read(stream, file, raw, step)
    configs = AdapterConfigs(file, raw.metadata)
    converted = {}
    for name, keys in parsed.modules.items():
        step()
        start = parsed.start(name)
        if not text and name.startswith("lora_te") and (start or needs_weight(keys)):
            continue
        parts = {part: _tensor(content, raw, raw.tensors[key]) for part, key in keys.items()}
        parts |= _configured_scale(parts, parsed.names[next(iter(keys.values()))], configs)
        converted[name] = convert(file, name, parts, weights, rule or RankRule(), start)
    return Lora(
        name=file.stem,
        layers={name: item.layer for name, item in converted.items() if item.layer is not None},
        metadata=header.metadata,
        dialect=header.dialect,
        unknown=header.unknown,
        sha256=sha256,
        size=raw.size,
        base=header.base,
        approximations=tuple(
            item.approximation for item in converted.values() if item.approximation is not None
        ),
        extras={f"{name}.{part}": t for name, item in converted.items() for part, t in item.extras.items()},
    )


def _configured_scale(
    parts: Mapping[str, Tensor], name: TensorName, configs: AdapterConfigs
) -> dict[str, Tensor]:
    """The ``scale`` that PEFT's configuration gives a module whose own tensors give none; empty where neither does."""
    if parts.keys() & {"alpha", "scale"} or not all(tensor.numel() for tensor in parts.values()):
        return {}
    scaling = configs.of(name).scaling(name.dotted, family_of(parts), rank_of(parts))
    return {} if scaling is None else {"scale": torch.tensor(scaling, dtype=torch.float64)}


def _read(
    stream: BufferedReader, file: Path, raw: RawHeader, step: Callable[[], None]
) -> tuple[memoryview, str]:
    """All bytes of an open file, in memory of our own, and their sha256.

    Raises:
        LoraFileError: the file was changed since its header was read.
    """
    # Empty memory of torch's: numpy's may ask for huge pages, Python's is filled with zeros.
    content = torch.empty(raw.size, dtype=torch.uint8).numpy().data
    stream.seek(0)
    with Digest() as digest:
        for start in range(0, raw.size, CHUNK):
            step()
            chunk = content[start : start + CHUNK]
            with reading(file):
                count = stream.readinto(chunk)
            if count < len(chunk):
                raise _changed(file)
            digest.update(chunk)
        sha256 = digest.hexdigest()
    if version(stream) != raw.version:
        raise _changed(file)
    return content, sha256


def _changed(file: Path) -> LoraFileError:
    return LoraFileError(f"{file.name} was changed by another program while it was read. Try again.")


def _refuse(header: LoraHeader, parsed: ParsedKeys) -> None:
    """What else the header alone shows to be wrong."""
    for module, first, second in parsed.duplicates:
        raise LoraFileError(
            f"{header.path.name} has layer {module} twice, as {first} and as {second}. "
            "Remove one of them, or save the LoRA again with its trainer."
        )
    if not header.layers:
        raise LoraFileError(
            f"{header.path.name} has no LoRA layer in it{_what_else(header)}. Choose a LoRA file."
        )


def _what_else(header: LoraHeader) -> str:
    keys = header.unknown
    if any(key.startswith(("model.diffusion_model.", "first_stage_model.", "conditioner.")) for key in keys):
        return ": it is a whole checkpoint"
    if any(key.startswith(("emb_params", "clip_l", "clip_g", "string_to_param")) for key in keys):
        return ": it is a textual inversion embedding"
    return f" (its first tensor is {keys[0]})" if keys else ""


def _tensor(content: memoryview, raw: RawHeader, entry: TensorEntry) -> Tensor:
    dtype = DTYPES[entry.dtype]
    if entry.begin == entry.end:
        return torch.empty(0, dtype=dtype)
    data = torch.frombuffer(
        content[raw.data_start + entry.begin : raw.data_start + entry.end], dtype=torch.uint8
    )
    if data.data_ptr() % dtype.itemsize:
        data = data.clone()
    tensor = data.view(dtype).reshape(entry.shape)
    if dtype.itemsize == 1 and dtype.is_floating_point:
        return tensor.to(torch.float16)
    return tensor.float() if dtype is torch.float64 else tensor
