"""Layers -> the bytes of a safetensors file in kohya's names, tensor by tensor.

Header and data are kept apart, so that a file is written without a second copy of it in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import OutputError
from .layer import LoraLayer
from .layouts import POINTWISE_CONVOLUTION, TEXT_ATTENTION


@dataclass(frozen=True)
class Format:
    """A dtype of the file: torch's, safetensors' word for it, and its unit roundoff."""

    dtype: torch.dtype
    word: str
    roundoff: float


FORMATS = {
    "fp16": Format(torch.float16, "F16", 2.0**-11),
    "bf16": Format(torch.bfloat16, "BF16", 2.0**-8),
    "fp32": Format(torch.float32, "F32", 2.0**-24),
}
_WORDS = {form.dtype: form.word for form in FORMATS.values()}

# fp16 is even from 2^-14 to 2^15; factors whose largest entry leaves this range are balanced.
FP16_COMFORT = (2.0**-10, 2.0**14)


def complete_text_attention(layers: Mapping[str, LoraLayer]) -> dict[str, LoraLayer]:
    """The layers, with zero layers where the second text encoder's q, k, v, out are incomplete.

    The WebUI has them as one module and drops all of them unless all four are there.
    """
    result = dict(layers)
    for name, layer in layers.items():
        if not name.startswith("lora_te2_"):
            continue
        for ending in TEXT_ATTENTION:
            if name.endswith(ending):
                stem = name[: -len(ending)]
                for other in TEXT_ATTENTION:
                    result.setdefault(stem + other, _zero_layer(stem + other, layer))
    return result


def stored_tensors(
    layers: Mapping[str, LoraLayer], precision: str, extras: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The file's tensors by name, in the file's order, on the CPU.

    Raises:
        OutputError: a layer holds NaN or infinity, or numbers that the precision can't hold.
    """
    alphas = {
        f"{name}.alpha": torch.tensor(layers[name].alpha, dtype=torch.float32) for name in sorted(layers)
    }
    factors: dict[str, Tensor] = {}
    for name in sorted(layers):
        down, up = _cast(layers[name], precision)
        if down.ndim == 4 or name.endswith(POINTWISE_CONVOLUTION):
            down = down if down.ndim == 4 else down[:, :, None, None]
            up = up[:, :, None, None]
        factors[f"{name}.lora_down.weight"] = down
        factors[f"{name}.lora_up.weight"] = up
    dtype = FORMATS[precision].dtype
    others = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in (extras or {}).items()}
    for name, tensor in others.items():
        if not bool(torch.isfinite(tensor).all()):
            raise OutputError(f"{name} has numbers that {precision} can't hold. Choose bf16 or fp32.")
    return {**alphas, **factors, **others}


def data_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the data part of the file, which is what the WebUI calls a LoRA's hash."""
    digest = hashlib.sha256()
    for piece in data_pieces(tensors):
        digest.update(piece)
    return digest.hexdigest()


def header_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of the header, padded so that the data starts at a multiple of 8."""
    table: dict[str, object] = {"__metadata__": {_clean(k): _clean(v) for k, v in metadata.items()}}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.numel() * tensor.element_size()
        table[name] = {
            "dtype": _WORDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def data_pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The data part of the file, one piece a tensor, without copying."""
    for tensor in tensors.values():
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, with the components that fp16 holds badly evened out.

    Component i of up (out, rank) and down (rank, ...) is moved by a power of two, which
    changes no digit, where its largest entries leave ``FP16_COMFORT``.
    """
    ups = up.abs().amax(0)
    downs = down.flatten(1).abs().amax(1)
    lowest, highest = FP16_COMFORT
    bad = (torch.minimum(ups, downs) < lowest) | (torch.maximum(ups, downs) > highest)
    bad &= (ups > 0) & (downs > 0)
    if not bool(bad.any()):
        return up, down
    ratio = torch.where(bad, ups.double() / downs, torch.ones_like(ups, dtype=torch.float64))
    power = 2.0 ** (ratio.log2() / 2).round()
    shifted = down.double() * power.reshape(-1, *[1] * (down.ndim - 1))
    return (up.double() / power).float(), shifted.float()


def _zero_layer(name: str, like: LoraLayer) -> LoraLayer:
    """Rank 1, both factors zero; CLIP's attention projections are square."""
    width = like.columns
    return LoraLayer(name, torch.zeros(1, width), torch.zeros(width, 1), 1.0)


def _cast(layer: LoraLayer, precision: str) -> tuple[Tensor, Tensor]:
    up, down = layer.up.detach().cpu().float(), layer.down.detach().cpu().float()
    if not bool(torch.isfinite(up).all() and torch.isfinite(down).all()):
        raise OutputError(
            f"Layer {layer.name} holds NaN or infinity; nothing was written. Merge with other settings."
        )
    if precision == "fp16":
        up, down = balanced(up, down)
    dtype = FORMATS[precision].dtype
    up, down = up.to(dtype).contiguous(), down.to(dtype).contiguous()
    if not bool(torch.isfinite(up).all() and torch.isfinite(down).all()):
        raise OutputError(f"Layer {layer.name} has numbers that {precision} can't hold. Choose bf16 or fp32.")
    return down, up


def _clean(text: str) -> str:
    """Text without lone surrogates, which JSON readers in other languages refuse."""
    return text.encode("utf-8", "replace").decode("utf-8")
