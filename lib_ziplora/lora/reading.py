"""LoRA files of SDXL, of any dialect, into canonical layers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LoraFileError
from .adapters import adapter_alpha, adapter_config
from .container import DTYPES, RawHeader, TensorEntry, read_header, unreadable
from .converting import Weights, convert, is_plain, side_extras
from .header import LoraHeader, describe, require_sdxl
from .keys import LOW_RANK_PARTS, TensorName, parse
from .layer import Approximation, Lora, LoraLayer
from .lowrank import RankRule

_PAIR = frozenset(LOW_RANK_PARTS.values())


def read_lora(
    path: str | os.PathLike[str], weights: Weights | None = None, rule: RankRule | None = None
) -> Lora:
    """Read a LoRA of SDXL into canonical layers.

    The file is read once into memory and closed; the factors of LoRA and LoCon keep their dtype
    (fp8 becomes fp16, which holds it exactly) and share that memory. Layers of other families
    become low-rank layers in fp32, listed in ``approximations``; what no low-rank layer
    holds, norms and biases, is in ``extras``.

    Args:
        path: the file.
        weights: canonical module name -> the checkpoint's weight, which (IA)3, GLoRA, OFT and
            DoRA need.
        rule: the rank of layers of other families; 99.5 % of the energy by default.

    Raises:
        LoraFileError: not a whole, finite LoRA; the sentence names the file and the layer.
        UnsupportedLoraError: for another base model, or of a family that can't be read (so).
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            raw = read_header(stream, file)
            parsed = parse(raw.tensors)
            header = describe(file, raw, parsed)
            _refuse(header, parsed.duplicates, weights is not None)
            data, sha256 = _read_data(stream, file, raw)
    except OSError as error:
        raise unreadable(file, error) from error
    config = adapter_config(raw.metadata)
    layers: dict[str, LoraLayer] = {}
    extras: dict[str, Tensor] = {}
    approximations: list[Approximation] = []
    for name, keys in parsed.modules.items():
        parts = {part: _tensor(data, raw.tensors[key]) for part, key in keys.items()}
        _add_header_alpha(parts, config, parsed.names[keys["down"]] if "down" in keys else None)
        if is_plain(parts):
            layers[name] = _layer(file, name, {p: t for p, t in parts.items() if p in _PAIR})
            found = side_extras(file, name, parts, layers[name].out_features)
        else:
            converted = convert(file, name, parts, weights, rule or RankRule())
            found = converted.extras
            layers.update({name: converted.layer} if converted.layer else {})
            approximations += [converted.approximation] if converted.approximation else []
        extras.update({f"{name}.{part}": tensor for part, tensor in found.items()})
    about = (header.metadata, header.dialect, header.unknown, sha256, header.base)
    return Lora(file.stem, layers, *about, tuple(approximations), extras)


def _add_header_alpha(parts: dict[str, Tensor], config: Mapping[str, Any], name: TensorName | None) -> None:
    """The alpha that diffusers keeps in the header, as a tensor, where the module has none."""
    if name is not None and config and not parts.keys() & {"alpha", "scale"} and parts["down"].ndim:
        alpha = adapter_alpha(config, name, parts["down"].shape[0])
        if alpha is not None:
            parts["alpha"] = torch.tensor(alpha, dtype=torch.float64)


def _refuse(header: LoraHeader, duplicates: tuple[tuple[str, str, str], ...], checkpoint: bool) -> None:
    """Everything that the header alone shows to be wrong."""
    require_sdxl(header, checkpoint=checkpoint)
    for module, first, second in duplicates:
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


def _read_data(stream: BufferedReader, file: Path, raw: RawHeader) -> tuple[memoryview, str]:
    """The tensors' bytes, and the sha256 of the whole file."""
    stream.seek(0)
    digest = hashlib.sha256(stream.read(raw.data_start))
    data = memoryview(bytearray(raw.size - raw.data_start))
    done = 0
    while done < len(data):
        count = stream.readinto(data[done : done + (1 << 24)])
        if not count:
            raise LoraFileError(f"{file.name} became shorter while it was read. Try again.")
        digest.update(data[done : done + count])
        done += count
    return data, digest.hexdigest()


def _tensor(data: memoryview, entry: TensorEntry) -> Tensor:
    dtype = DTYPES[entry.dtype]
    if entry.begin == entry.end:
        return torch.empty(entry.shape, dtype=dtype)
    piece = data[entry.begin : entry.end]
    if entry.begin % dtype.itemsize:
        piece = memoryview(bytearray(piece))
    tensor = torch.frombuffer(piece, dtype=dtype).reshape(entry.shape)
    if dtype.itemsize == 1 and dtype.is_floating_point:
        return tensor.to(torch.float16)
    return tensor


def _layer(file: Path, name: str, parts: Mapping[str, Tensor]) -> LoraLayer:
    """One canonical layer of its tensors, or a LoraFileError that names it."""
    for part in ("down", "up"):
        if part not in parts:
            raise LoraFileError(
                f"{file.name}: layer {name} has no lora_{part}. Save it again with its trainer."
            )
    for part, tensor in parts.items():
        _check_numbers(file, name, part, tensor)
    down, up = _factors(file, name, parts["down"], parts["up"], parts.get("mid"))
    rank = down.shape[0]
    alpha = float(rank)
    if "scale" in parts:
        alpha = float(parts["scale"]) * rank
    elif "alpha" in parts:
        alpha = float(parts["alpha"]) * (rank / parts["down"].shape[0])
    return LoraLayer(name, down, up, alpha)


def _check_numbers(file: Path, name: str, part: str, tensor: Tensor) -> None:
    where = f"{file.name}: {part} of layer {name}"
    if part in ("alpha", "scale"):
        if tensor.numel() != 1:
            raise LoraFileError(
                f"{where} has {tensor.numel()} values instead of one. Save it again with its trainer."
            )
    elif not tensor.is_floating_point():
        raise LoraFileError(f"{where} is stored as {tensor.dtype}. Save it as fp16, bf16 or fp32.")
    elif tensor.ndim not in (2, 4) or not tensor.numel():
        shape = list(tensor.shape)
        raise LoraFileError(
            f"{where} has the shape {shape}, which no LoRA layer has. Save it again with its trainer."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise LoraFileError(
            f"{where} contains NaN or infinity: the training went wrong. Choose an earlier save of it."
        )


def _factors(file: Path, name: str, down: Tensor, up: Tensor, mid: Tensor | None) -> tuple[Tensor, Tensor]:
    """(down, up) in canonical shapes: 1x1 convolutions as matrices, ``mid`` folded into ``down``."""
    if up.ndim == 4:
        if up.shape[2:] != (1, 1):
            raise _mismatch(file, name, down, up)
        up = up.flatten(1)
    if mid is not None:
        if mid.ndim != 4 or down.shape[2:] not in ((), (1, 1)) or mid.shape[1] != down.shape[0]:
            raise _mismatch(file, name, down, mid)
        down = torch.einsum("nmkl,mj->njkl", mid.float(), down.flatten(1).float())
    if down.shape[2:] == (1, 1):
        down = down.flatten(1)
    if up.shape[1] != down.shape[0]:
        raise _mismatch(file, name, down, up)
    return down, up


def _mismatch(file: Path, name: str, down: Tensor, other: Tensor) -> LoraFileError:
    return LoraFileError(
        f"{file.name}: the tensors of layer {name} don't fit each other "
        f"({list(down.shape)} and {list(other.shape)}). Save it again with its trainer."
    )
