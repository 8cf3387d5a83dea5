"""Train MiniXL's UNet: SDXL's architecture, size conditioning and noise schedule, at 128 pixels.

    python -m benchmarks.minixl.unet --out out/minixl [--steps 3000] [--workers 2]

Needs the autoencoder and the text encoders in ``--out``. Every drawing is prompted with its
subject and its style's word; one in eight without the style, one in ten with nothing (zeros, as
SDXL's unconditional). The error of the noise is weighted by 1 + 1/SNR, up to ``WEIGHT_LIMIT``: a
subject's shape is decided at high noise, where SDXL's own weighting hardly looks.
Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from . import parallel
from .autoencoder import rate_at
from .choice import KNOWN_STYLES, caption, known_rows
from .data import CACHE, SIZE, STYLES, Drawings, load, to_signal
from .text import WIDTH

CHANNELS, HEADS, DEPTH, GROUPS, SIZE_WIDTH = (32, 96, 128), (3, 3, 4), (1, 1, 2), 16, 32
NO_STYLE, NOTHING, WEIGHT_LIMIT = 1 / 8, 1 / 10, 20.0
EVERY, SAVE_EVERY = 20, 200
SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        out: folder of the diffusers pipeline in the making.
        cache: of the drawings.
        steps: in total; each of ``workers`` processes takes ``batch`` drawings a step.
        rate: of AdamW, falling to nothing over the last two fifths.
        device: ``cpu`` or ``cuda``.
    """

    out: Path
    cache: Path = CACHE
    steps: int = 3000
    batch: int = 32
    rate: float = 1.5e-3
    workers: int = 2
    device: str = "cpu"


@dataclass(frozen=True)
class Prompted:
    """Text conditioning: context (n, 77, 2 * WIDTH) and pooled vector (n, WIDTH)."""

    context: Tensor
    pooled: Tensor

    def __getitem__(self, rows: Tensor) -> Prompted:
        return Prompted(self.context[rows], self.pooled[rows])


def build() -> Any:
    """The untrained UNet, seeded."""
    torch.manual_seed(3)
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        block_out_channels=CHANNELS,
        attention_head_dim=HEADS,
        transformer_layers_per_block=DEPTH,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_WIDTH,
        projection_class_embeddings_input_dim=6 * SIZE_WIDTH + WIDTH,
        norm_num_groups=GROUPS,
    )


@torch.no_grad()
def encode_text(model: Path, prompts: Sequence[str]) -> Prompted:
    """What both text encoders say, as SDXL takes it: the last but one layers, and the second's pooled vector."""
    contexts, pooled = [], torch.empty(0)
    for number, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)):
        tokenizer = CLIPTokenizer.from_pretrained(model / f"tokenizer{number}")
        encoder = kind.from_pretrained(model / f"text_encoder{number}").float().eval()
        ids = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        said = encoder(ids, output_hidden_states=True)
        contexts.append(said.hidden_states[-2])
        if number:
            pooled = said.text_embeds
    return Prompted(torch.cat(contexts, -1), pooled)


@torch.no_grad()
def encode_pictures(model: Path, pixels: Any) -> Tensor:
    """Scaled latents (n, 4, h / 8, w / 8) of pictures (n, h, w, 3) uint8."""
    vae: Any = AutoencoderKL.from_pretrained(model / "vae").float().eval()
    parts = [vae.encode(part).latent_dist.mean for part in to_signal(pixels).split(32)]
    return torch.cat(parts) * vae.config.scaling_factor


def size_ids(count: int) -> Tensor:
    """Original size, crop and target size of every picture, (count, 6)."""
    return torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32).expand(count, -1)


def alphas(device: str = "cpu") -> Tensor:
    """alpha-bar of SDXL's schedule, (1000,)."""
    return EulerDiscreteScheduler(**SCHEDULE).alphas_cumprod.to(device)


