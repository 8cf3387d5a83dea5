"""What could teach a merge the combined prompt? Pictures of ways to draw it without any merge, scored as in quality.

    python -m benchmarks.teachers --pairs choose --seeds 6 --names sum/1/1,sum/0.75/0.75,switch/3/0/1

A name is a kind with its numbers:

* ``sum/S/T``: the plain sum with the subject at S and the style at T;
* ``switch/K/T/S``: K steps of the subject with the style at T, then the style with the subject at S;
* ``guide/GS/GT``: the plain sum with guidance GS towards the subject and GT from there towards both;
* ``redraw/K/S``: the subject's own picture, noised to step K and denoised by the style with the subject at S;
* ``compose/GS/GT``: the single LoRAs' predictions added up (arXiv 2206.01714);
* ``depth/S1/S2/T1/T2``: the plain sum with other weights in deep (1) and shallow blocks (2).
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor, nn

from benchmarks import quality, scoring
from benchmarks.drawing import GUIDANCE, SIZE, STEPS
from benchmarks.methods import SUBJECT_PROMPT, Pair
from benchmarks.minixl.data import load
from benchmarks.minixl.embedding import load_judge
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.lora.file import read_lora
from lib_ziplora.lora.keys import canonical_modules
from lib_ziplora.lora.layer import LoraLayer

Layers = Mapping[str, LoraLayer]
Weight = Callable[[str], float]
Step = Callable[[Tensor, Tensor, int], Tensor]
"""(x_t, t, number of the step) -> prediction, guidance included."""
STYLE_ALONE_PROMPT = "an emoji in szn style"
SHALLOW = re.compile("input_blocks_[45]_|output_blocks_[345]_")
FIRST_SEED = 100
NAMES = (
    "sum/1/1,sum/0.75/0.75,sum/0.6/0.8,sum/1.25/1.25,switch/3/0/1,switch/5/0/1,switch/3/0/0.5,switch/3/0.5/0.75,"
    "guide/3.5/6,guide/5/5,redraw/4/1,redraw/4/0.5,compose/3.5/3.5,depth/1/0.4/0.5/1,depth/0.5/1/1/0.4"
)


@dataclass
class Studio:
    """MiniXL with LoRAs fused into copies of its UNet, and a sampler of one's own."""

    pipeline: Any
    rows: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def unet(self, *parts: tuple[Layers, Weight]) -> nn.Module:
        """A copy of the base's UNet with LoRAs at weights that may depend on the layer."""
        unet: nn.Module = copy.deepcopy(self.pipeline.unet).float()
        modules = canonical_modules(unet)
        for layers, weight in parts:
            for name, layer in layers.items():
                target = modules[name].get_parameter("weight")
                target.add_(weight(name) * layer.delta().reshape(target.shape))
        return unet

    def predict(self, unet: nn.Module, x_t: Tensor, t: Tensor, prompts: Sequence[str]) -> Sequence[Tensor]:
        """The predictions for each prompt; "" is the unconditional one."""
        rows = [self.row(prompt) for prompt in prompts]
        count = len(x_t)
        said = unet(
            x_t.repeat(len(prompts), 1, 1, 1),
            t,
            encoder_hidden_states=torch.cat([row[0].expand(count, -1, -1) for row in rows]),
            added_cond_kwargs={
                "text_embeds": torch.cat([row[1].expand(count, -1) for row in rows]),
                "time_ids": torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]])
                .float()
                .expand(count * len(rows), -1),
            },
        ).sample
        return said.chunk(len(prompts))

    def row(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Context and pooled vector of a prompt."""
        if prompt not in self.rows:
            context, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
                prompt=prompt or "x", do_classifier_free_guidance=True, num_images_per_prompt=1, device="cpu"
            )
            self.rows[""] = negative.float(), negative_pooled.float()
            if prompt:
                self.rows[prompt] = context.float(), pooled.float()
        return self.rows[prompt]

    def guided(self, unet: nn.Module, prompt: str) -> Step:
        """Plain classifier-free guidance."""

        def step(x_t: Tensor, t: Tensor, number: int) -> Tensor:
            plain, said = self.predict(unet, x_t, t, ["", prompt])
            return plain + GUIDANCE * (said - plain)

        return step

    def draw(self, step: Step, seeds: Sequence[int], begin: int = 0, latents: Tensor | None = None) -> Tensor:
        """Latents x_0 by the benchmark's sampler; from a noised picture at step ``begin`` where one is given."""
        scheduler = DPMSolverMultistepScheduler.from_config(
            self.pipeline.scheduler.config, use_karras_sigmas=True, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(STEPS)
        shape = (1, 4, SIZE // 8, SIZE // 8)
        x_t = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        if latents is not None:
            scheduler.set_begin_index(begin)
            x_t = scheduler.add_noise(latents, x_t, scheduler.timesteps[begin].expand(len(latents)))
        else:
            x_t = x_t * scheduler.init_noise_sigma
        for number, t in enumerate(scheduler.timesteps[begin:], begin):
            x_t = scheduler.step(step(scheduler.scale_model_input(x_t, t), t, number), t, x_t).prev_sample
        return x_t

    def pixels(self, latents: Tensor) -> np.ndarray:
        """(n, h, w, 3) uint8."""
        image = self.pipeline.vae.decode(latents / self.pipeline.vae.config.scaling_factor).sample
        pixels: np.ndarray = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        return pixels


def drawn(studio: Studio, name: str, subject: Layers, style: Layers, seeds: Sequence[int]) -> Tensor:
    """Latents of the pictures that a way of drawing gives."""
    kind, *texts = name.split("/")
    a, b, c, d = ([float(text) for text in texts] + [0.0] * 4)[:4]

    def both(s: float, t: float) -> nn.Module:
        return studio.unet((subject, lambda _: s), (style, lambda _: t))

    if kind == "sum":
        return studio.draw(studio.guided(both(a, b), quality.BOTH_PROMPT), seeds)
    if kind == "depth":
        unet = studio.unet((subject, _by_depth(a, b)), (style, _by_depth(c, d)))
        return studio.draw(studio.guided(unet, quality.BOTH_PROMPT), seeds)
    if kind == "switch":
        first = studio.guided(both(1, b), quality.BOTH_PROMPT if b else SUBJECT_PROMPT)
        second = studio.guided(both(c, 1), quality.BOTH_PROMPT)
        return studio.draw(lambda x, t, number: (first if number < a else second)(x, t, number), seeds)
    if kind == "redraw":
        own = studio.draw(studio.guided(both(1, 0), SUBJECT_PROMPT), seeds)
        later = [seed + 5000 for seed in seeds]
        return studio.draw(studio.guided(both(b, 1), quality.BOTH_PROMPT), later, int(a), own)
    if kind == "guide":
        return studio.draw(_in_two_scales(studio, both(1, 1), a, b), seeds)
    if kind == "compose":
        return studio.draw(_composed(studio, both(1, 0), both(0, 1), a, b), seeds)
    raise ValueError(f"{name} is no way of drawing; see the list in the module's docstring")


def _by_depth(deep: float, shallow: float) -> Weight:
    return lambda name: shallow if SHALLOW.search(name) else deep


def _in_two_scales(studio: Studio, unet: nn.Module, to_subject: float, to_both: float) -> Step:
    def step(x_t: Tensor, t: Tensor, number: int) -> Tensor:
        plain, subject, both = studio.predict(unet, x_t, t, ["", SUBJECT_PROMPT, quality.BOTH_PROMPT])
        return plain + to_subject * (subject - plain) + to_both * (both - subject)

    return step


def _composed(
    studio: Studio, subject_unet: nn.Module, style_unet: nn.Module, to_subject: float, to_style: float
) -> Step:
    def step(x_t: Tensor, t: Tensor, number: int) -> Tensor:
        plain, subject = studio.predict(subject_unet, x_t, t, ["", SUBJECT_PROMPT])
        (style,) = studio.predict(style_unet, x_t, t, [STYLE_ALONE_PROMPT])
        return plain + to_subject * (subject - plain) + to_style * (style - plain)

    return step


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, score, and print a line for each way."""
    parser = argparse.ArgumentParser("python -m benchmarks.teachers", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="choose")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--names", default=NAMES)
    parser.add_argument("--json", type=Path, help="write every pair's scores")
    args = parser.parse_args(arguments)
    pipeline = StandaloneHost(quality.MODEL).pipeline()
    pipeline.set_progress_bar_config(disable=True)
    studio, judge, drawings = Studio(pipeline), load_judge(), load()
    seeds = list(range(FIRST_SEED, FIRST_SEED + args.seeds))
    found: dict[str, dict[str, scoring.Scores]] = {name: {} for name in args.names.split(",")}
    pairs: list[Pair] = quality.wanted_pairs(args.pairs)
    for pair in pairs:
        subject, style = (read_lora(file).unet_layers() for file in pair.files())
        truth = scoring.true_drawing(drawings, pair.subject, pair.style)
        for name, scores in found.items():
            pixels = studio.pixels(drawn(studio, name, subject, style, seeds))
            scores[pair.name] = scoring.score(judge, pixels, pair.subject, pair.style, truth)
    rows = {name: scoring.summarise(scores) for name, scores in found.items()}
    print(scoring.table(rows, {}, "sum/1/1", sorted({pair.style for pair in pairs})))
    if args.json is not None:
        args.json.write_text(
            json.dumps({n: r.means | {"by_pair": r.headline.by_pair} for n, r in rows.items()}, indent=1)
        )


if __name__ == "__main__":
    main()
