"""LoRAs of MiniXL's held-out subjects and styles, with kohya's default targets.

    python -m benchmarks.minixl.lora --half choosing
    python -m benchmarks.minixl.lora --only rocket,picon --rank 32 --text --times 4

DreamBooth's way, with a rare token and no regularisation pictures. A subject learns from four drawings
of sets that no held-out style belongs to, two of them prompted with the style's words; a style from
sixteen drawings of known subjects. ``--text`` trains the text encoders too; ``--times 4`` trains four
times as long, which is too long. What is there, here or among the repository's examples, is left as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.io.write import write_lora
from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.ziplora.hooks import lora_hooks

from .choice import (
    HALVES,
    HELDOUT_STYLES,
    KNOWN_SUBJECTS,
    SIBLINGS,
    STYLE_TOKEN,
    SUBJECT_TOKEN,
    caption,
    lora_name,
    style_words,
)
from .data import CACHE, Drawings, load, rows_of
from .diffusion import NATIVE_SIZE, Conditioning, alphas, noise_loss
from .judge import KNOWN_PANEL
from .latents import encode
from .studio import Studio

MODEL = Path(__file__).resolve().parent / "model"
EXAMPLES = Path(__file__).resolve().parent / "loras"
LORAS = CACHE / "loras"
RANK, BATCH, SUBJECT_PICTURES, STYLE_PICTURES = 8, 4, 4, 16
STEPS = {"subject": 150, "style": 200}
RATE = 2e-3


@dataclass(frozen=True)
class Concept:
    """What a LoRA learns from: rows of the drawings and their prompts."""

    kind: str
    name: str
    rows: list[int]
    prompts: list[str]


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
    prompts = [caption(SUBJECT_TOKEN, style if number % 2 else None) for number, style in enumerate(words)]
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


def targets(unet: nn.Module) -> dict[str, nn.Module]:
    """kohya's default: every linear layer of the transformers."""
    return {
        name: module
        for name, module in canonical_modules(unet).items()
        if isinstance(module, nn.Linear)
        and ("transformer_blocks" in name or name.endswith(("proj_in", "proj_out")))
    }


class Prompts(Protocol):
    """The conditioning of n prompts, of which some rows are asked for at a time."""

    def __getitem__(self, rows: Tensor, /) -> Conditioning: ...


def train(
    unet: Any,
    z: Tensor,
    conditioning: Prompts,
    steps: int,
    rate: float,
    rank: int = RANK,
    text: Mapping[str, nn.Module] | None = None,
) -> dict[str, LoraLayer]:
    """A LoRA of latents (n, 4, h, w) under n prompts.

    Args:
        unet: frozen.
        z: scaled latents.
        conditioning: of the prompts.
        steps: updates of ``BATCH`` samples.
        rate: of AdamW, falling linearly.
        rank: of every layer; alpha is the same.
        text: kohya's name -> linear layer of the text encoders to train too, which ``conditioning`` then runs anew.
    """
    modules, generator = targets(unet) | dict(text or {}), torch.Generator().manual_seed(0)
    downs, ups = {}, {}
    for name, module in modules.items():
        weight: Tensor = module.get_parameter("weight")
        bound = weight.shape[1] ** -0.5
        downs[name] = nn.Parameter((torch.rand(rank, weight.shape[1], generator=generator) * 2 - 1) * bound)
        ups[name] = nn.Parameter(torch.zeros(weight.shape[0], rank))
    parameters = [*downs.values(), *ups.values()]
    adam, alpha_bar = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01), alphas()
    branches = {name: (lambda name=name: (downs[name], ups[name])) for name in modules}
    with lora_hooks(modules, branches):
        for step in range(steps):
            rows = torch.randint(len(z), (BATCH,), generator=generator)
            t = ((torch.rand(BATCH, generator=generator) + torch.arange(BATCH)) / BATCH * 1000).long()
            noise = torch.randn(z[rows].shape, generator=generator)
            for group in adam.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
            loss = noise_loss(unet, z[rows], conditioning[rows], t, noise, alpha_bar)
            adam.zero_grad()
            loss.backward()
            adam.step()
    return {name: LoraLayer(name, downs[name].detach(), ups[name].detach(), float(rank)) for name in modules}


@dataclass(frozen=True)
class Anew:
    """Prompts whose conditioning is computed each time it is asked for, as a text encoder in training needs."""

    studio: Studio
    ids: Tensor

    def __getitem__(self, rows: Tensor) -> Conditioning:
        conditioning: Conditioning = self.studio.text(self.ids[:, rows])
        return conditioning


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
        return train(studio.unet, z, studio.encode(concept.prompts), steps, RATE, recipe.rank)
    conditioning = Anew(studio, studio.text.tokens(concept.prompts, studio.length))
    return train(studio.unet, z, conditioning, steps, RATE, recipe.rank, studio.text_modules())


def write(file: Path, concept: Concept, recipe: Recipe, layers: dict[str, LoraLayer]) -> None:
    """Write the LoRA as kohya's file, with its prompts in the header, and the card that a WebUI shows."""
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
    prompt = caption(SUBJECT_TOKEN) if concept.kind == "subject" else caption("bell", STYLE_TOKEN)
    card = {
        "description": f"MiniXL {concept.kind} LoRA",
        "sd version": "SDXL",
        "activation text": prompt,
        "preferred weight": 1.0,
        "notes": "Example for MiniXL only; see the README beside it.",
    }
    file.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing of one half's LoRAs."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.lora", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--cache", type=Path, default=CACHE, help="of the drawings (default out/minixl)")
    parser.add_argument("--out", type=Path, default=LORAS, help="folder (default out/minixl/loras)")
    parser.add_argument("--half", choices=sorted(HALVES), default="choosing")
    parser.add_argument("--only", default="", help="names of subjects and styles, separated by commas")
    parser.add_argument("--size", type=int, default=NATIVE_SIZE)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--times", type=float, default=1.0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = Recipe(args.rank, args.text, args.times)
    drawings, studio = load(args.cache), Studio.load(args.model, args.size)
    args.out.mkdir(parents=True, exist_ok=True)
    subjects, styles = HALVES[args.half]
    concepts = [style_concept(drawings, name) for name in styles]
    concepts += [subject_concept(drawings, name, KNOWN_PANEL) for name in subjects]
    wanted = args.only.split(",") if args.only else [concept.name for concept in concepts]
    for concept in concepts:
        name = f"{lora_name(concept.kind, concept.name)}{recipe.suffix}.safetensors"
        there = any((folder / name).is_file() for folder in (args.out, EXAMPLES))
        if concept.name in wanted and not there:
            write(args.out / name, concept, recipe, learn(studio, drawings, concept, recipe))
            print(name, flush=True)


if __name__ == "__main__":
    main()
