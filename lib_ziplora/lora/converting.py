"""One module's tensors, of any family, into a canonical layer or into what no layer holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LoraFileError, UnsupportedLoraError
from .layer import Approximation, LoraLayer
from .layouts import CONVOLUTIONS, KERNEL
from .lowrank import RankRule, from_dense, from_hadamard, from_kronecker
from .lycoris import (
    MAGNITUDES,
    delta_weight,
    family_of,
    loha_halves,
    lokr_matrices,
    needs_weight,
    scaling,
)

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
# The largest weight of SDXL has 30 million numbers; a file that asks for more lies.
MOST_NUMBERS = 1 << 26


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
    label = Approximation(found.layer, family, found.rank, found.error, found.norm)
    return Converted(layer, label, side_extras(file, name, parts, layer.out_features))


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
    if family == "loha" and weight is None:
        halves = loha_halves(parts)
        (up, first), (_, second) = halves
        columns = first.shape[1:] if first.ndim > second.ndim else second.shape[1:]
        shape = _shape(name, (up.shape[0], *columns))
        return from_hadamard(name, halves, scaling(parts), shape[1:], rule)
    if family == "lokr" and weight is None:
        one, two = lokr_matrices(parts)
        shape = _shape(name, (one.shape[0] * two.shape[0], one.shape[1] * two.shape[1], *two.shape[2:]))
        return from_kronecker(name, one, two, scaling(parts), shape[1:], rule)
    if weight is not None:
        _shape(name, tuple(weight.shape))
        return from_dense(name, delta_weight(parts, weight=weight), rule)
    shape = _shape(name, tuple(parts["diff"].shape))
    return from_dense(name, delta_weight(parts, shape), rule)


def _shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A weight's shape, with the kernel of a convolution whose columns are flattened.

    Raises:
        ValueError: no layer of SDXL has such a weight.
    """
    if len(shape) not in (2, 4) or not 0 < math.prod(shape) <= MOST_NUMBERS:
        raise ValueError(f"no layer has the shape {shape}")
    if len(shape) == 2 and name.endswith(CONVOLUTIONS):
        inputs, rest = divmod(shape[1], math.prod(KERNEL))
        if rest:
            raise ValueError(f"{shape[1]} columns are no multiple of the kernel's {math.prod(KERNEL)}")
        return (shape[0], inputs, *KERNEL)
    return shape


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
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise LoraFileError(
                f"{where} contains NaN or infinity: the training went wrong. Choose an earlier save of it."
            )


def _has_pair(parts: Mapping[str, object]) -> bool:
    others = {"alpha", "scale", *SIDE_PARTS}
    return bool({"down", "up", "mid"} & parts.keys()) or parts.keys() <= others