def noise_loss(unet: Any, z: Tensor, said: Prompted, t: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Weighted squared error of the predicted noise, a scalar.

    Args:
        unet: predicts noise.
        z: (n, 4, h, w), scaled latents.
        said: n rows.
        t: (n,), timesteps.
        noise: like ``z``.
        alpha_bar: (1000,).
    """
    a = alpha_bar[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * z + (1 - a).sqrt() * noise
    known = {"text_embeds": said.pooled, "time_ids": size_ids(len(z)).to(z.device)}
    with torch.autocast(z.device.type, torch.bfloat16):
        out = unet(x_t, t, said.context, added_cond_kwargs=known).sample
    error = (out.float() - noise).square().flatten(1).mean(1)
    snr = alpha_bar[t] / (1 - alpha_bar[t])
    return (error * (1 + 1 / snr).clamp(max=WEIGHT_LIMIT)).mean()


@dataclass(frozen=True)
class Set:
    """The known drawings: latents (n, 4, h, w), and the conditioning with and without the style's word."""

    z: Tensor
    styled: Prompted
    plain: Prompted

    def batches(self, count: int, first: int, last: int, salt: int) -> Iterator[tuple[Tensor, Prompted]]:
        """One batch for each step, drawn by the step's own seed."""
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step * 64 + salt)
            rows = torch.randint(len(self.z), (count,), generator=generator)
            dice = torch.rand(count, generator=generator)
            styled, plain = self.styled[rows], self.plain[rows]
            bare = (dice < NO_STYLE)[:, None]
            kept = (dice < 1 - NOTHING).float()[:, None]
            context = torch.where(bare[:, :, None], plain.context, styled.context) * kept[:, :, None]
            yield self.z[rows], Prompted(context, torch.where(bare, plain.pooled, styled.pooled) * kept)


def known_set(recipe: Recipe, drawings: Drawings) -> Set:
    """The drawings that MiniXL is trained on, encoded."""
    rows = known_rows(drawings)
    subjects = [drawings.subjects[i] for i in drawings.subject[rows]]
    words = [KNOWN_STYLES[STYLES[i]] for i in drawings.style[rows]]
    styled = encode_text(recipe.out, [caption(s, w) for s, w in zip(subjects, words, strict=True)])
    plain = encode_text(recipe.out, [caption(s, None) for s in subjects])
    return Set(encode_pictures(recipe.out, drawings.pixels[rows]), styled, plain)


def train(rank: int, recipe: Recipe) -> None:
    """One process's share of the training; process 0 saves."""
    known, alpha_bar = known_set(recipe, load(recipe.cache)), alphas(recipe.device)
    unet = build().to(recipe.device)
    parameters = list(unet.parameters())
    adam = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.01, betas=(0.9, 0.99))
    state, first = recipe.out / f"unet-{rank}.pt", 0
    if state.is_file():
        saved = torch.load(state, map_location=recipe.device, weights_only=True)
        unet.load_state_dict(saved["weights"])
        adam.load_state_dict(saved["adam"])
        first = saved["step"]
    total = torch.zeros(())
    batches = known.batches(recipe.batch, first, recipe.steps, rank)
    for step, (z, said) in enumerate(batches, first):
        generator = torch.Generator().manual_seed(step * 64 + rank + 32)
        t = ((torch.rand(len(z), generator=generator) + torch.arange(len(z))) / len(z) * 1000).long()
        noise = torch.randn(z.shape, generator=generator)
        for group in adam.param_groups:
            group["lr"] = rate_at(step, recipe.steps, recipe.rate)
        z, t, noise = (part.to(recipe.device) for part in (z, t, noise))
        said = Prompted(said.context.to(recipe.device), said.pooled.to(recipe.device))
        loss = noise_loss(unet, z, said, t, noise, alpha_bar)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        total = total + loss.detach().cpu()
        if (step + 1) % EVERY == 0:
            parallel.average(parameters)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == recipe.steps:
            saved = {"weights": unet.state_dict(), "adam": adam.state_dict(), "step": step + 1}
            torch.save(saved, state)
            if rank == 0:
                print(f"step {step + 1}: loss {total.item() / SAVE_EVERY:.4f}", flush=True)
                save(recipe.out, unet)
            total = torch.zeros(())


def save(out: Path, unet: Any) -> None:
    """Write the weights, the scheduler and the pipeline's index."""
    copy.deepcopy(unet).cpu().half().save_pretrained(out / "unet")
    EulerDiscreteScheduler(**SCHEDULE).save_pretrained(out / "scheduler")
    parts = {
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **parts}
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.unet", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--device", default=Recipe.device)
    for name in ("steps", "batch", "workers"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Recipe, name))
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    recipe = Recipe(**vars(parser.parse_args(arguments)))
    parallel.launch(train, recipe.workers, recipe)


if __name__ == "__main__":
    main()
