"""Fine-tune MiniXL's autoencoder on the known icons at 64 and 128 pixels.

    python -m benchmarks.minixl.autoencoder --out out/minixl --init DIR --minutes 8 [--decoder-only]

The loss is the pixels' error, that of pictures made 4 and 16 times smaller, and that of the colours (red
against green, blue against yellow), an axis of which an autoencoder this small otherwise gives up.
At the end the latents are made white: a 4 x 4 matrix and a shift go into the 1 x 1 convolutions on
both sides of the bottleneck. With ``--decoder-only`` the latents stay what they are.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from . import parallel
from .choice import HELDOUT_STYLES
from .colour import is_ink, variant
from .data import CACHE, Drawings, known_rows, load, to_signal

EVERY, SAY_EVERY, WARM_UP = 20, 100, 50
BATCH = {64: 16, 128: 6}
NOISE, TINTED = 0.05, 0.25
SMALLER = (4, 16)


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        out: folder of the diffusers pipeline in the making.
        init: folder of the autoencoder to start from.
        minutes: of training; the rate falls to nothing over the second half.
        decoder_only: keep the latents.
    """

    out: Path
    init: Path
    cache: Path = CACHE
    minutes: float = 8.0
    rate: float = 3e-3
    workers: int = 2
    decoder_only: bool = False


def picture_loss(back: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Training loss of pictures (n, 3, h, w) given back, and their squared error."""
    error = (back - x).square().mean()
    loss = error + 0.25 * (back - x).abs().mean()
    for factor in SMALLER:
        loss = loss + 2 * (F.avg_pool2d(back, factor) - F.avg_pool2d(x, factor)).square().mean()
    for hue in ((1.0, -1.0, 0.0), (-0.5, -0.5, 1.0)):
        loss = loss + torch.einsum("bchw,c->bhw", back - x, torch.tensor(hue)).square().mean()
    return loss, error.detach()


def batch(
    drawings: Drawings, rows: np.ndarray[Any, Any], size: int, generator: np.random.Generator
) -> Tensor:
    """BATCH[size] pictures (n, 3, size, size) in -1..1, a share of them in other colours."""
    pixels = drawings.pixels[np.sort(generator.choice(rows, BATCH[size]))]
    pixels = np.stack(
        [
            variant(one, int(generator.integers(2**31)))[0]
            if generator.random() < TINTED and is_ink(one)
            else one
            for one in pixels
        ]
    )
    x = to_signal(pixels)
    return F.avg_pool2d(x, x.shape[-1] // size)


def train(rank: int, recipe: Recipe) -> None:
    """One process's share; process 0 saves."""
    torch.set_num_threads(1)
    drawings = load(recipe.cache)
    rows = known_rows(drawings)
    vae: Any = AutoencoderKL.from_pretrained(recipe.init).float().train()
    learnt = [vae.decoder, vae.post_quant_conv] + (
        [] if recipe.decoder_only else [vae.encoder, vae.quant_conv]
    )
    parameters = [p for part in learnt for p in part.parameters()]
    adam = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
    generator, started, step = np.random.default_rng(rank), time.time(), 0
    errors: dict[int, list[float]] = {size: [] for size in BATCH}
    while True:
        if step % EVERY == 0:
            parallel.average(parameters)
            share = torch.tensor([(time.time() - started) / (60 * recipe.minutes)])
            parallel.average([share])
            if share.item() >= 1:
                break
        for group in adam.param_groups:
            group["lr"] = recipe.rate * min(1.0, (step + 1) / WARM_UP, max(2 * (1 - share.item()), 0.01))
        size = tuple(BATCH)[step % len(BATCH)]
        x = batch(drawings, rows, size, generator)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(not recipe.decoder_only):
                z = vae.quant_conv(vae.encoder(x))[:, :4]
            z = z + torch.randn_like(z) * z.float().std((0, 2, 3), keepdim=True).detach() * NOISE
            back = vae.decode(z).sample.float()
        loss, error = picture_loss(back, x)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        step += 1
        errors[size].append(error.item())
        if rank == 0 and step % SAY_EVERY == 0:
            line = ", ".join(
                f"{decibel(float(np.mean(some))):.2f} dB at {size}" for size, some in errors.items()
            )
            print(f"step {step}, {share.item():.0%}: {line}", flush=True)
            errors = {size: [] for size in BATCH}
    if rank == 0:
        vae.eval()
        if not recipe.decoder_only:
            sample = to_signal(drawings.pixels[rows[:: len(rows) // 512]])
            whiten(vae, F.avg_pool2d(sample, 2))
        vae.save_pretrained(recipe.out / "vae")
        measure(vae, drawings)


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
    matrix = (vectors / values.sqrt()) @ vectors.T / vae.config.scaling_factor
    inverse = (vectors * values.sqrt()) @ vectors.T * vae.config.scaling_factor
    before, after = vae.quant_conv, vae.post_quant_conv
    weight, bias = before.weight.double(), before.bias.double()
    before.weight[:4] = torch.einsum("ij,jkhw->ikhw", matrix, weight[:4]).float()
    before.bias[:4] = (matrix @ (bias[:4, None] - mean))[:, 0].float()
    before.weight[4:], before.bias[4:] = 0.0, -20.0
    weight = after.weight.double()
    after.bias += (weight[:, :, 0, 0] @ mean)[:, 0].float()
    after.weight.copy_(torch.einsum("ijhw,jk->ikhw", weight, inverse).float())


def decibel(error: float) -> float:
    """Peak signal-to-noise ratio of a squared error of signals in -1..1."""
    return 10 * math.log10(4 / error)


@torch.no_grad()
def measure(vae: Any, drawings: Drawings, count: int = 12) -> None:
    """Print the mean peak signal-to-noise ratio by held-out style, at both sizes."""
    for size in BATCH:
        found = {}
        for name in HELDOUT_STYLES:
            rows = np.flatnonzero(drawings.style == drawings.styles.index(name))
            x = to_signal(drawings.pixels[rows[:: max(1, len(rows) // count)][:count]])
            x = F.avg_pool2d(x, x.shape[-1] // size)
            back = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
            errors = (back - x).square().flatten(1).mean(1)
            found[name] = float(np.mean([decibel(max(e, 1e-7)) for e in errors.tolist()]))
        listed = " ".join(f"{name}:{value:.1f}" for name, value in found.items())
        print(f"held-out styles at {size}: {np.mean(list(found.values())):.2f} dB; {listed}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, whiten, save, measure."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.autoencoder", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--minutes", type=float, default=Recipe.minutes)
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--workers", type=int, default=Recipe.workers)
    parser.add_argument("--decoder-only", action="store_true")
    recipe = Recipe(**vars(parser.parse_args(arguments)))
    parallel.launch(train, recipe.workers, recipe)


if __name__ == "__main__":
    main()
