"""Low-rank algebra: everything on the factors, never on the dense out x in delta weight.

Results are in fp32, whatever the inputs' dtype, on the inputs' device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import IncompatibleError
from .layer import Lora, LoraLayer
from .lowrank import factored_svd

Coefficients = Mapping[str, "tuple[Tensor | None, Tensor | None]"]


@dataclass(frozen=True)
class Pairing:
    """Canonical layer names of two LoRAs: in both, and in one of them only."""

    common: tuple[str, ...]
    subject_only: tuple[str, ...]
    style_only: tuple[str, ...]


def pair(subject: Lora, style: Lora) -> Pairing:
    """Pair two LoRAs by layer. Nothing in common is no error here.

    Raises:
        IncompatibleError: a layer that both have differs in the delta weight's shape.
    """
    common = tuple(name for name in subject.layers if name in style.layers)
    for name in common:
        ours, theirs = subject.layers[name].weight_shape, style.layers[name].weight_shape
        if ours != theirs:
            raise IncompatibleError(
                f"Layer {name} is {_size(ours)} in {subject.name} but {_size(theirs)} in {style.name}: "
                "they were trained on different models. Choose two LoRAs of the same base."
            )
    return Pairing(
        common,
        tuple(name for name in subject.layers if name not in style.layers),
        tuple(name for name in style.layers if name not in subject.layers),
    )


def scale(layer: LoraLayer, weight: float) -> LoraLayer:
    """The layer whose delta weight is ``weight`` times as strong; the factors are shared."""
    return replace(layer, alpha=layer.alpha * weight)


def scale_columns(layer: LoraLayer, m: Tensor) -> LoraLayer:
    """The layer with delta weight dW diag(m) = scaling * up (down diag(m)).

    Args:
        m: (columns,), the input columns; of a convolution in * kh * kw, flattened in that order.

    Raises:
        IncompatibleError: ``m`` has another length than the layer has columns.
    """
    if m.shape != (layer.columns,):
        raise IncompatibleError(
            f"Layer {layer.name} has {layer.columns} columns, but there are {_size(m.shape)}"
            " coefficients for it. Use coefficients that were made for this LoRA."
        )
    down = layer.down.float().flatten(1) * m.detach().to(layer.down.device, torch.float32)
    return replace(layer, down=down.reshape(layer.down.shape))


def concatenate(layers: Sequence[LoraLayer]) -> LoraLayer:
    """One layer whose delta weight is the sum of all: rank and alpha are the sum of the ranks.

    The scalings move into ``up``.

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
    down = torch.cat([layer.down.float() for layer in layers])
    up = torch.cat([layer.up.float() * layer.scaling for layer in layers], dim=1)
    return LoraLayer(first.name, down, up, float(down.shape[0]))


def merge_layers(
    subject: Mapping[str, LoraLayer],
    style: Mapping[str, LoraLayer],
    subject_weight: float = 1.0,
    style_weight: float = 1.0,
    coefficients: Coefficients | None = None,
) -> dict[str, LoraLayer]:
    """All layers of both, merged: dW = w_c dW_c diag(m_c) + w_s dW_s diag(m_s) (arXiv 2311.13600).

    Args:
        coefficients: layer name -> (m_c, m_s), each (columns,) or None for ones; a layer that
            is absent has ones, which is the plain weighted sum.

    Raises:
        IncompatibleError: a common layer's shapes differ, or coefficients that don't fit.
    """
    given = coefficients or {}
    merged = {}
    for name in (*subject, *(name for name in style if name not in subject)):
        parts = []
        both = given.get(name, (None, None))
        for layers, weight, m in ((subject, subject_weight, both[0]), (style, style_weight, both[1])):
            if name in layers:
                layer = scale(layers[name], weight)
                parts.append(layer if m is None else scale_columns(layer, m))
        merged[name] = concatenate(parts)
    return merged


def merge_extras(
    subject: Mapping[str, Tensor],
    style: Mapping[str, Tensor],
    subject_weight: float = 1.0,
    style_weight: float = 1.0,
) -> dict[str, Tensor]:
    """The weighted sums of what no low-rank layer holds (``Lora.extras``), fp32.

    Raises:
        IncompatibleError: a common one's shapes differ.
    """
    merged: dict[str, Tensor] = {}
    for extras, weight in ((subject, subject_weight), (style, style_weight)):
        for name, tensor in extras.items():
            before = merged.get(name)
            if before is not None and before.shape != tensor.shape:
                raise IncompatibleError(
                    f"{name} is {_size(before.shape)} in one LoRA but {_size(tensor.shape)} in the other. "
                    "Choose LoRAs of the same base."
                )
            merged[name] = weight * tensor.float() + (0 if before is None else before)
    return merged


def singular_values(layer: LoraLayer) -> Tensor:
    """Singular values (min(rank, out, columns),) of the flattened delta weight, descending, fp32."""
    return _svd(layer)[1]


def truncate_rank(layer: LoraLayer, rank: int) -> LoraLayer:
    """The best approximation of at most ``rank`` (Eckart-Young), by QR and SVD of the factors.

    The squared error is the sum of the squared ``singular_values`` from ``rank`` on. A layer whose
    rank is not above ``rank`` stays as it is.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    if layer.rank <= rank:
        return layer
    left, values, right = _svd(layer)
    root = values[:rank].sqrt()
    down = (root[:, None] * right[:rank]).reshape(-1, *layer.down.shape[1:])
    return replace(layer, down=down, up=left[:, :rank] * root, alpha=float(down.shape[0]))


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


def _svd(layer: LoraLayer) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD (out, k), (k,), (k, columns) of the flattened delta weight, without forming it."""
    return factored_svd(layer.up.float() * layer.scaling, layer.down.flatten(1))


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
