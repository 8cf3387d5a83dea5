"""The one thing the algorithm needs from a diffusion model, as a protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

PredictionType = Literal["epsilon", "v_prediction"]

TextDeltas = Mapping[str, Callable[[], Tensor]]
"""Canonical text-encoder layer name -> function that gives its delta weight (out, in), fp32."""


@dataclass(frozen=True)
class Conditioning:
    """SDXL's text and size conditioning of a batch.

    Attributes:
        context: (batch, tokens, width), the cross-attention input of both text encoders.
        vector: (batch, features), pooled text followed by the size embedding (sgm hosts),
            or the pooled text with the six size ids appended (diffusers hosts). Opaque to
            everyone but the host's own ``Denoiser``.
    """

    context: Tensor
    vector: Tensor

    def __len__(self) -> int:
        return self.context.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Conditioning:
        return Conditioning(self.context[index], self.vector[index])

    def expand(self, batch: int) -> Conditioning:
        """Repeat a single row ``batch`` times (views, no copy)."""
        return Conditioning(
            self.context.expand(batch, -1, -1),
            self.vector.expand(batch, -1),
        )

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join batches; shorter contexts are padded by repeating their last token."""
        tokens = max(part.context.shape[1] for part in parts)
        padded = [_pad_tokens(part.context, tokens) for part in parts]
        return Conditioning(torch.cat(padded), torch.cat([part.vector for part in parts]))


def _pad_tokens(context: Tensor, tokens: int) -> Tensor:
    missing = tokens - context.shape[1]
    if missing == 0:
        return context
    return torch.cat([context, context[:, -1:].expand(-1, missing, -1)], dim=1)


class Denoiser(Protocol):
    """A frozen base UNet ready for forward and backward passes.

    Attributes:
        unet: the host's own module; its submodules carry either diffusers or sgm names.
        alphas_cumprod: (timesteps,), fp32 on the CPU: the noise schedule.
        prediction_type: what ``predict`` returns.
        latent_channels: channels of x_t (4 for SDXL).
        device: where the UNet computes.
        dtype: the dtype it computes in.
    """

    unet: nn.Module
    alphas_cumprod: Tensor
    prediction_type: PredictionType
    latent_channels: int
    device: torch.device
    dtype: torch.dtype

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The UNet's raw output for noisy latents.

        Args:
            x_t: (batch, channels, height, width), variance preserving:
                sqrt(a_t) x_0 + sqrt(1 - a_t) noise, any float dtype, on ``device``.
            t: (batch,), long, indices into ``alphas_cumprod``.
            cond: one row for each sample.

        Returns:
            (batch, channels, height, width) in fp32, differentiable.
        """
        ...

    def checkpoint_blocks(self) -> Sequence[nn.Module]:
        """The blocks whose activations are worth recomputing in the backward pass."""
        ...
