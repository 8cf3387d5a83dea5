"""SDXL's forward diffusion and MiniXL's training loss: noise schedule, size conditioning, weighted error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

NATIVE_SIZE = 64
"""Width and height in pixels of the pictures that the weights were trained on."""
WEIGHT_LIMIT = 20.0
SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of n prompts: context (n, tokens, 128) and pooled vector (n, 64)."""

    context: Tensor
    pooled: Tensor

    def __getitem__(self, rows: Tensor) -> Conditioning:
        return Conditioning(self.context[rows], self.pooled[rows])


def size_ids(z: Tensor) -> Tensor:
    """Original size, crop and target size, in pixels, of every one of the latents (n, 4, h, w), (n, 6)."""
    height, width = (8.0 * side for side in z.shape[-2:])
    return torch.tensor([[height, width, 0, 0, height, width]], device=z.device).expand(len(z), -1)


def alphas(device: str = "cpu") -> Tensor:
    """alpha-bar of SDXL's schedule, (1000,)."""
    return EulerDiscreteScheduler(**SCHEDULE).alphas_cumprod.to(device)


def noise_loss(
    unet: Any, z: Tensor, conditioning: Conditioning, t: Tensor, noise: Tensor, alpha_bar: Tensor
) -> Tensor:
    """Squared error of the predicted noise, a scalar, weighted by 1 + 1/SNR up to ``WEIGHT_LIMIT``.

    A subject's shape is decided at high noise, where SDXL's own weighting hardly looks.

    Args:
        unet: predicts noise.
        z: (n, 4, h, w), scaled latents.
        conditioning: of n prompts.
        t: (n,), timesteps.
        noise: like ``z``.
        alpha_bar: (1000,).
    """
    a = alpha_bar[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * z + (1 - a).sqrt() * noise
    added = {"text_embeds": conditioning.pooled, "time_ids": size_ids(z)}
    with torch.autocast(z.device.type, torch.bfloat16):
        out = unet(x_t, t, conditioning.context, added_cond_kwargs=added).sample
    error = (out.float() - noise).square().flatten(1).mean(1)
    snr = alpha_bar[t] / (1 - alpha_bar[t])
    return (error * (1 + 1 / snr).clamp(max=WEIGHT_LIMIT)).mean()
