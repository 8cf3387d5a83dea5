"""Pictures drawn with a LoRA on MiniXL, kept on disk by seed, so that a later run draws only more seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.layer import LoraLayer

from .minixl.diffusion import NATIVE_SIZE

STEPS, GUIDANCE, BATCH = 12, 3.5, 8
CELL, LABEL, HEADER = 64, 132, 34


@contextmanager
def fused(unet: nn.Module, layers: Mapping[str, LoraLayer]) -> Iterator[None]:
    """The LoRA's delta weights added to the UNet's inside the block, and the weights put back after it."""
    modules = canonical_modules(unet)
    weights = {name: modules[name].get_parameter("weight") for name in layers}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, layer in layers.items():
                weights[name].add_(layer.delta().reshape(weights[name].shape).to(weights[name].dtype))
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


@contextmanager
def fast_sampler(pipeline: Any) -> Iterator[None]:
    """DPM-Solver++ (2M, Karras) inside the block: what 25 steps of Euler draw, in 12."""
    before = pipeline.scheduler
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        before.config, use_karras_sigmas=True, timestep_spacing="trailing"
    )
    try:
        yield
    finally:
        pipeline.scheduler = before


def draw(pipeline: Any, lora: Path | None, prompt: str, seeds: Sequence[int]) -> np.ndarray:
    """One picture for each seed, (n, NATIVE_SIZE, NATIVE_SIZE, 3) uint8; no LoRA: the base itself."""
    parts = []
    layers = read_lora(lora).unet_layers() if lora else {}
    with torch.no_grad(), fused(pipeline.unet, layers), fast_sampler(pipeline):
        for first in range(0, len(seeds), BATCH):
            some = seeds[first : first + BATCH]
            result = pipeline(
                [prompt] * len(some),
                width=NATIVE_SIZE,
                height=NATIVE_SIZE,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in some],
                output_type="np",
            )
            parts.append((result.images * 255).round().astype(np.uint8))
    return np.concatenate(parts)


def drawn(pipeline: Any, lora: Path | None, prompt: str, seeds: Sequence[int], file: Path) -> np.ndarray:
    """``draw`` with the file's pictures reused, as long as they are of the same LoRA and prompt."""
    digest = hashlib.sha256(lora.read_bytes() if lora else b"").hexdigest() + prompt
    known: dict[int, np.ndarray] = {}
    if file.is_file():
        with np.load(file) as data:
            if str(data["key"]) == digest:
                known = dict(zip(data["seeds"].tolist(), data["pixels"], strict=True))
    missing = [seed for seed in seeds if seed not in known]
    if missing:
        known.update(zip(missing, draw(pipeline, lora, prompt, missing), strict=True))
        np.savez_compressed(file, key=digest, seeds=list(known), pixels=np.stack(list(known.values())))
    return np.stack([known[seed] for seed in seeds])


def contact_sheet(rows: Mapping[str, Mapping[str, np.ndarray]], columns: Sequence[str]) -> Image.Image:
    """Row title -> column title -> pictures, (n, h, w, 3); every cell shows all of its pictures."""
    count = max(len(pictures) for row in rows.values() for pictures in row.values())
    width = count * CELL + 8
    sheet = Image.new("RGB", (LABEL + width * len(columns), HEADER + (CELL + 2) * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 12)
    for place, column in enumerate(columns):
        pen.text((LABEL + place * width, 10), column, fill="black", font=font)
    for line, (title, cells) in enumerate(rows.items()):
        top = HEADER + line * (CELL + 2)
        pen.text((4, top + CELL // 2 - 8), title, fill="black", font=font)
        for place, column in enumerate(columns):
            for index, picture in enumerate(cells.get(column, ())):
                small = Image.fromarray(picture).resize((CELL, CELL), Image.LANCZOS)
                sheet.paste(small, (LABEL + place * width + index * CELL, top))
    return sheet
