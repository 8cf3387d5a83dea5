"""The merger coefficients: what ZipLoRA learns (arXiv 2311.13600, section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora.layer import LoraLayer
from .patch import Factors

Concept = Mapping[str, LoraLayer]
"""The UNet layers of one LoRA (the subject's, the style's), user's weight included."""


@dataclass
class LayerCoefficients:
    """The vectors of one layer, one row for each concept that has the layer.

    Attributes:
        concepts: which concepts have the layer, in the order of the rows.
        m: (len(concepts), columns), fp32, learnt; all ones at the start.
        downs: each concept's down factor, (rank, columns), in the compute dtype.
        up: (out, sum of ranks), the up factors side by side with their scaling, compute dtype.
        kernel: (in,) or (in, kh, kw): the columns' shape.
    """

    concepts: tuple[int, ...]
    m: Tensor
    downs: tuple[Tensor, ...]
    up: Tensor
    kernel: tuple[int, ...]

    def factors(self) -> tuple[Tensor, Tensor]:
        """Factors of the merged layer: [A_c diag(m_c); A_s diag(m_s)] and [B_c, B_s].

        The merged delta weight is the paper's equation 3,
        dW_m = dW_c diag(m_c) + dW_s diag(m_s), as one low-rank layer.
        """
        rows = [(down * m).to(down.dtype) for down, m in zip(self.downs, self.m, strict=True)]
        return torch.cat(rows).reshape(-1, *self.kernel), self.up


class MergerCoefficients:
    """One vector for every layer and concept, over the layer's input columns."""

    def __init__(self, layers: Mapping[str, LayerCoefficients]) -> None:
        self.layers = dict(layers)

    @staticmethod
    def ones(
        concepts: Sequence[Concept],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> MergerCoefficients:
        """All ones: the plain sum, where the optimisation starts.

        Args:
            concepts: the LoRAs' layers; layers of the same name have the same shape.
            device: where the UNet computes.
            dtype: what it computes in; the vectors themselves are fp32.
        """
        names = dict.fromkeys(name for concept in concepts for name in concept)
        return MergerCoefficients({name: _layer_of_ones(name, concepts, device, dtype) for name in names})

    def parameters(self) -> list[Tensor]:
        return [layer.m for layer in self.layers.values()]

    def branches(self) -> dict[str, Factors]:
        """The merged LoRA's factors by layer, as ``patch.attach`` takes them."""
        return {name: layer.factors for name, layer in self.layers.items()}

    def shared(self) -> Iterator[LayerCoefficients]:
        """The layers that more than one concept has."""
        return (layer for layer in self.layers.values() if len(layer.concepts) > 1)

    def vectors(self, concept: int) -> dict[str, Tensor]:
        """Layer name -> that concept's vector (columns,), fp32 on the CPU."""
        return {
            name: layer.m[layer.concepts.index(concept)].detach().cpu().clone()
            for name, layer in self.layers.items()
            if concept in layer.concepts
        }


def _layer_of_ones(
    name: str, concepts: Sequence[Concept], device: torch.device | str, dtype: torch.dtype
) -> LayerCoefficients:
    owners = tuple(index for index, concept in enumerate(concepts) if name in concept)
    layers = [concepts[index][name] for index in owners]
    return LayerCoefficients(
        concepts=owners,
        m=torch.ones(len(owners), layers[0].columns, device=device, requires_grad=True),
        downs=tuple(layer.down.flatten(1).to(device, dtype) for layer in layers),
        up=torch.cat([layer.up.float() * layer.scaling for layer in layers], dim=1).to(device, dtype),
        kernel=tuple(layers[0].down.shape[1:]),
    )


def mean_travel(coefficients: Iterable[Tensor]) -> Tensor:
    """Mean |m - 1| over all coefficients: how far they have come from the plain sum."""
    flat = torch.cat([m.detach().flatten() for m in coefficients])
    return (flat - 1).abs().mean()
