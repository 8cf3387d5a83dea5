"""Merges without any learning, from their published formulas: what ZipLoRA is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..lora.algebra import concatenate
from ..lora.layer import LoraLayer


def null_space_projection(
    subject: Mapping[str, LoraLayer], style: Mapping[str, LoraLayer], mu: float = 0.5
) -> dict[str, LoraLayer]:
    """NP-LoRA (arXiv 2511.11051): the style's row space is projected out of the subject, softly.

        dW_m = dW_s + dW_c (I - mu / (1 + mu) Q Q^T),    Q from the QR factors of A_s^T

    Only ``down`` of the subject changes, so the merge has the sum of both ranks, as the plain
    sum has, which ``mu`` = 0 gives. A layer that only one LoRA has stays as it is.

    Args:
        subject: layer name -> layer, the user's weight included.
        style: the same; layers of the same name have the same shape.
        mu: strength of the projection, at least 0; as it grows, all of the style's rows go.

    Raises:
        IncompatibleError: a common layer's shapes differ.
    """
    if mu < 0:
        raise ValueError(f"mu must not be negative, not {mu}")
    merged = {}
    for name in (*subject, *(name for name in style if name not in subject)):
        parts = [layers[name] for layers in (subject, style) if name in layers]
        if len(parts) == 2 and parts[0].weight_shape == parts[1].weight_shape:
            parts[0] = _without_rows(parts[0], parts[1], mu / (1 + mu))
        merged[name] = concatenate(parts)
    return merged


def _without_rows(layer: LoraLayer, other: LoraLayer, share: float) -> LoraLayer:
    """The layer less that share of its part in the other's row space."""
    rows = layer.down.float().flatten(1)
    basis, _ = torch.linalg.qr(other.down.float().flatten(1).T)
    projected = rows - share * (rows @ basis) @ basis.T
    return replace(layer, down=projected.reshape(layer.down.shape))
