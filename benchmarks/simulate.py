"""A merge on full-size SDXL on a card that isn't there, stage by stage: ``python -m benchmarks.simulate``.

Memory that is alive, launches, copies and waits are counted on fake tensors (see ``fake_cuda``), through the
diffusers host's own session. The merge is shortened (``--updates``, ``--trajectories``, ``--steps``, few pictures to
weigh by): peaks don't depend on it, counts are given for a unit, one forward of one sample. ``--plans``: the peak of
an update under every plan beside its estimate.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.fake_cuda import GB, Ledger, fake_card  # isort: skip, before torch

import torch
from torch import nn

from benchmarks import memory
from benchmarks.cost import SDXL_UNET, chosen_layers
from lib_ziplora.config import LoraInput, MergeSettings
from lib_ziplora.errors import ZipLoraError
from lib_ziplora.hosts import Progress
from lib_ziplora.hosts._a1111.guard import norms_in_own_dtype
from lib_ziplora.hosts._diffusers import model
from lib_ziplora.hosts._diffusers.text import text_modules
from lib_ziplora.hosts.standalone import DiffusersSession, frozen
from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.pipeline.write import TextLayers
from lib_ziplora.progress import Meter
from lib_ziplora.training import strengths
from lib_ziplora.training.run import learn
from lib_ziplora.ziplora import likelihood
from lib_ziplora.ziplora.memory import plans

FREE = {8: 7.5, 12: 11.3, 24: 23.2}
"""GB of a card that are left beside the CUDA context and the desktop."""
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
MINIXL = Path(__file__).parent / "minixl/model"
TINY = {
    **SDXL_UNET,
    "sample_size": 16,
    "block_out_channels": (32, 64, 64),
    "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (2, 2, 2),
    "norm_num_groups": 16,
    "layers_per_block": 1,
}


@contextlib.contextmanager
def built(dtype: torch.dtype) -> Iterator[None]:
    """Modules built inside the block are on the card, in this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            yield
    finally:
        torch.set_default_dtype(before)


def pipeline_of(dtype: torch.dtype, tiny: bool = False) -> Any:
    """SDXL as the standalone host loads it: the autoencoder in fp32, the rest in the dtype; no values."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def text(width: int, layers: int, heads: int, activation: str) -> CLIPTextConfig:
        return CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=2 if tiny else layers,
            num_attention_heads=heads,
            hidden_act=activation,
            projection_dim=width,
            bos_token_id=49406,
            eos_token_id=49407,
        )

    with built(dtype):
        unet = UNet2DConditionModel(**(TINY if tiny else SDXL_UNET))
        first = CLIPTextModel(text(768, 12, 12, "quick_gelu"))
        second = CLIPTextModelWithProjection(text(1280, 32, 20, "gelu"))
    with built(torch.float32):
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[32] * 4 if tiny else [128, 256, 512, 512],
            layers_per_block=2,
            latent_channels=4,
            sample_size=1024,
        )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=first,
        text_encoder_2=second,
        unet=unet,
        tokenizer=CLIPTokenizer.from_pretrained(MINIXL / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(MINIXL / "tokenizer_2"),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def lora_without_values(modules: Mapping[str, nn.Module], rank: int) -> dict[str, LoraLayer]:
    """A LoRA in fp16 as the reader leaves it in main memory."""
    layers = {}
    for name, module in modules.items():
        out, *columns = module.weight.shape
        down = torch.empty(rank, *columns, dtype=torch.float16)
        layers[name] = LoraLayer(name, down, torch.empty(out, rank, dtype=torch.float16), rank)
    return layers


class SilentHost:
    """As much of a host as a meter asks for."""

    def report(self, progress: Progress) -> None: ...

    def interrupted(self) -> bool:
        return False

    def finish_requested(self) -> bool:
        return False


class StageMeter(Meter):
    """A meter whose stages are the ledger's, with the units of each."""

    def __init__(self, ledger: Ledger) -> None:
        host: Any = SilentHost()
        super().__init__(host, None, 10**6)
        self.ledger, self.units = ledger, [0]

    def enter(self, stage: str, text: str) -> None:
        self.ledger.enter(text)
        self.units.append(0)
        super().enter(stage, text)

    def advance(self, units: int, *args: Any, **kwargs: Any) -> None:
        self.units[-1] += units
        super().advance(units, *args, **kwargs)


@contextlib.contextmanager
def autocast(unet: nn.Module, on: bool) -> Iterator[None]:
    """Every forward under ``torch.autocast``, as the WebUI's ``apply_model`` opens it (the backward pass is not)."""
    if not on:
        yield
        return
    unet.__dict__["forward"] = torch.autocast("cuda")(unet.forward)
    with norms_in_own_dtype(unet):
        yield
    del unet.__dict__["forward"]


