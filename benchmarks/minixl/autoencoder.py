"""Train MiniXL's KL autoencoder (factor 8, 4 channels) on the known drawings.

    python -m benchmarks.minixl.autoencoder --out out/minixl [--init benchmarks/minixl/model]

The loss is the pixels' error, the error of pictures made 4 and 16 times smaller (colour: an
autoencoder this small otherwise gives up an axis of it), and a weak pull of the latents
towards a unit normal distribution. At the end the latents are made white: a 4 x 4 matrix and a
shift go into the 1 x 1 convolutions on both sides of the bottleneck.
Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from . import parallel
from .choice import known_rows
from .data import CACHE, SIZE, load, to_signal

CHANNELS, GROUPS, SCALING = (8, 16, 32, 64), 4, 0.13025
KL, COLOUR = 1e-4, (4, 16)
EVERY, SAVE_EVERY = 20, 200


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        out: folder of the diffusers pipeline in the making.
        cache: of the drawings.
        steps: in total; each of ``workers`` processes takes ``batch`` drawings a step.
        rate: of AdamW, falling to nothing over the last two fifths.
        init: a pipeline folder whose autoencoder to start from.
    """

    out: Path
    cache: Path = CACHE
    steps: int = 3000
    batch: int = 8
    rate: float = 2e-3
    workers: int = 2
    init: Path | None = None


def build() -> Any:
    """The untrained autoencoder, seeded."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=CHANNELS,
        norm_num_groups=GROUPS,
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=SIZE,
        scaling_factor=SCALING,
        force_upcast=False,
    )


def loss_of(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The training loss of pictures (n, 3, h, w) in -1..1, and their squared error."""
    with torch.autocast(x.device.type, torch.bfloat16):
        hidden = vae.quant_conv(vae.encoder(x))
        mean, log_variance = hidden.float().chunk(2, 1)
        log_variance = log_variance.clamp(-30, 10)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        back = vae.decode(z).sample.float()
    error = (back - x).square().mean()
    loss = error + 0.5 * (back - x).abs().mean()
    for factor in COLOUR:
        loss = loss + 4 * (F.avg_pool2d(back, factor) - F.avg_pool2d(x, factor)).square().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return loss + KL * kl, error.detach()


def rate_at(step: int, recipe_steps: int, rate: float, warmup: int = 100) -> float:
    """Warm-up, a level stretch, and a fall to zero over the last two fifths."""
    left = (recipe_steps - step) / (0.4 * recipe_steps)
    return rate * min(1.0, (step + 1) / warmup, max(left, 1e-3))


def train(rank: int, recipe: Recipe) -> None:
    """One process's share of the training; process 0 saves."""
    drawings = load(recipe.cache)
    pictures = to_signal(drawings.pixels[known_rows(drawings)])
    vae = build()
    if recipe.init is not None:
        vae.load_state_dict(AutoencoderKL.from_pretrained(recipe.init / "vae").state_dict())
    parameters = list(vae.parameters())
    adam = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=1e-3, betas=(0.9, 0.99))
    state, first = recipe.out / f"autoencoder-{rank}.pt", 0
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        vae.load_state_dict(saved["weights"])
        adam.load_state_dict(saved["adam"])
        first = saved["step"]
    for step in range(first, recipe.steps):
        generator = torch.Generator().manual_seed(step * recipe.workers + rank)
        x = pictures[torch.randint(len(pictures), (recipe.batch,), generator=generator)]
        x = torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(3), x)
        for group in adam.param_groups:
            group["lr"] = rate_at(step, recipe.steps, recipe.rate)
        loss, error = loss_of(vae, x)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        if (step + 1) % EVERY == 0:
            parallel.average(parameters)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == recipe.steps:
            saved = {"weights": vae.state_dict(), "adam": adam.state_dict(), "step": step + 1}
            torch.save(saved, state)
            if rank == 0:
                print(f"step {step + 1}: {10 * math.log10(4 / error.item()):.1f} dB", flush=True)
    parallel.average(parameters)
    if rank == 0:
        whiten(vae, pictures)
        vae.half().save_pretrained(recipe.out / "vae")


@torch.no_grad()
def whiten(vae: Any, pictures: Tensor) -> None:
    """Fold the latents' mean and covariance into ``quant_conv`` and ``post_quant_conv``.

    Afterwards the scaled latents of ``pictures`` have mean 0 and covariance 1, and the
    autoencoder gives back what it gave before.
    """
    sample = pictures[:: max(1, len(pictures) // 512)]
    parts = [vae.encode(part).latent_dist.mean for part in sample.split(32)]
    z = torch.cat(parts).permute(1, 0, 2, 3).flatten(1).double()
    mean = z.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(torch.cov(z))
    matrix = (vectors / values.sqrt()) @ vectors.T / SCALING
    inverse = (vectors * values.sqrt()) @ vectors.T * SCALING
    before, after = vae.quant_conv, vae.post_quant_conv
    weight, bias = before.weight.double(), before.bias.double()
    before.weight[:4] = torch.einsum("ij,jkhw->ikhw", matrix, weight[:4]).float()
    before.bias[:4] = (matrix @ (bias[:4, None] - mean))[:, 0].float()
    before.weight[4:], before.bias[4:] = 0.0, -20.0
    weight = after.weight.double()
    after.bias += (weight[:, :, 0, 0] @ mean)[:, 0].float()
    after.weight.copy_(torch.einsum("ijhw,jk->ikhw", weight, inverse).float())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, whiten, save."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.autoencoder", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--workers", type=int, default=Recipe.workers)
    recipe = Recipe(**vars(parser.parse_args(arguments)))
    recipe.out.mkdir(parents=True, exist_ok=True)
    parallel.launch(train, recipe.workers, recipe)


if __name__ == "__main__":
    main()
