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
from ..lowrank import RankRule, from_dense, from_hadamard, from_kronecker
from .families import MAGNITUDES, delta_weight, family_of, loha_halves, lokr_matrices, needs_weight, scaling
from .limits import check_affordable, rank_and_shape, weight_shape

Parts = Mapping[str, Tensor]
Weights = Callable[[str], "Tensor | None"]
"""Canonical module name -> the checkpoint's weight, or None where it has no such module."""

FAMILY_NAMES = {
    "lora": "LoRA",
    "dora": "DoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "ia3": "(IA)3",
    "full": "a full difference",
    "norm": "trained norm layers",
    "glora": "GLoRA",
    "oft": "OFT",
    "lora-bias": "LoRA with biases",
    "peft-oft": "PEFT's OFT",
}
# Parts that a layer carries beside its delta weight.
SIDE_PARTS = frozenset({"diff_b", "up_bias"})


# The bit patterns of infinity; those of NaN are above.
_INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}


@dataclass(frozen=True)
class Converted:
    """What a module became: a layer, how nearly, and the extra tensors by part."""

    layer: LoraLayer | None
    approximation: Approximation | None
    extras: dict[str, Tensor]


def family_label(parts: Mapping[str, object]) -> str | None:
    """The family as people call it: like ``lycoris.family_of``, but DoRA whatever it decomposes."""
    return "dora" if not MAGNITUDES.isdisjoint(parts) else family_of(parts)


def is_plain(parts: Mapping[str, object]) -> bool:
    """Whether a module is a LoRA or LoCon (perhaps a broken one), which is exact as it is."""
    return MAGNITUDES.isdisjoint(parts) and family_of(parts) in ("lora", None) and _has_pair(parts)


def convert(file: Path, name: str, parts: Parts, weights: Weights | None, rule: RankRule) -> Converted:
    """A module of another family than LoRA.

    Raises:
        LoraFileError: tensors that are incomplete, not finite, or don't fit each other.
        UnsupportedLoraError: the delta weight needs the checkpoint's weight, which isn't there.
    """
    family = family_label(parts)
    if family is None:
        raise LoraFileError(
            f"{file.name}: layer {name} has only {', '.join(sorted(parts))}, which is not enough of any kind "
            "of LoRA. Save it again with its trainer."
        )
    _check_numbers(file, name, parts)
    if family == "norm":
        return Converted(None, None, {part: parts[part].float() for part in ("w_norm", "b_norm")})
    weight = _weight(file, name, family, weights) if needs_weight(parts) else None
    try:
        layer, found = _low_rank(name, parts, weight, rule)
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in sorted(parts.items()))
        raise LoraFileError(
            f"{file.name}: the tensors of layer {name} don't fit each other or the model ({shapes}). "
            "Save it again with its trainer, or choose the checkpoint that it was trained on."
        ) from error
    check_result(file, layer)
    label = Approximation(found.layer, family, found.rank, found.error, found.norm)
    return Converted(layer, label, side_extras(file, name, parts, layer.out_features))


def check_result(file: Path, layer: LoraLayer) -> None:
    """Raise LoraFileError where finite tensors have made factors that are not."""
    if not is_finite(layer.up) or not is_finite(layer.down) or not math.isfinite(layer.alpha):
        raise LoraFileError(
            f"{file.name}: layer {layer.name} has numbers too large to compute with: the training went wrong. "
            "Choose an earlier save of it."
        )


def side_extras(file: Path, name: str, parts: Parts, features: int) -> dict[str, Tensor]:
    """The bias difference that a layer has beside its delta weight, as ``diff_b``.

    PEFT's ``lora_B.bias`` is one too, scaled like the layer.
    """
    extras = {}
    _check_numbers(file, name, {part: parts[part] for part in SIDE_PARTS & parts.keys()})
    for part in SIDE_PARTS & parts.keys():
        bias = parts[part].float().flatten()
        if bias.numel() != features:
            raise LoraFileError(
                f"{file.name}: {part} of layer {name} has {bias.numel()} values instead of {features}. "
                "Save it again with its trainer."
            )
        extras["diff_b"] = bias if part == "diff_b" else bias * scaling(parts)
    return extras


def _low_rank(
    name: str, parts: Parts, weight: Tensor | None, rule: RankRule
) -> tuple[LoraLayer, Approximation]:
    family = family_of(parts)
    shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    told = rank_and_shape(name, shapes)
    if told is not None:
        check_affordable(name, shapes, told[1])
    if weight is not None:
        _check_weight(name, shapes, told, tuple(weight.shape))
        return from_dense(name, delta_weight(parts, weight=weight), rule)
    if told is None:
        raise ValueError(f"{family} has no shape of its own")
    shape = told[1]
    if family == "loha":
        return from_hadamard(name, loha_halves(parts), scaling(parts), shape[1:], rule)
    if family == "lokr":
        return from_kronecker(name, *lokr_matrices(parts), scaling(parts), shape[1:], rule)
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
    if wrong or torch.broadcast_shapes(shapes.get("dora_scale", ()), weight) != weight:
        raise ValueError(f"the checkpoint's layer has the shape {weight}")


def _weight(file: Path, name: str, family: str, weights: Weights | None) -> Tensor:
    weight = None if weights is None else weights(name)
    if weight is not None:
        return weight
    if weights is None:
        what = (
            "which changes the checkpoint's own weights and can't be read without them. Choose a checkpoint "
            "(--checkpoint on the command line), or convert the file to a plain LoRA."
        )
    elif name.startswith("lora_te"):
        what = "which can't be merged in a text encoder. Choose a LoRA without text encoder layers."
    else:
        what = "but the checkpoint has no such layer. Choose the checkpoint that it was trained on."
    raise UnsupportedLoraError(f"{file.name}: layer {name} is {FAMILY_NAMES[family]}, {what}")


def _check_numbers(file: Path, name: str, parts: Parts) -> None:
    for part, tensor in parts.items():
        where = f"{file.name}: {part} of layer {name}"
        single = part in ("alpha", "scale", "on_input")
        if single and tensor.numel() != 1:
            raise LoraFileError(
                f"{where} has {tensor.numel()} values instead of one. Save it again with its trainer."
            )
        if not single and not tensor.is_floating_point():
            raise LoraFileError(f"{where} is stored as {tensor.dtype}. Save it as fp16, bf16 or fp32.")
        if not tensor.numel():
            raise LoraFileError(f"{where} is empty. Save it again with its trainer.")
        if not is_finite(tensor):
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


def _has_pair(parts: Mapping[str, object]) -> bool:
    others = {"alpha", "scale", *SIDE_PARTS}
    return bool({"down", "up", "mid"} & parts.keys()) or parts.keys() <= others
