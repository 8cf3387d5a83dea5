"""Train MiniXL's LoRAs: one for each held-out subject, one for each held-out style.

    python -m benchmarks.minixl.lora [--model DIR] [--out DIR] [--only turtle,fluent-emoji]

DreamBooth's way, with a rare token and no regularisation pictures: a subject from four of its
drawings in known styles, prompted ``a sks emoji``; a style from sixteen drawings of known
subjects, prompted ``a cat emoji in szn style``. kohya's default targets (all linear layers of the
transformers), kohya's names. What is there already, here or among the repository's examples, is left as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.io.write import write_lora
from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.ziplora.hooks import lora_hooks

from . import parallel
from .choice import (
    HELDOUT_STYLES,
    HELDOUT_SUBJECTS,
    STYLE_TOKEN,
    SUBJECT_TOKEN,
    UNRELATED_STYLES,
    caption,
    known_subjects,
)
from .data import CACHE, STYLES, Drawings, load
from .unet import Prompted, alphas, encode_pictures, encode_text, noise_loss

MODEL = Path(__file__).resolve().parent / "model"
EXAMPLES = Path(__file__).resolve().parent / "loras"
LORAS = CACHE.with_name("minixl-loras")
RANK, BATCH, SUBJECT_PICTURES, STYLE_PICTURES = 8, 4, 4, 16


@dataclass(frozen=True)
class Concept:
    """What a LoRA learns from.

    Attributes:
        kind: ``subject`` or ``style``.
        name: of the subject, or of the set.
        rows: of the drawings.
        prompts: one for each row.
    """

    kind: str
    name: str
    rows: list[int]
    prompts: list[str]

    @property
    def file(self) -> str:
        return f"minixl_{self.kind}_{self.name}.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How to train a LoRA: updates and rate of AdamW for each kind."""

    model: Path = MODEL
    out: Path = LORAS
    cache: Path = CACHE
    only: str = ""
    subject_steps: int = 250
    style_steps: int = 400
    rate: float = 2e-3
    workers: int = 2


def subject_concept(drawings: Drawings, name: str) -> Concept:
    """A held-out subject: four drawings of sets that no held-out set is another version of."""
    rows = []
    for style in UNRELATED_STYLES:
        try:
            rows.append(drawings.index(name, style))
        except KeyError:
            continue
    rows = rows[:SUBJECT_PICTURES]
    return Concept("subject", name, rows, [caption(SUBJECT_TOKEN, None)] * len(rows))


def style_concept(drawings: Drawings, name: str) -> Concept:
    """A held-out style: sixteen of its drawings of known subjects, a seeded choice."""
    known = [s for s in known_subjects(drawings) if _drawn(drawings, s, name)]
    chosen = np.random.default_rng(0).choice(known, STYLE_PICTURES, replace=False)
    rows = [drawings.index(subject, name) for subject in chosen]
    return Concept("style", name, rows, [caption(subject, STYLE_TOKEN) for subject in chosen])


def _drawn(drawings: Drawings, subject: str, style: str) -> bool:
    return bool(
        (
            (drawings.subject == drawings.subjects.index(subject)) & (drawings.style == STYLES.index(style))
        ).any()
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

    def __getitem__(self, rows: Tensor, /) -> Prompted: ...


def train(
    unet: Any,
    z: Tensor,
    said: Prompts,
    steps: int,
    rate: float,
    rank: int = RANK,
    text: Mapping[str, nn.Module] | None = None,
) -> dict[str, LoraLayer]:
    """A LoRA of latents (n, 4, h, w) under n prompts.

    Args:
        unet: frozen.
        z: scaled latents.
        said: the prompts' conditioning.
        steps: updates of ``BATCH`` samples.
        rate: of AdamW, falling linearly.
        rank: of every layer; alpha is the same.
        text: kohya's name -> linear layer of the text encoders to train too, which ``said`` then runs anew.
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
            loss = noise_loss(unet, z[rows], said[rows], t, noise, alpha_bar)
            adam.zero_grad()
            loss.backward()
            adam.step()
    return {name: LoraLayer(name, downs[name].detach(), ups[name].detach(), float(rank)) for name in modules}


def make(concept: Concept, drawings: Drawings, unet: Any, recipe: Recipe) -> None:
    """Train a concept's LoRA and write it with the card that a WebUI shows."""
    z = encode_pictures(recipe.model, drawings.pixels[concept.rows])
    said = encode_text(recipe.model, concept.prompts)
    steps = recipe.subject_steps if concept.kind == "subject" else recipe.style_steps
    layers = train(unet, z, said, steps, recipe.rate)
    prompt = caption(SUBJECT_TOKEN, None) if concept.kind == "subject" else caption("cat", STYLE_TOKEN)
    metadata = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(RANK),
        "ss_output_name": Path(concept.file).stem,
        "ss_steps": str(steps),
        "ss_learning_rate": str(recipe.rate),
        "ss_tag_frequency": json.dumps(
            {"pictures": {prompt: concept.prompts.count(prompt) for prompt in sorted(set(concept.prompts))}}
        ),
    }
    file = recipe.out / concept.file
    write_lora(file, layers, metadata, "fp16", True, {})
    card = {
        "description": f"MiniXL {concept.kind} LoRA",
        "sd version": "SDXL",
        "activation text": prompt,
        "preferred weight": 1.0,
        "notes": "Example for MiniXL only; see the README beside it.",
    }
    file.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def work(rank: int, recipe: Recipe) -> None:
    """One process's share of the LoRAs."""
    drawings = load(recipe.cache)
    unet = UNet2DConditionModel.from_pretrained(recipe.model / "unet").float().requires_grad_(False)
    concepts = [style_concept(drawings, name) for name in HELDOUT_STYLES]
    concepts += [subject_concept(drawings, name) for name in HELDOUT_SUBJECTS]
    wanted = recipe.only.split(",") if recipe.only else [concept.name for concept in concepts]
    for concept in [c for c in concepts if c.name in wanted][rank :: recipe.workers]:
        if not any((folder / concept.file).is_file() for folder in (recipe.out, EXAMPLES)):
            make(concept, drawings, unet, recipe)
            print(concept.file, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.lora", description=__doc__)
    parser.add_argument("--model", type=Path, default=Recipe.model)
    parser.add_argument("--out", type=Path, default=Recipe.out)
    parser.add_argument("--cache", type=Path, default=Recipe.cache)
    parser.add_argument("--only", default="", help="names of subjects and styles, separated by commas")
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    for name in ("subject_steps", "style_steps", "workers"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Recipe, name))
    recipe = Recipe(**vars(parser.parse_args(arguments)))
    recipe.out.mkdir(parents=True, exist_ok=True)
    parallel.launch(work, recipe.workers, recipe)


if __name__ == "__main__":
    main()
