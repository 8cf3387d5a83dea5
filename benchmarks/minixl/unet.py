"""Train MiniXL's UNet and its text encoders on the icons: most of the time at 64 pixels, the end at 128.

    python -m benchmarks.minixl.unet --out out/minixl --size 64 --minutes 60 --fall 0
    python -m benchmarks.minixl.unet --out out/minixl --size 128 --batch 24 --minutes 30 --fall 0.6

Needs the latents of that size (``benchmarks.minixl.latents``), and goes on from ``training-*.pt`` in
``--out`` or, without those, from ``unet`` and the text encoders in the folder ``--init``. Each
process takes its own steps; the weights are averaged every EVERY steps, and their running mean
is what is saved as the model.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import parallel
from .choice import ARTISTS, COLOURS, STYLE_TOKEN, SUBJECT_TOKEN, caption, style_words
from .data import CACHE, Drawings, known_rows, load
from .diffusion import Conditioning, alphas, noise_loss
from .text import LENGTH, TextEncoders

EVERY, WARM_UP, SAVE_SECONDS, MEAN = 20, 100, 240, 0.05
NO_STYLE, NOTHING, COLOURED, COLOUR_WEIGHT = 0.1, 0.1, 0.2, 2.0
TEXT_RATE = 0.3
STOP = "stop"
"""A file of this name in ``--out`` ends the training at its next average, everything saved."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        out: folder of the training's state and of the model in the making.
        init: folder of the model to start from.
        size: of the pictures, in pixels.
        batch: drawings a step of each process.
        rate: of AdamW.
        fall: share of the minutes, at their end, over which the rate falls to nothing.
        length: tokens a caption.
    """

    out: Path
    init: Path
    cache: Path = CACHE
    size: int = 64
    batch: int = 128
    rate: float = 1.5e-3
    minutes: float = 60.0
    fall: float = 0.0
    workers: int = 2
    length: int = LENGTH
    device: str = "cpu"


@dataclass(frozen=True)
class Set:
    """Training drawings.

    Attributes:
        z: (n, 4, h, w), plain drawings and then colour variants.
        styled, plain: token numbers of the captions with and without the style's words, (2, n, length).
        weights: how often each is drawn, (n,).
    """

    z: Tensor
    styled: Tensor
    plain: Tensor
    weights: Tensor

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, token numbers, and whether the prompt is kept (n,), else nothing."""
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        dice = torch.rand(count, generator=generator)
        ids = torch.where((dice < NO_STYLE)[:, None], self.plain[:, rows], self.styled[:, rows])
        return self.z[rows].float(), ids, dice < 1 - NOTHING


def vocabulary(drawings: Drawings) -> list[str]:
    """Prompts that contain every word that is learnt, the LoRAs' tokens among them."""
    words = " ".join(
        [*COLOURS, "gradient on tile badge black", *ARTISTS.values(), *map(style_words, drawings.styles)]
    )
    return [caption(name, STYLE_TOKEN) for name in (*drawings.subjects, SUBJECT_TOKEN)] + words.split()


def training_set(recipe: Recipe, drawings: Drawings, text: TextEncoders) -> Set:
    """The known drawings at one size and their colour variants."""
    saved = torch.load(recipe.out / f"latents-{recipe.size}.pt", weights_only=True)
    rows = torch.from_numpy(known_rows(drawings))
    variants = saved["variant_of"]
    both = torch.cat([rows, variants]).tolist()
    extra = [""] * len(rows) + [" " + words for words in saved["words"]]
    subjects = [drawings.subjects[drawings.subject[row]] for row in both]
    styles = [
        style_words(drawings.styles[drawings.style[row]]) + words
        for row, words in zip(both, extra, strict=True)
    ]
    ink = set(variants.tolist())
    weights = [1.0 if row in ink else COLOUR_WEIGHT for row in rows.tolist()]
    share = COLOURED * sum(weights) / len(variants)
    return Set(
        torch.cat([saved["plain"][rows], saved["variant"]]),
        text.tokens([caption(s, w) for s, w in zip(subjects, styles, strict=True)], recipe.length),
        text.tokens([caption(s) for s in subjects], recipe.length),
        torch.tensor([*weights, *[share] * len(variants)]),
    )


class Model(nn.Module):
    """What is trained together."""

    def __init__(self, folder: Path, drawings: Drawings) -> None:
        super().__init__()
        self.unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", sample_size=16).float()
        self.text = TextEncoders(folder)
        self.text.keep_used(self.text.tokens(vocabulary(drawings), 77).flatten(1))


