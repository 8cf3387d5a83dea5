"""One module's tensors, of any family, into a canonical layer or into what no layer holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import LoraFileError, UnsupportedLoraError
from ..layer import Approximation, LoraLayer
from ..lowrank import RankRule, from_dense
from .deltas import magnitude_on_outputs
from .families import (
    FAMILIES,
    MAGNITUDES,
    NORM,
    RELATIVE,
    SIDE_PARTS,
    delta_weight,
    family_of,
    is_bias_alone,
    named_family,
    scaling,
    uses_alpha,
)
from .limits import check_affordable, rank_and_shape, weight_shape
from .sdxl import largest_weight

Parts = Mapping[str, Tensor]
Weights = Callable[[str], "Tensor | None"]
"""Canonical module name -> the checkpoint's weight, or None where it has no such module."""

PAIR = frozenset({"down", "up", "mid"})
# Parts of a single number.
SINGLE = frozenset({"alpha", "scale", "on_input"})
# The bit patterns of infinity; those of NaN are above.
_INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}


@dataclass(frozen=True)
class Converted:
    """What a module became: a layer, how nearly, and the extra tensors by part."""

    layer: LoraLayer | None
    approximation: Approximation | None
    extras: dict[str, Tensor]


def convert(
    file: Path, name: str, parts: Parts, weights: Weights | None, rule: RankRule, start: str = ""
) -> Converted:
    """A module's tensors, of any family, fp64 cast to fp32 already.

    LoRA and LoCon are exact as they are, without an approximation.

    Args:
        file: what errors name.
        name: canonical module name.
        parts: its tensors.
        weights: the checkpoint's.
        rule: the rank of what is not exact as it is.
        start: ``pissa`` or ``olora``, where training began with a part of the weight taken off.

    Raises:
        LoraFileError: tensors that are incomplete, not finite, or don't fit each other.
        UnsupportedLoraError: the delta weight needs the checkpoint's weight, which isn't there.
    """
    if "alpha" in parts and not uses_alpha(parts):
        parts = {part: tensor for part, tensor in parts.items() if part != "alpha"}
    _check_numbers(file, name, parts)
    if is_bias_alone(parts):
        return Converted(None, None, {"diff_b": parts["diff_b"].float().flatten()})
    family = named_family(parts)
    if start and family in ("lora", "dora"):
        family = start
    if family == "lora" or (family is None and _is_broken_pair(parts)):
        layer = _pair(file, name, parts)
        approximation = None
    elif family is None:
        raise LoraFileError(
            f"{file.name}: layer {name} has only {', '.join(sorted(parts))}, which is not enough of any kind "
            "of LoRA. Save it again with its trainer."
        )
    elif family == "norm":
        there = next(parts[part] for part in NORM if part in parts)
        norm = {part: parts.get(part, torch.zeros_like(there)).float().flatten() for part in sorted(NORM)}
        if len({tensor.numel() for tensor in norm.values()}) > 1:
            raise LoraFileError(
                f"{file.name}: w_norm and b_norm of layer {name} don't fit each other. Save it again with its trainer."
            )
        return Converted(None, None, norm)
    else:
        weight = _weight(file, name, family, weights) if family in RELATIVE else None
        try:
            layer, found = _low_rank(name, parts, weight, rule, start)
        except (RuntimeError, ValueError, IndexError) as error:
            shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in sorted(parts.items()))
            raise LoraFileError(
                f"{file.name}: the tensors of layer {name} don't fit each other or the model ({shapes}). "
                "Save it again with its trainer, or choose the checkpoint that it was trained on."
            ) from error
        approximation = Approximation(found.layer, family, found.rank, found.error, found.norm)
    _check_result(file, layer)
    return Converted(layer, approximation, _side_extras(file, name, parts, layer.out_features))


def _is_broken_pair(parts: Parts) -> bool:
    return bool(PAIR & parts.keys()) or parts.keys() <= {"alpha", "scale", *SIDE_PARTS}


def _check_result(file: Path, layer: LoraLayer) -> None:
    """Raise LoraFileError where finite tensors have made a layer whose scaled factors are not, in fp32."""
    up = layer.up.float() * layer.scaling if abs(layer.scaling) > 1 else layer.up
    if not (is_finite(up) and is_finite(layer.down) and math.isfinite(layer.alpha)):
        raise _too_large(file, f"layer {layer.name}")


def _too_large(file: Path, where: str) -> LoraFileError:
    return LoraFileError(
        f"{file.name}: {where} has numbers too large to compute with: the training went wrong. "
        "Choose an earlier save of it."
    )


def _side_extras(file: Path, name: str, parts: Parts, features: int) -> dict[str, Tensor]:
    """The bias difference that a layer has beside its delta weight, as ``diff_b``.

    PEFT's ``lora_B.bias`` is one too, scaled like the layer.
    """
    extras = {}
    for part in SIDE_PARTS & parts.keys():
        bias = parts[part].float().flatten()
        if bias.numel() != features:
            raise LoraFileError(
                f"{file.name}: {part} of layer {name} has {bias.numel()} values instead of {features}. "
                "Save it again with its trainer."
            )
        extras["diff_b"] = bias if part == "diff_b" else bias * scaling(parts)
        if not is_finite(extras["diff_b"]):
            raise _too_large(file, f"{part} of layer {name}")
    return extras


