"""Merge MiniXL's rocket with its streamline-cyber-color style and draw what each LoRA and each merge gives.

    python -m benchmarks.demo [--out out/demo] [--seeds 4]

Writes the merged LoRA, the plain sum to compare with, the report and ``grid.png``: a row for
each seed; columns subject alone, style alone, plain sum, ZipLoRA.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from lib_ziplora import cli
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.ziplora.hooks import adapters, lora_hooks

from .minixl.diffusion import NATIVE_SIZE

ROOT = Path(__file__).resolve().parent.parent
MINIXL = ROOT / "benchmarks" / "minixl"
MODEL = MINIXL / "model"
SUBJECT = MINIXL / "loras" / "minixl_subject_rocket.safetensors"
STYLE = MINIXL / "loras" / "minixl_style_streamline-cyber-color.safetensors"
SUBJECT_PROMPT = "a sks icon"
STYLE_PROMPT = "a bell icon in szn style"
BOTH_PROMPT = "a sks icon in szn style"
STEPS, GUIDANCE = 25, 3.5
CELL, GAP, HEADER, MARGIN = 192, 8, 52, 64


@dataclass(frozen=True)
class Column:
    """One column of the grid: a LoRA and the prompt that it is drawn with."""

    title: str
    prompt: str
    lora: Path


def draw(pipeline: Any, column: Column, seeds: Sequence[int]) -> list[Image.Image]:
    """One picture for each seed, drawn with the column's LoRA at strength 1."""
    layers = read_lora(column.lora).unet_layers()
    branches = adapters(layers, pipeline.device, pipeline.unet.dtype)
    with torch.no_grad(), lora_hooks(canonical_modules(pipeline.unet), branches):
        result = pipeline(
            [column.prompt] * len(seeds),
            width=NATIVE_SIZE,
            height=NATIVE_SIZE,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        )
    images: list[Image.Image] = result.images
    return images


def grid(
    columns: Sequence[Column], pictures: Sequence[Sequence[Image.Image]], seeds: Sequence[int]
) -> Image.Image:
    """The pictures with the columns' titles and prompts above and the seeds at the left."""
    pitch = CELL + GAP
    sheet = Image.new("RGB", (MARGIN + pitch * len(columns), HEADER + pitch * len(seeds)), "white")
    pen = ImageDraw.Draw(sheet)
    fonts = Path(get_data_path()) / "fonts" / "ttf"
    bold = ImageFont.truetype(str(fonts / "DejaVuSans-Bold.ttf"), 15)
    plain = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 12)
    for row, seed in enumerate(seeds):
        pen.text((4, HEADER + row * pitch + CELL // 2), f"seed {seed}", fill="black", font=plain)
    for index, (column, images) in enumerate(zip(columns, pictures, strict=True)):
        left = MARGIN + index * pitch
        pen.text((left, 6), column.title, fill="black", font=bold)
        pen.text((left, 28), column.prompt, fill="#555555", font=plain)
        for row, image in enumerate(images):
            sheet.paste(image.resize((CELL, CELL), Image.LANCZOS), (left, HEADER + row * pitch))
    return sheet


def merge(output: Path, *options: str) -> None:
    """``python -m lib_ziplora merge`` of the two example LoRAs."""
    code = cli.main(
        [
            *("merge", str(SUBJECT), str(STYLE), "--checkpoint", str(MODEL)),
            *("--subject-prompt", SUBJECT_PROMPT, "--style-prompt", STYLE_PROMPT),
            *("-o", str(output), "--force", *options),
        ]
    )
    if code:
        sys.exit(code)


def main() -> None:
    """Merge, draw, and say where everything is."""
    parser = argparse.ArgumentParser("python -m benchmarks.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo", help="folder (default out/demo)")
    parser.add_argument("--seeds", type=int, default=4, help="rows of the grid (default 4)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    merged, plain = args.out / "rocket-cyber-ziplora.safetensors", args.out / "rocket-cyber-sum.safetensors"
    report = args.out / "report.json"
    print("Merging MiniXL's rocket with its streamline-cyber-color style ...")
    merge(merged, "--report", str(report), "--combined-prompt", BOTH_PROMPT)
    merge(plain, "--method", "direct")

    columns = (
        Column("subject alone", SUBJECT_PROMPT, SUBJECT),
        Column("style alone", STYLE_PROMPT, STYLE),
        Column("plain sum", BOTH_PROMPT, plain),
        Column("ZipLoRA", BOTH_PROMPT, merged),
    )
    seeds = range(args.seeds)
    print(f"Drawing {len(columns)} x {len(seeds)} pictures ...")
    pipeline = StandaloneHost(MODEL).pipeline()
    pipeline.set_progress_bar_config(disable=True)
    picture = args.out / "grid.png"
    grid(columns, [draw(pipeline, column, seeds) for column in columns], seeds).save(picture)

    figures = json.loads(report.read_text(encoding="utf-8"))
    print(
        f"\nheld-out error {figures['heldout_loss_start']:.2f} (plain sum) -> {figures['heldout_loss_end']:.2f} "
        f"(ZipLoRA), mean travel of the coefficients {figures['mean_travel']:.2f}"
    )
    for title, path in (
        ("merged LoRA", merged),
        ("plain sum", plain),
        ("report", report),
        ("pictures", picture),
    ):
        print(f"{title:12} {path}")


if __name__ == "__main__":
    main()
