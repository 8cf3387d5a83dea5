"""White latents of every drawing, and of one colour variant of each known ink drawing.

python -m benchmarks.minixl.latents --out out/minixl --size 64
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .colour import is_ink, variant
from .data import CACHE, known_rows, load, to_signal


@torch.no_grad()
def encode(vae: Any, pixels: np.ndarray[Any, Any], size: int) -> Tensor:
    """Scaled latents (n, 4, size / 8, size / 8), fp16, of pictures (n, h, w, 3) uint8."""
    parts = []
    for first in range(0, len(pixels), 64):
        x = to_signal(pixels[first : first + 64])
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(F.avg_pool2d(x, x.shape[-1] // size)).latent_dist.mean
        parts.append((mean.float() * vae.config.scaling_factor).half())
    return torch.cat(parts)


@torch.no_grad()
def autoencoded(vae: Any, pixels: np.ndarray[Any, Any], size: int) -> Tensor:
    """The best that MiniXL could draw, (n, 3, size, size) in -1..1, of pictures (n, h, w, 3) uint8."""
    back = vae.decode(encode(vae, pixels, size).float() / vae.config.scaling_factor).sample
    return torch.as_tensor(back).float().clamp(-1, 1)


def to_pixels(x: Tensor) -> np.ndarray[Any, Any]:
    """(n, 3, h, w) in -1..1 -> (n, h, w, 3) uint8."""
    pixels: np.ndarray[Any, Any] = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels


def make(out: Path, cache: Path, size: int) -> Path:
    """Write ``latents-SIZE.pt``: plain (n, 4, h, w); variants of the rows ``variant_of`` and their words."""
    file = out / f"latents-{size}.pt"
    vae: Any = AutoencoderKL.from_pretrained(out / "vae").float().eval()
    drawings = load(cache)
    rows = [row for row in known_rows(drawings).tolist() if is_ink(drawings.pixels[row])]
    z, parts, words = encode(vae, drawings.pixels, size), [], []
    for first in range(0, len(rows), 512):
        variants = [variant(drawings.pixels[row], row) for row in rows[first : first + 512]]
        parts.append(encode(vae, np.stack([pixels for pixels, _ in variants]), size))
        words += [said for _, said in variants]
    torch.save(
        {"plain": z, "variant": torch.cat(parts), "variant_of": torch.tensor(rows), "words": words}, file
    )
    white = z[known_rows(drawings)].float()
    print(
        size,
        tuple(z.shape),
        "mean",
        white.mean((0, 2, 3)).tolist(),
        "variance",
        white.var((0, 2, 3)).tolist(),
    )
    return file


def main(arguments: Sequence[str] | None = None) -> None:
    """Encode the drawings at one size."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.latents", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    make(args.out, args.cache, args.size)


if __name__ == "__main__":
    main()
