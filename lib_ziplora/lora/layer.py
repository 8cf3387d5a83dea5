"""Low-rank layers and whole LoRAs in one canonical form."""

from __future__ import annotations

from collections.abc import Mapping
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
    def columns(self) -> int:
        """Input columns of the delta weight: in, or in * kh * kw of a convolution."""
        return self.down[0].numel()

    @property
    def out_features(self) -> int:
        return self.up.shape[0]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the delta weight: (out, in) or (out, in, kh, kw)."""
        return (self.out_features, *self.down.shape[1:])

    def delta(self) -> Tensor:
        """The delta weight in fp32, in ``weight_shape``."""
        flat = self.up.float() @ self.down.float().flatten(1)
        return (self.scaling * flat).reshape(self.weight_shape)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LoraLayer:
        """The same layer with its factors on another device or in another dtype."""
        return replace(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype))


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
    base: str = "sdxl"
    approximations: tuple[Approximation, ...] = ()
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def unet_layers(self) -> dict[str, LoraLayer]:
        return {name: layer for name, layer in self.layers.items() if name.startswith("lora_unet_")}

    def text_layers(self) -> dict[str, LoraLayer]:
        return {name: layer for name, layer in self.layers.items() if name.startswith("lora_te")}
