"""Low-rank algebra: everything on the factors, never on the dense out x in delta weight.

Results are in fp32, whatever the inputs' dtype, on the inputs' device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import IncompatibleError
from .layer import Lora, LoraLayer, StackedLayer

Vectors = Mapping[str, Tensor]
"""Layer name -> the coefficients (columns,) of one LoRA."""


@dataclass(frozen=True)
class Pairing:
    """Canonical layer names of several LoRAs.

    Attributes:
        common: layers that at least two of them have.
        single: for each LoRA, the layers that it alone has.
    """

    common: tuple[str, ...]
    single: tuple[tuple[str, ...], ...]


def pair(*loras: Lora) -> Pairing:
    """Pair LoRAs by layer. Nothing in common is no error here.

    Raises:
        IncompatibleError: a layer that several have differs in the delta weight's shape.
    """
    owners: dict[str, list[int]] = {}
    for index, lora in enumerate(loras):
        for name, layer in lora.layers.items():
            owners.setdefault(name, []).append(index)
            _require_same_shape(loras[owners[name][0]], lora, layer)
    common = tuple(name for name, having in owners.items() if len(having) > 1)
    single = tuple(
        tuple(name for name in lora.layers if owners[name] == [index]) for index, lora in enumerate(loras)
    )
    return Pairing(common, single)


def _require_same_shape(first: Lora, second: Lora, layer: LoraLayer) -> None:
    ours, theirs = first.layers[layer.name].weight_shape, layer.weight_shape
    if ours != theirs:
        raise IncompatibleError(
            f"Layer {layer.name} is {_size(ours)} in {first.name} but {_size(theirs)} in {second.name}: "
            "they were trained on different models. Choose LoRAs of the same base."
        )


def scale(layer: LoraLayer, weight: float) -> LoraLayer:
    """The layer whose delta weight is ``weight`` times as strong; the factors are shared."""
    if isinstance(layer, StackedLayer):
        return StackedLayer(layer.name, [term.scaled(weight) for term in layer.terms()])
    return LoraLayer(layer.name, layer.down, layer.up, layer.alpha * weight)


def scale_columns(layer: LoraLayer, m: Tensor) -> LoraLayer:
    """The layer with delta weight dW diag(m) = scaling * up (down diag(m)).

    Args:
        m: (columns,), the input columns; of a convolution in * kh * kw, flattened in that order.

    Raises:
        IncompatibleError: ``m`` has another length than the layer has columns.
    """
    if m.shape != (layer.in_features,):
        raise IncompatibleError(
            f"Layer {layer.name} has {layer.in_features} columns, but there are {_size(m.shape)}"
            " coefficients for it. Use coefficients that were made for this LoRA."
        )
    return StackedLayer(layer.name, [term.with_columns(m) for term in layer.terms()])


def concatenate(layers: Sequence[LoraLayer]) -> LoraLayer:
    """One layer whose delta weight is the sum of all: rank and alpha are the sum of the ranks.

    The scalings move into ``up``. The factors are put together when they are asked for.

    Raises:
        IncompatibleError: the delta weights' shapes differ.
    """
    first = layers[0]
    for other in layers[1:]:
        if other.weight_shape != first.weight_shape:
            raise IncompatibleError(
                f"Layer {first.name} is {_size(first.weight_shape)} in one LoRA but "
                f"{_size(other.weight_shape)} in another. Choose LoRAs of the same base."
            )
    return StackedLayer(first.name, [term for layer in layers for term in layer.terms()])


def merge_layers(
    loras: Sequence[Mapping[str, LoraLayer]],
    weights: Sequence[float] = (),
    coefficients: Sequence[Vectors] = (),
) -> dict[str, LoraLayer]:
    """All layers of all LoRAs, merged: dW = sum_i w_i dW_i diag(m_i) (arXiv 2311.13600, for two).

    Args:
        loras: each one's layers by name.
        weights: w_i of each; 1 where there are none.
        coefficients: m_i of each; a layer that is absent has ones, which is the plain weighted sum.

    Raises:
        IncompatibleError: a common layer's shapes differ, or coefficients that don't fit.
    """
    strengths = weights or [1.0] * len(loras)
    vectors = coefficients or [{} for _ in loras]
    merged = {}
    for name in dict.fromkeys(name for layers in loras for name in layers):
        parts = []
        for layers, weight, given in zip(loras, strengths, vectors, strict=True):
            if name in layers:
                layer = scale(layers[name], weight)
                parts.append(scale_columns(layer, given[name]) if name in given else layer)
        merged[name] = concatenate(parts)
    return merged


def merge_extras(extras: Sequence[Mapping[str, Tensor]], weights: Sequence[float] = ()) -> dict[str, Tensor]:
    """The weighted sums of what no low-rank layer holds (``Lora.extras``), fp32.

    Raises:
        IncompatibleError: a common one's shapes differ.
    """
    merged: dict[str, Tensor] = {}
    for one, weight in zip(extras, weights or [1.0] * len(extras), strict=True):
        for name, tensor in one.items():
            before = merged.get(name)
            if before is not None and before.shape != tensor.shape:
                raise IncompatibleError(
                    f"{name} is {_size(before.shape)} in one LoRA but {_size(tensor.shape)} in another. "
                    "Choose LoRAs of the same base."
                )
            merged[name] = weight * tensor.float() + (0 if before is None else before)
    return merged


def column_overlap(a: LoraLayer, b: LoraLayer) -> float:
    """Mean |cosine| between the same columns of two delta weights, 0 to 1; a zero column counts 0.

    From the factors: with up = Q R, the columns of R_a down_a and R_b down_b have the same lengths
    as those of the delta weights, and Q_a^T Q_b turns one basis into the other.
    """
    basis_a, left_a = torch.linalg.qr(a.up.float())
    basis_b, left_b = torch.linalg.qr(b.up.float())
    columns_a = left_a @ a.down.float().flatten(1)
    columns_b = left_b @ b.down.float().flatten(1)
    products = (columns_a * (basis_a.T @ basis_b @ columns_b)).sum(0).abs()
    lengths = columns_a.norm(dim=0) * columns_b.norm(dim=0)
    cosines = torch.where(lengths > 0, products / lengths.clamp_min(1e-30), torch.zeros_like(products))
    return float(cosines.clamp_max(1).mean())


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