def train(rank: int, recipe: Recipe) -> None:
    """One process's share of the training; process 0 saves the model."""
    torch.set_num_threads(1)
    # Of sixteen tokens, attention as plain products is a fifth faster on a CPU than the fused kernel.
    with sdpa_kernel(SDPBackend.MATH) if recipe.device == "cpu" else nullcontext():
        _train(rank, recipe)


def _train(rank: int, recipe: Recipe) -> None:
    drawings = load(recipe.cache)
    model = Model(recipe.init, drawings).to(recipe.device).train()
    known, alpha_bar = training_set(recipe, drawings, model.text), alphas(recipe.device)
    del drawings
    parameters = list(model.parameters())
    groups = [
        {"params": list(model.unet.parameters()), "scale": 1.0},
        {"params": list(model.text.parameters()), "scale": TEXT_RATE},
    ]
    adam = torch.optim.AdamW(groups, lr=recipe.rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    state, step, samples = recipe.out / f"training-{rank}.pt", 0, 0
    mean = [p.detach().clone() for p in parameters]
    if state.is_file():
        saved = torch.load(state, map_location=recipe.device, weights_only=True)
        model.load_state_dict(saved["weights"])
        adam.load_state_dict(saved["adam"])
        mean, step, samples = saved["mean"], saved["step"], saved["samples"]
    generator = torch.Generator().manual_seed(step * 64 + rank)
    started = last_saved = last_line = time.time()
    first, total, count = step, 0.0, 0
    while True:
        if (step - first) % EVERY == 0:
            parallel.average(parameters)
            spent = math.inf if (recipe.out / STOP).exists() else (time.time() - started) / 60
            clock = torch.tensor([spent / recipe.minutes, time.time() - last_saved])
            parallel.average([clock])
            share = clock[0].item()
            weight = min(1.0, max(MEAN, 1 / (1 + step / EVERY)))
            for kept, now in zip(mean, parameters, strict=True):
                kept.lerp_(now.detach(), weight)
            if share >= 1 or clock[1].item() > SAVE_SECONDS:
                last_saved = time.time()
                saved = {"weights": model.state_dict(), "adam": adam.state_dict(), "mean": mean}
                torch.save({**saved, "step": step, "samples": samples}, state.with_suffix(".part"))
                state.with_suffix(".part").replace(state)
                if rank == 0:
                    save(recipe.out, model, mean)
            if rank == 0 and count and (share >= 1 or time.time() - last_line > 60):
                speed = count * recipe.batch * parallel.workers_here() / (time.time() - last_line)
                line = {"samples": samples, "size": recipe.size, "loss": round(total / count, 4)}
                line |= {"rate": round(adam.param_groups[0]["lr"], 6), "speed": round(speed, 1)}
                with (recipe.out / "curve.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"time": time.strftime("%H:%M:%S"), **line}) + "\n")
                last_line, total, count = time.time(), 0.0, 0
            if share >= 1:
                break
        fall = min(1.0, (1 - share) / recipe.fall) if recipe.fall else 1.0
        for group in adam.param_groups:
            group["lr"] = (
                recipe.rate * group["scale"] * min(1.0, (step - first + 1) / WARM_UP, max(fall, 1e-2))
            )
        z, ids, kept_prompt = (part.to(recipe.device) for part in known.batch(recipe.batch, generator))
        spread = torch.rand(len(z), generator=generator) + torch.randperm(len(z), generator=generator)
        t = (spread / len(z) * 1000).long().to(recipe.device)
        noise = torch.randn(z.shape, generator=generator).to(recipe.device)
        full, keep = model.text(ids), kept_prompt.float()[:, None]
        conditioning = Conditioning(full.context * keep[:, :, None], full.pooled * keep)
        loss = noise_loss(model.unet, z, conditioning, t, noise, alpha_bar)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        step, samples = step + 1, samples + recipe.batch * parallel.workers_here()
        total, count = total + loss.item(), count + 1


@torch.no_grad()
def save(out: Path, model: Model, mean: Sequence[Tensor]) -> None:
    """Write the averaged weights: the UNet in fp16, the text encoders' learnt parts in fp32."""
    averaged = copy.deepcopy(model)
    for parameter, value in zip(averaged.parameters(), mean, strict=True):
        parameter.copy_(value)
    averaged.unet.cpu().half().save_pretrained(out / "unet")
    save_file(averaged.text.cpu().state_dict(), out / "text.safetensors")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.unet", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--device", default=Recipe.device)
    for name in ("size", "batch", "workers", "length"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Recipe, name))
    for name in ("rate", "minutes", "fall"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Recipe, name))
    recipe = Recipe(**vars(parser.parse_args(arguments)))
    parallel.launch(train, recipe.workers, recipe)


if __name__ == "__main__":
    main()