def simulate(
    gigabytes: float,
    settings: MergeSettings,
    layers: str = "kohya",
    rank: int = 64,
    dtype: torch.dtype = torch.float16,
    under_autocast: bool = False,
    tiny: bool = False,
) -> dict[str, Any]:
    """A merge of two LoRAs with text-encoder layers; ``problem`` tells what ended it early, "" where nothing did."""
    problem, plan = "", ""
    with fake_card(gigabytes) as ledger:
        pipeline = pipeline_of(dtype, tiny)
        weights = sum(p.numel() * p.element_size() for p in pipeline.unet.parameters())
        parts = [pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2]
        concepts = [lora_without_values(chosen_layers(pipeline.unet, layers), rank) for _ in range(2)]
        text = lora_without_values(text_modules(parts[2:]), 2 * rank)
        text = {name: layer for name, layer in text.items() if "text_projection" not in name}
        deltas = TextLayers(text, []).deltas(torch.device("cuda"))
        chosen = [
            LoraInput("a", "a sks dog", role="subject"),
            LoraInput("b", "a cat in szn style", role="style"),
        ]
        meter, loaded = StageMeter(ledger), ledger.live
        with (
            frozen(parts),
            autocast(pipeline.unet, under_autocast),
            mock.patch.object(strengths, "SEARCH_STEPS", 2),
            mock.patch.object(likelihood, "TIMES", (0.5,)),
        ):
            session = DiffusersSession(pipeline, model.denoiser_of(pipeline))
            try:
                learnt, vectors = learn(session, concepts, chosen, deltas, settings, meter)
                plan = learnt.plan
                del learnt, vectors
            except (torch.cuda.OutOfMemoryError, ZipLoraError) as error:
                problem = f"{type(error).__name__}: {error}"
        gc.collect()
        ledger.enter("afterwards")
        meter.units.append(0)
        stages = [
            {**vars(stage), "units": units} for stage, units in zip(ledger.stages, meter.units, strict=True)
        ]
        return {
            "stages": stages,
            "plan": plan,
            "problem": problem,
            "unet": weights,
            "loaded": loaded,
            "left": ledger.live - loaded,
            "mixed": dict(ledger.mixed),
        }


def plan_peaks(
    size: int = 1024,
    layers: str = "kohya",
    rank: int = 64,
    dtype: torch.dtype = torch.float16,
    under_autocast: bool = False,
    tiny: bool = False,
    numbers: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """One update under every plan (of those ``numbers``): its peak with the checkpoint, and the estimate, in GB."""
    config = TINY if tiny else SDXL_UNET
    with fake_card(1000) as ledger:
        denoiser = memory.RandomDenoiser(config, torch.device("cuda", 0), dtype)
        concepts = [lora_without_values(chosen_layers(denoiser.unet, layers), rank) for _ in range(2)]
        rows = []
        with autocast(denoiser.unet, under_autocast):
            for number, plan in enumerate(plans("auto", "auto")):
                if numbers and number not in numbers:
                    continue
                ledger.enter(plan.description)
                print(plan.description, flush=True)
                rows.append(memory.of_plan(denoiser, concepts, plan, size, 2))
                rows[-1] |= {"launches": ledger.stage.launches}
                rows[-1].pop("seconds_an_update", None)  # those of this machine, which say nothing
                rows[-1] = {k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}
        return rows


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser("python -m benchmarks.simulate", description=__doc__.splitlines()[0])
    parser.add_argument("--card", type=float, default=24, help="GB of the card: 8, 12, 24")
    parser.add_argument("--method", default="ziplora")
    parser.add_argument("--layers", choices=("kohya", "attention", "all"), default="kohya")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--size", type=int, default=1024, help="width and height in pixels")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--autocast", action="store_true", help="forwards under autocast, as in the WebUI")
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--trajectories", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a small UNet, to try the command itself")
    parser.add_argument("--plans", action="store_true", help="an update under every plan, and end")
    parser.add_argument("--only", type=int, nargs="*", default=(), help="numbers of the plans, 0 the fastest")
    parser.add_argument("--lines", action="store_true", help="copies and waits by line of the library")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args(arguments)
    dtype, free = DTYPES[args.dtype], FREE.get(int(args.card), args.card)
    if args.plans:
        rows = plan_peaks(args.size, args.layers, args.rank, dtype, args.autocast, args.tiny, args.only)
        for row in rows:
            over = row["estimated_gb"] / row["peak_gb"] - 1
            print(
                f"{row['plan']}: {row['peak_gb']:.2f} GB, estimated {row['estimated_gb']:.2f} ({over:+.1%})"
            )
        return written({"plans": rows}, args.json)
    settings = MergeSettings(
        steps=args.updates,
        width=args.size,
        height=args.size,
        combined_prompt="a sks dog in szn style",
        method=args.method,
        trajectories=args.trajectories,
        sampling_steps=args.steps,
    )
    found = simulate(free, settings, args.layers, args.rank, dtype, args.autocast, args.tiny)
    print(table(found["stages"], args.lines))
    print(
        f"\nUNet {found['unet'] / GB:.2f} GB; plan: {found['plan']}; left behind {found['left'] / GB:.3f} GB"
    )
    for line, count in found["mixed"].items():
        print(f"{count} products of two dtypes: {line}")
    if found["problem"]:
        print(found["problem"])
    return written(found, args.json)


def written(found: dict[str, Any], path: Path | None) -> dict[str, Any]:
    if path:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def table(stages: Sequence[Mapping[str, Any]], lines: bool = False) -> str:
    """The stages as a Markdown table."""
    rows = [
        "| stage | units | peak, GB | launches | copies | MB moved | waits |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for stage in stages:
        copies, moved, waits = (sum(stage[name].values()) for name in ("copies", "moved", "waits"))
        rows.append(
            f"| {stage['name']} | {stage['units']} | {stage['peak'] / GB:.2f} | {stage['launches']} | "
            f"{copies} | {moved / 1e6:.0f} | {waits} |"
        )
        if lines:
            rows += [f"  {n} copies {line}" for line, n in sorted(stage["copies"].items())]
            rows += [f"  {n} waits {line}" for line, n in sorted(stage["waits"].items())]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
