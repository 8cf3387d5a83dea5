"""Prompts and images encoded by a WebUI's own model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...denoiser import Conditioning
from ...errors import HostError


def encode_prompts(
    model: Any, prompts: Sequence[str], *, width: int, height: int, negative: bool
) -> Conditioning:
    """Conditioning of ``prompts``, one row each, as a picture of that size would get it.

    ``context`` is (batch, 77 * chunks, width of both encoders), ``vector`` pooled text and
    embedded sizes. Extra-network tags such as ``<lora:…>`` are taken out of the prompts.
    """
    from modules import devices, extra_networks, prompt_parser

    rows = []
    for prompt in prompts:
        words, _ = extra_networks.parse_prompt(prompt)
        if negative and not words.strip():
            words = ""
        batch = prompt_parser.SdConditioning([words], width=width, height=height, is_negative_prompt=negative)
        with devices.autocast():
            cond = model.get_learned_conditioning(batch)
        parts = (cond[name].detach().clone().to(devices.device) for name in ("crossattn", "vector"))
        rows.append(Conditioning(*parts))
    return Conditioning.cat(rows)


def encode_images(model: Any, images: Tensor, seed: int) -> Tensor:
    """Scaled latents in fp32, (n, channels, h/8, w/8), of images (n, 3, h, w); one at a time, with the model's VAE.

    Raises:
        HostError: NaN in the latents.
    """
    from modules import devices, sd_samplers_common

    latents = []
    gpus = list(range(torch.cuda.device_count()))
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        for image in images.split(1):
            latent = sd_samplers_common.images_tensor_to_samples(image, 0, model)
            latents.append(latent.clone().to(devices.device, torch.float32))
    encoded = torch.cat(latents)
    if not torch.isfinite(encoded).all():
        raise HostError(
            "The VAE made NaNs of the reference images. Start the WebUI with --no-half-vae (Forge: --vae-in-fp32), "
            "or choose another VAE."
        )
    return encoded
