"""Pictures of many prompts at once, drawn with MiniXL with or without LoRAs, at 64 or 128 pixels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import nn

from lib_ziplora.hosts._diffusers.text import text_modules
from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.ziplora.hooks import adapters, lora_hooks

from ..drawing import GUIDANCE, STEPS, fused
from .diffusion import SCHEDULE, Conditioning, size_ids
from .latents import to_pixels
from .text import LENGTH, TextEncoders

BATCH = 32


@dataclass(frozen=True)
class Studio:
    """A model that draws.

    Attributes:
        size: of the pictures, in pixels.
        length: tokens a prompt; 77 as a host has it, or fewer, as in training.
    """

    unet: Any
    vae: Any
    text: TextEncoders
    size: int = 64
    length: int = LENGTH

    @classmethod
    def load(cls, model: Path, size: int = 64, length: int = LENGTH) -> Studio:
        """From a diffusers folder."""
        unet: Any = UNet2DConditionModel.from_pretrained(model / "unet").float().eval().requires_grad_(False)
        vae: Any = AutoencoderKL.from_pretrained(model / "vae").float().eval().requires_grad_(False)
        return cls(unet, vae, TextEncoders(model).eval().requires_grad_(False), size, length)

    def text_modules(self) -> dict[str, nn.Module]:
        """Kohya's name -> linear layer of the text encoders' blocks."""
        modules = text_modules([self.text.first, self.text.second])
        return {name: module for name, module in modules.items() if "_layers_" in name}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The prompts' conditioning."""
        with torch.no_grad():
            conditioning: Conditioning = self.text(self.text.tokens(prompts, self.length))
        return conditioning

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *loras: Mapping[str, LoraLayer],
        empty_by_base: bool = False,
    ) -> np.ndarray[Any, Any]:
        """Pictures (prompts, seeds, size, size, 3) uint8, the same seeds' noise for every prompt; LoRAs add up.

        With ``empty_by_base`` guidance subtracts what the base without LoRA predicts for the empty prompt.
        """
        empty = copy.deepcopy(self.unet) if empty_by_base else self.unet
        with ExitStack() as stack:
            for layers in loras:
                text = {name: layer for name, layer in layers.items() if name.startswith("lora_te")}
                stack.enter_context(lora_hooks(self.text_modules(), adapters(text, "cpu", torch.float32)))
            conditioning, side = self.encode(prompts), self.size // 8
        noise = [torch.randn(4, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        start = torch.stack(noise).repeat(len(prompts), 1, 1, 1)
        context = conditioning.context.repeat_interleave(len(seeds), 0)
        pooled = conditioning.pooled.repeat_interleave(len(seeds), 0)
        parts = []
        with ExitStack() as stack:
            for layers in loras:
                of_unet = {name: layer for name, layer in layers.items() if name.startswith("lora_unet")}
                stack.enter_context(fused(self.unet, of_unet))
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            for first in range(0, len(start), BATCH):
                rows = slice(first, first + BATCH)
                parts.append(self._denoise(start[rows], Conditioning(context[rows], pooled[rows]), empty))
        pixels = np.concatenate(parts)
        shaped: np.ndarray[Any, Any] = pixels.reshape(len(prompts), len(seeds), *pixels.shape[1:])
        return shaped

    def _denoise(self, noise: torch.Tensor, prompt: Conditioning, empty: Any) -> np.ndarray[Any, Any]:
        """Pictures of noise (n, 4, h, w); the UNet ``empty`` predicts for the empty prompt."""
        scheduler = DPMSolverMultistepScheduler.from_config(
            EulerDiscreteScheduler(**SCHEDULE).config, use_karras_sigmas=True, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(STEPS)
        x = noise * scheduler.init_noise_sigma
        nothing = Conditioning(torch.zeros_like(prompt.context), torch.zeros_like(prompt.pooled))
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            with_prompt, without = (
                unet(
                    scaled,
                    t,
                    given.context,
                    added_cond_kwargs={"text_embeds": given.pooled, "time_ids": size_ids(x)},
                ).sample.float()
                for unet, given in ((self.unet, prompt), (empty, nothing))
            )
            x = scheduler.step(without + GUIDANCE * (with_prompt - without), t, x).prev_sample
        return to_pixels(self.vae.decode(x / self.vae.config.scaling_factor).sample.float().clamp(-1, 1))
