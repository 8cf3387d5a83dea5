"""The merger coefficients: what ZipLoRA learns (arXiv 2311.13600, section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora.layer import LoraLayer
from .hooks import Factors

Concept = Mapping[str, LoraLayer]
"""The UNet layers of one LoRA (the subject's, the style's), user's weight included."""


@dataclass
class LayerCoefficients:
    """The vectors of one layer, one row for each concept that has the layer.

    Attributes:
        concepts: which concepts have the layer, in the order of the rows.
        m: (len(concepts), columns), fp32, learnt; all ones at the start.
        down: (sum of ranks, columns), the down factors below each other, in the compute dtype.
        ranks: each concept's.
        up: (out, sum of ranks), the up factors side by side with their scaling, compute dtype.
        kernel: (in,) or (in, kh, kw): the columns' shape.
    """

    concepts: tuple[int, ...]
    m: Tensor
    down: Tensor
    ranks: tuple[int, ...]
    up: Tensor
    kernel: tuple[int, ...]

    @property
    def downs(self) -> tuple[Tensor, ...]:
        """Each concept's down factor, (rank, columns)."""
        parts: tuple[Tensor, ...] = self.down.split(self.ranks)
        return parts

    def factors(self) -> tuple[Tensor, Tensor]:
        """Factors of the merged layer: [A_c diag(m_c); A_s diag(m_s)] and [B_c, B_s].

        The merged delta weight is the paper's equation 3,
        dW_m = dW_c diag(m_c) + dW_s diag(m_s), as one low-rank layer.
        """
        if len(set(self.ranks)) == 1:
            stacked = self.down.view(len(self.ranks), self.ranks[0], -1) * self.m[:, None]
            return stacked.to(self.down.dtype).reshape(-1, *self.kernel), self.up
        rows = [(down * m).to(down.dtype) for down, m in zip(self.downs, self.m, strict=True)]
        return torch.cat(rows).reshape(-1, *self.kernel), self.up

    def factors_of(self, concept: int) -> Factors:
        """The factors of one concept's layer as they are, views."""
        row = self.concepts.index(concept)
        down, up = self.downs[row].reshape(-1, *self.kernel), self.up.split(self.ranks, dim=1)[row]
        return lambda: (down, up)


class MergerCoefficients:
    """One vector for every layer and concept, over the layer's input columns."""

    def __init__(self, layers: Mapping[str, LayerCoefficients]) -> None:
        self.layers = dict(layers)
        self._start = {name: torch.ones_like(layer.m[:, :1]) for name, layer in self.layers.items()}

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

    @torch.no_grad()
    def start_at(self, strengths: Sequence[float]) -> None:
        """Start from a weighted plain sum: every coefficient of a concept becomes its strength."""
        for name, layer in self.layers.items():
            for row, concept in enumerate(layer.concepts):
                self._start[name][row] = strengths[concept]
            layer.m.copy_(self._start[name].expand_as(layer.m))

    @torch.no_grad()
    def mean_change(self) -> Tensor:
        """Mean |m - start| over all coefficients: how far they have come from the plain sum."""
        return torch.cat(
            [(layer.m - self._start[name]).abs().flatten() for name, layer in self.layers.items()]
        ).mean()

    @property
    def concepts(self) -> int:
        """How many LoRAs are merged."""
        return 1 + max((max(layer.concepts) for layer in self.layers.values()), default=-1)

    def parameters(self) -> list[Tensor]:
        return [layer.m for layer in self.layers.values()]

    def adapters(self) -> dict[str, Factors]:
        """The merged LoRA's factors by layer, for ``lora_hooks``."""
        return {name: layer.factors for name, layer in self.layers.items()}

    def adapters_of(self, concept: int) -> dict[str, Factors]:
        """One LoRA's own factors by layer, without its vectors; views, so nothing goes to the device anew."""
        return {
            name: layer.factors_of(concept)
            for name, layer in self.layers.items()
            if concept in layer.concepts
        }

    def shared(self) -> Iterator[LayerCoefficients]:
        """The layers that more than one concept has."""
        return (layer for layer in self.layers.values() if len(layer.concepts) > 1)

    def side_by_side(self) -> list[Tensor]:
        """The vectors of layers that as many concepts have, joined: (concepts, columns of all); shared ones only."""
        joined: dict[int, list[Tensor]] = {}
        for layer in self.shared():
            joined.setdefault(len(layer.concepts), []).append(layer.m)
        return [torch.cat(group, dim=1) for group in joined.values()]

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
        m=torch.ones(len(owners), layers[0].in_features, device=device, requires_grad=True),
        down=torch.cat([layer.down.flatten(1).to(device, dtype) for layer in layers]),
        ranks=tuple(layer.rank for layer in layers),
        up=torch.cat([layer.up.float() * layer.scaling for layer in layers], dim=1).to(device, dtype),
        kernel=tuple(layers[0].down.shape[1:]),
    )
