"""NP-LoRA (arXiv 2511.11051): null space projection, a merge without a model and without coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..config import Role
from ..errors import IncompatibleError
from ..lora.layer import LoraLayer

MU = 0.5


def null_space_projection(
    loras: Sequence[Mapping[str, LoraLayer]], roles: Sequence[Role], mu: float = MU
) -> list[dict[str, LoraLayer]]:
    """Every LoRA's layers for a plain sum in which the subjects keep out of the styles' row space, softly.

        dW_m = dW_s + dW_c (I - mu / (1 + mu) Q Q^T),    Q from the QR factors of A_s^T

    Only ``down`` of the subjects changes, so ranks stay; ``mu`` = 0 is the plain sum. Where there are several
    styles, A_s holds all of them. A layer that no style has stays as it is.

    Args:
        loras: layer name -> layer of each.
        roles: of each.
        mu: strength of the projection, at least 0; as it grows, all of the styles' rows go.

    Raises:
        IncompatibleError: a common layer's shapes differ.
    """
    if mu < 0:
        raise ValueError(f"mu must not be negative, not {mu}")
    styles = [layers for layers, role in zip(loras, roles, strict=True) if role == "style"]
    return [
        dict(layers)
        if role == "style"
        else {name: _projected(layer, styles, mu) for name, layer in layers.items()}
        for layers, role in zip(loras, roles, strict=True)
    ]


def _projected(layer: LoraLayer, styles: Sequence[Mapping[str, LoraLayer]], mu: float) -> LoraLayer:
    """A subject's layer with mu / (1 + mu) of its part in the styles' row space taken out."""
    others = [layers[layer.name] for layers in styles if layer.name in layers]
    if any(other.weight_shape != layer.weight_shape for other in others):
        raise IncompatibleError(
            f"Layer {layer.name} has other shapes in a style. Choose LoRAs of the same base."
        )
    if not others:
        return layer
    rows = layer.down.float().flatten(1)
    q, _ = torch.linalg.qr(torch.cat([other.down.float().flatten(1) for other in others]).T)
    projected = rows - mu / (1 + mu) * (rows @ q) @ q.T
    return replace(layer, down=projected.reshape(layer.down.shape))
