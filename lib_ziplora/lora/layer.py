"""Low-rank layers and whole LoRAs in one canonical form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LoraLayer:
    """One low-rank layer: delta weight = scaling * up @ down, scaling = alpha / rank.

    Attributes:
        name: canonical module name (kohya's, with sgm block names), for instance
            ``lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q``.
        down: (rank, in) of a linear layer or a 1x1 convolution stored as one,
            (rank, in, kh, kw) of a convolution.
        up: (out, rank).
        alpha: as trained; ``rank`` where the file has none.
    """

    name: str
    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def in_features(self) -> int:
        """Columns of the flattened delta weight: in, or in * kh * kw of a convolution."""
        return math.prod(self.weight_shape[1:])

    @property
    def out_features(self) -> int:
        return self.weight_shape[0]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the delta weight: (out, in) or (out, in, kh, kw)."""
        return (self.up.shape[0], *self.down.shape[1:])

    def delta(self) -> Tensor:
        """The delta weight in fp32, in ``weight_shape``."""
        flat = self.up.float() @ self.down.float().flatten(1)
        return (self.scaling * flat).reshape(self.weight_shape)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LoraLayer:
        """The same layer with its factors on another device or in another dtype."""
        return LoraLayer(self.name, self.down.to(device, dtype), self.up.to(device, dtype), self.alpha)

    def terms(self) -> tuple[Term, ...]:
        """The delta weight as a sum of scaled products, of which an ordinary layer has one."""
        return (Term(self.down, self.up, self.scaling),)

    def copy_factors(self, down: Tensor, up: Tensor) -> None:
        """Write both factors into tensors (rank, ...) and (out, rank) of any dtype, rounded once."""
        down.copy_(self.down)
        up.copy_(self.up)


@dataclass(frozen=True)
class Term:
    """One summand of a delta weight: scaling * up @ down diag(columns).

    Attributes:
        down: (rank, ...) and up: (out, rank), in any dtype, shared with the layer they come from.
        scaling: a number.
        columns: (product of down's other dimensions,) in fp32, or None for ones.
    """

    down: Tensor
    up: Tensor
    scaling: float
    columns: Tensor | None = None

    def scaled(self, weight: float) -> Term:
        return replace(self, scaling=self.scaling * weight)

    def with_columns(self, m: Tensor) -> Term:
        """The term with each column multiplied; ``m`` is copied."""
        own = m.detach().to(self.down.device, torch.float32)
        return replace(self, columns=own.clone() if self.columns is None else own * self.columns)


class StackedLayer(LoraLayer):
    """A sum of low-rank layers as one, whose rank is the sum of the ranks, and its alpha that or the one given.

    The factors, in fp32, are put together whenever they are asked for; until then the layer
    takes no memory beside that of its terms, which keep their dtype.
    """

    def __init__(self, name: str, terms: Sequence[Term], alpha: float | None = None) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_terms", tuple(terms))
        object.__setattr__(self, "alpha", float(self.rank) if alpha is None else alpha)

    def terms(self) -> tuple[Term, ...]:
        found: tuple[Term, ...] = self.__dict__["_terms"]
        return found

    @property
    def rank(self) -> int:
        return sum(term.down.shape[0] for term in self.terms())

    @property
    def weight_shape(self) -> tuple[int, ...]:
        first = self.terms()[0]
        return (first.up.shape[0], *first.down.shape[1:])

    @property
    def down(self) -> Tensor:
        down = torch.empty(self.rank, *self.weight_shape[1:], device=self.terms()[0].down.device)
        self._down_into(down)
        return down

    @property
    def up(self) -> Tensor:
        up = torch.empty(self.out_features, self.rank, device=self.terms()[0].up.device)
        self._up_into(up)
        return up

    def copy_factors(self, down: Tensor, up: Tensor) -> None:
        self._down_into(down)
        self._up_into(up)

    def _places(self) -> Iterator[tuple[Term, slice]]:
        first = 0
        for term in self.terms():
            last = first + term.down.shape[0]
            yield term, slice(first, last)
            first = last

    def _down_into(self, down: Tensor) -> None:
        for term, place in self._places():
            if term.columns is None:
                down[place].copy_(term.down)
            else:
                torch.mul(term.down.flatten(1), term.columns, out=down[place].flatten(1))

    def _up_into(self, up: Tensor) -> None:
        for term, place in self._places():
            scaling = term.scaling / self.scaling
            if scaling == 1:
                up[:, place].copy_(term.up)
            else:
                factor = torch.tensor([scaling], device=term.up.device)
                torch.mul(term.up, scaling if up.dtype == term.up.dtype else factor, out=up[:, place])


@dataclass(frozen=True)
class Approximation:
    """A layer that low-rank factors hold only nearly.

    Attributes:
        layer: canonical module name.
        family: what it was made of, as in ``keys.FAMILY_PARTS``, or ``lora``.
        rank: the rank it got.
        error: relative, ||delta - factors|| / ||delta|| in the Frobenius norm.
        norm: ||delta||.
    """

    layer: str
    family: str
    rank: int
    error: float
    norm: float


@dataclass(frozen=True)
class Lora:
    """A whole LoRA file in canonical form.

    Attributes:
        name: the file's stem.
        layers: canonical module name -> layer.
        metadata: the file's header strings.
        dialect: the naming that the file uses (``kohya``, ``kohya-diffusers``, ``lycoris``,
            ``diffusers``, ``peft``).
        unknown: tensor names that belong to no layer we know.
        sha256: of the whole file, lower-case hex, or "".
        size: of the whole file, bytes, or 0.
        base: the model family it was trained for, as in ``LoraHeader``.
        approximations: the layers of other families than LoRA that were made low-rank.
        extras: differences that no low-rank layer holds, by their name in kohya's files:
            ``<module>.w_norm`` and ``.b_norm`` of norm layers, ``.diff_b`` of biases.
    """

    name: str
    layers: Mapping[str, LoraLayer]
    metadata: Mapping[str, str] = field(default_factory=dict)
    dialect: str = "kohya"
    unknown: tuple[str, ...] = ()
    sha256: str = ""
    size: int = 0
    base: str = "sdxl"
    approximations: tuple[Approximation, ...] = ()
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def unet_layers(self) -> dict[str, LoraLayer]:
        return {name: layer for name, layer in self.layers.items() if name.startswith("lora_unet_")}

    def text_layers(self) -> dict[str, LoraLayer]:
        return {name: layer for name, layer in self.layers.items() if name.startswith("lora_te")}