def _low_rank(
    name: str, parts: Parts, weight: Tensor | None, rule: RankRule, start: str
) -> tuple[LoraLayer, Approximation]:
    family = family_of(parts)
    shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    told = rank_and_shape(name, shapes)
    if told is not None:
        check_affordable(name, shapes, told[1])
    if weight is not None:
        _check_weight(name, shapes, told, tuple(weight.shape))
        return from_dense(name, delta_weight(parts, weight=weight, start=start), rule)
    if told is None:
        raise ValueError(f"{family} has no shape of its own")
    shape = told[1]
    low_rank = None if family is None else FAMILIES[family].low_rank
    if low_rank is not None:
        return low_rank(name, parts, scaling(parts), shape[1:], rule)
    return from_dense(name, delta_weight(parts, shape), rule)


def _check_weight(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    told: tuple[int, tuple[int, ...]] | None,
    weight: tuple[int, ...],
) -> None:
    """Raise ValueError unless the tensors are for a weight of this shape."""
    weight_shape(name, weight)
    wrong = told is not None and math.prod(told[1]) != math.prod(weight)
    if wrong:
        raise ValueError(f"the checkpoint's layer has the shape {weight}")
    for part in MAGNITUDES & shapes.keys():
        magnitude_on_outputs(shapes[part], weight, part == "magnitude")


def _weight(file: Path, name: str, family: str, weights: Weights | None) -> Tensor:
    weight = None if weights is None else weights(name)
    if weight is not None:
        return weight
    if weights is None:
        what = (
            "which changes the checkpoint's own weights and can't be read without them. Choose a checkpoint "
            "(--checkpoint on the command line), or convert the file to a plain LoRA."
        )
    else:
        what = "but the checkpoint has no such layer. Choose the checkpoint that it was trained on."
    raise UnsupportedLoraError(f"{file.name}: layer {name} is {FAMILIES[family].label}, {what}")


def _pair(file: Path, name: str, parts: Parts) -> LoraLayer:
    """The layer of a LoRA or LoCon, with the bytes of its factors where nothing must be computed."""
    for part in ("down", "up"):
        if part not in parts:
            raise LoraFileError(
                f"{file.name}: layer {name} has no lora_{part}. Save it again with its trainer."
            )
    for part in PAIR & parts.keys():
        if parts[part].ndim not in (2, 4):
            shape = list(parts[part].shape)
            raise LoraFileError(
                f"{file.name}: {part} of layer {name} has the shape {shape}, which no LoRA layer has. "
                "Save it again with its trainer."
            )
    down, up = _factors(file, name, parts["down"], parts["up"], parts.get("mid"))
    rank = down.shape[0]
    alpha = float(rank)
    if "scale" in parts:
        alpha = float(parts["scale"]) * rank
    elif "alpha" in parts:
        alpha = float(parts["alpha"]) * (rank / parts["down"].shape[0])
    return LoraLayer(name, down, up, alpha)


def _factors(file: Path, name: str, down: Tensor, up: Tensor, mid: Tensor | None) -> tuple[Tensor, Tensor]:
    """(down, up) in canonical shapes: 1x1 convolutions as matrices, ``mid`` folded into ``down``."""
    if up.ndim == 4:
        if up.shape[2:] != (1, 1):
            raise _mismatch(file, name, down, up)
        up = up.flatten(1)
    if mid is not None:
        numbers = mid.numel() // mid.shape[1] * down.shape[1]
        fits = mid.ndim == 4 and down.shape[2:] in ((), (1, 1)) and mid.shape[1] == down.shape[0]
        if not fits or numbers > largest_weight(name):
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


def _check_numbers(file: Path, name: str, parts: Parts) -> None:
    """Refuse a tensor that is empty, of the wrong kind, or not finite in fp32."""
    for part, tensor in parts.items():
        where = f"{file.name}: {part} of layer {name}"
        if part in SINGLE:
            if tensor.numel() != 1:
                raise LoraFileError(
                    f"{where} has {tensor.numel()} values instead of one. Save it again with its trainer."
                )
        elif not tensor.is_floating_point():
            raise LoraFileError(f"{where} is stored as {tensor.dtype}. Save it as fp16, bf16 or fp32.")
        if not tensor.numel():
            raise LoraFileError(f"{where} is empty. Save it again with its trainer.")
        if not is_finite(tensor if tensor.dtype != torch.float64 else tensor.float()):
            raise LoraFileError(
                f"{where} contains NaN or infinity: the training went wrong. Choose an earlier save of it."
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; integers have none."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype in _INFINITY and tensor.device.type == "cpu":
        # Bit patterns grow with the size of the number, those of negative ones above all others.
        bits, infinity = tensor.detach().view(torch.int16).numpy(), _INFINITY[tensor.dtype]
        return bool(bits.max() < infinity and bits.view(np.uint16).max() < infinity + 0x8000)
    # The largest and the smallest entry are NaN where any entry is.
    return bool(torch.isfinite(tensor.amax()) and torch.isfinite(tensor.amin()))
