"""LoRAs of MiniXL 2's held-out subjects and styles, with kohya's default targets.

    python -m benchmarks.minixl2.lora --model out/minixl2/model --out out/minixl2 --half choosing --size 128
    python -m benchmarks.minixl2.lora ... --only rocket,picon --rank 32 --text --times 4

A subject learns from four drawings of sets that no held-out style belongs to, two of them prompted
with the style's words; a style from sixteen drawings of known subjects. ``--text`` trains the text
encoders too; ``--times 4`` trains four times as long, which is too long. What is there is left as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib_ziplora.lora.io.write import write_lora
from lib_ziplora.lora.layer import LoraLayer

from ..minixl.lora import RANK, train
from ..minixl.unet import Prompted
from .choice import (
    HALVES,
    HELDOUT_STYLES,
    KNOWN_SUBJECTS,
    SIBLINGS,
    STYLE_TOKEN,
    SUBJECT_TOKEN,
    caption,
    style_words,
)
from .data import Drawings, load
from .judge import KNOWN_PANEL
from .latents import encode
from .studio import Studio

SUBJECT_PICTURES, STYLE_PICTURES = 4, 16
STEPS = {"subject": 150, "style": 200}
RATE = 2e-3


@dataclass(frozen=True)
class Concept:
    """What a LoRA learns from: rows of the drawings and their prompts."""

    kind: str
    name: str
    rows: list[int]
    prompts: list[str]


def rows_of(
    drawings: Drawings, *, subject: str | None = None, style: str | None = None
) -> np.ndarray[Any, Any]:
    """Rows of one subject, of one style, or of both."""
    chosen = np.ones(len(drawings.subject), bool)
    if subject is not None:
        chosen &= drawings.subject == drawings.subjects.index(subject)
    if style is not None:
        chosen &= drawings.style == drawings.styles.index(style)
    return np.flatnonzero(chosen)


def subject_concept(drawings: Drawings, name: str, keep_out: Container[str] = ()) -> Concept:
    """A held-out subject in four known styles outside ``keep_out``, each of another set; a seeded choice."""
    related = {style.split("/")[0] for style in (*HELDOUT_STYLES, *SIBLINGS)}
    rows: list[int] = []
    sets: set[str] = set()
    for row in np.random.default_rng(0).permutation(rows_of(drawings, subject=name)).tolist():
        style = drawings.styles[drawings.style[row]]
        key = style.split("/")[0]
        if key not in related | sets and style not in keep_out and len(rows) < SUBJECT_PICTURES:
            rows.append(row)
            sets.add(key)
    words = [style_words(drawings.styles[drawings.style[row]]) for row in rows]
    prompts = [caption(SUBJECT_TOKEN, said if number % 2 else None) for number, said in enumerate(words)]
    return Concept("subject", name, rows, prompts)


def style_concept(drawings: Drawings, name: str) -> Concept:
    """A held-out style: sixteen of its drawings of known subjects, a seeded choice."""
    known = [
        row
        for row in rows_of(drawings, style=name)
        if drawings.subjects[drawings.subject[row]] in KNOWN_SUBJECTS
    ]
    rows = np.random.default_rng(0).choice(known, STYLE_PICTURES, replace=False).tolist()
    return Concept(
        "style", name, rows, [caption(drawings.subjects[drawings.subject[row]], STYLE_TOKEN) for row in rows]
    )


@dataclass(frozen=True)
class Anew:
    """Prompts whose conditioning is computed each time it is asked for, as a text encoder in training needs."""

    studio: Studio
    ids: Tensor

    def __getitem__(self, rows: Tensor) -> Prompted:
        prompted: Prompted = self.studio.text(self.ids[:, rows])
        return prompted


@dataclass(frozen=True)
class Recipe:
    """How to train a LoRA.

    Attributes:
        rank: of every layer.
        text: the text encoders' layers too.
        times: as many updates as STEPS, times this.
    """

    rank: int = RANK
    text: bool = False
    times: float = 1.0

    @property
    def suffix(self) -> str:
        """What tells a file's name from the plain recipe's."""
        rank = f"-rank{self.rank}" if self.rank != RANK else ""
        return rank + ("-text" if self.text else "") + ("-long" if self.times > 1 else "")


def learn(
    studio: Studio, drawings: Drawings, concept: Concept, recipe: Recipe | None = None
) -> dict[str, LoraLayer]:
    """The concept's LoRA, at the studio's size."""
    recipe = recipe or Recipe()
    z = encode(studio.vae, drawings.pixels[concept.rows], studio.size).float()
    steps = round(STEPS[concept.kind] * recipe.times)
    if not recipe.text:
        return train(studio.unet, z, studio.said(concept.prompts), steps, RATE, recipe.rank)
    said = Anew(studio, studio.text.tokens(concept.prompts, studio.length))
    return train(studio.unet, z, said, steps, RATE, recipe.rank, studio.text_modules())


def write(file: Path, concept: Concept, recipe: Recipe, layers: dict[str, LoraLayer]) -> None:
    """The LoRA as kohya's file, with its prompts in the header."""
    prompts = {prompt: concept.prompts.count(prompt) for prompt in sorted(set(concept.prompts))}
    metadata = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(recipe.rank),
        "ss_network_alpha": str(recipe.rank),
        "ss_output_name": file.stem,
        "ss_steps": str(round(STEPS[concept.kind] * recipe.times)),
        "ss_learning_rate": str(RATE),
        "ss_tag_frequency": json.dumps({"pictures": prompts}),
    }
    write_lora(file, layers, metadata, "fp16", True, {})


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one half's LoRAs and write them to ``--out``/loras."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl2.lora", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--half", choices=sorted(HALVES), default="choosing")
    parser.add_argument("--only", default="", help="names of subjects and styles, separated by commas")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--times", type=float, default=1.0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = Recipe(args.rank, args.text, args.times)
    drawings, studio = load(args.out), Studio.load(args.model, args.size)
    folder = args.out / "loras"
    folder.mkdir(exist_ok=True)
    subjects, styles = HALVES[args.half]
    concepts = [style_concept(drawings, name) for name in styles]
    concepts += [subject_concept(drawings, name, KNOWN_PANEL) for name in subjects]
    wanted = args.only.split(",") if args.only else [concept.name for concept in concepts]
    for concept in concepts:
        name = f"minixl2_{concept.kind}_{concept.name.replace('/', '-')}{recipe.suffix}.safetensors"
        if concept.name in wanted and not (folder / name).is_file():
            write(folder / name, concept, recipe, learn(studio, drawings, concept, recipe))
            print(name, flush=True)


if __name__ == "__main__":
    main()
