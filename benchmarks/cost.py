"""Arithmetic of a merge on the full-size SDXL UNet, counted on the meta device: any machine can.

Unit: one forward of the UNet on one sample at 1024 x 1024. ``python -m benchmarks.cost --json``.

The public script's step (mkshing/ziplora-pytorch) is written here from its description: two
student forwards with a dense merged delta weight beside each layer's own, whose gradients are
dense too, and two teachers' forwards in every step. Nothing of that script is used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.dense import dense_student
from lib_ziplora.config import LoraInput, MergeSettings
from lib_ziplora.denoiser import Conditioning
from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.progress import combined_units, heldout_steps, lora_units, search_units, update_units
from lib_ziplora.ziplora.coefficients import MergerCoefficients
from lib_ziplora.ziplora.hooks import adapters, checkpointed, lora_hooks
from lib_ziplora.ziplora.memory import Plan
from lib_ziplora.ziplora.objective import relative_error, similarity

SDXL_UNET = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


UNIT_TFLOP = 6.76
SPEEDS = {"RTX 3060": 11.3, "RTX 4070": 25.8, "H100": 370.0}
"""Assumed: TFLOP a second that cards reach in half precision on such a UNet."""


class MetaDenoiser:
    """SDXL's UNet without weights."""

    def __init__(self, latent: int = 128) -> None:
        with torch.device("meta"):
            self.unet: nn.Module = UNet2DConditionModel(**SDXL_UNET).requires_grad_(False).eval()
        self.latent = latent
        self.device, self.dtype = torch.device("meta"), torch.float32
        self.alphas_cumprod, self.prediction_type, self.latent_channels = torch.ones(1000), "epsilon", 4

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        added = {"text_embeds": cond.vector[:, :1280], "time_ids": cond.vector[:, 1280:]}
        return self.unet(x_t, t, cond.context, added_cond_kwargs=added).sample

    def checkpoint_blocks(self) -> Sequence[nn.Module]:
        names = ("BasicTransformerBlock", "ResnetBlock2D")
        return [module for module in self.unet.modules() if type(module).__name__ in names]

    def inputs(self, batch: int) -> tuple[Tensor, Tensor, Conditioning]:
        with torch.device("meta"):
            cond = Conditioning(torch.empty(batch, 77, 2048), torch.empty(batch, 1286))
            return torch.empty(batch, 4, self.latent, self.latent), torch.empty(batch), cond


def lora(modules: Mapping[str, nn.Module], rank: int) -> dict[str, LoraLayer]:
    """A LoRA of the given rank over the modules, without values."""
    layers = {}
    for name, module in modules.items():
        shape = module.weight.shape
        down, up = (rank, *shape[1:]), (shape[0], rank)
        layers[name] = LoraLayer(name, torch.empty(down, device="meta"), torch.empty(up, device="meta"), rank)
    return layers


def attention_only(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The projections of the attentions, as the paper trains them."""
    return {name: module for name, module in modules.items() if "_attn1_" in name or "_attn2_" in name}


def chosen_layers(unet: nn.Module, layers: str) -> dict[str, nn.Module]:
    """``attention``: 560 projections; ``kohya``: the 722 modules that sd-scripts trains by default; ``all``: 794."""
    every = canonical_modules(unet)
    if layers == "attention":
        return attention_only(every)
    parts = ("_transformer_blocks_", "_proj_in", "_proj_out") if layers == "kohya" else ("",)
    return {name: module for name, module in every.items() if any(part in name for part in parts)}


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of ``work``, by torch's counter."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return counter.get_total_flops()


def unit(denoiser: MetaDenoiser) -> int:
    """One forward of one sample, without gradients."""
    with torch.no_grad():
        return flops(lambda: denoiser.predict(*denoiser.inputs(1)))


def our_step(
    denoiser: MetaDenoiser,
    modules: Mapping[str, nn.Module],
    concepts: Sequence[Mapping[str, LoraLayer]],
    plan: Plan,
) -> int:
    """One update of the loop: all concepts in one batch, forward and backward."""
    coefficients = MergerCoefficients.ones(concepts, "meta")
    count, recomputed = len(concepts), plan.recomputed(denoiser.checkpoint_blocks())

    def step() -> None:
        with lora_hooks(modules, coefficients.adapters()), checkpointed(recomputed):
            x_t, t, cond = denoiser.inputs(count)
            output = denoiser.predict(x_t, t, cond)
            loss = relative_error(output, torch.empty_like(output), torch.ones(count, device="meta"))
            (loss + 0.1 * similarity(coefficients)).backward()

    return flops(step)


def public_script_step(
    denoiser: MetaDenoiser, modules: Mapping[str, nn.Module], concepts: Sequence[Mapping[str, LoraLayer]]
) -> int:
    """Two students over dense merged weights, two teachers, every step anew."""
    x_t, t, cond = denoiser.inputs(1)
    deltas = {name: [_dense(layers[name]) for layers in concepts] for name in modules}
    vectors = {
        name: [torch.ones(pair[0].shape[1], device="meta", requires_grad=True) for _ in pair]
        for name, pair in deltas.items()
    }

    def step() -> None:
        for _ in concepts:
            with dense_student(modules, deltas, vectors):
                denoiser.predict(x_t, t, cond).square().mean().backward()
        for layers in concepts:
            teacher = adapters(layers, "meta", torch.float32)
            with torch.no_grad(), lora_hooks(modules, teacher):
                denoiser.predict(x_t, t, cond)

    return flops(step)


def _dense(layer: LoraLayer) -> Tensor:
    return torch.empty(layer.out_features, layer.in_features, device="meta")


def values_held(concepts: Sequence[Mapping[str, LoraLayer]]) -> int:
    """Factors and coefficients that a run holds."""
    layers = [layer for concept in concepts for layer in concept.values()]
    return sum(layer.down.numel() + layer.up.numel() + layer.in_features for layer in layers)


def dense_values(concepts: Sequence[Mapping[str, LoraLayer]]) -> int:
    """Delta weight entries that the public script holds."""
    return sum(layer.in_features * layer.out_features for concept in concepts for layer in concept.values())


def run_overhead() -> int:
    """Units of a default run of two LoRAs beside its updates: trajectories, teachers, scales, held-out figures.

    The objective is the paper's, without a term for a combined prompt.
    """
    settings = MergeSettings(combined_weight=0.0)
    return sum(lora_units(settings, chosen) for chosen in (LoraInput("a"), LoraInput("b")))


def stages() -> str:
    """Units of a default merge by stage, as the progress bar counts them, and the seconds that cards would take."""
    settings, chosen = MergeSettings(), (LoraInput("a"), LoraInput("b"))
    weighed = settings.searches_strengths
    measuring = 2 * len(chosen) * heldout_steps(settings)
    units = {
        "samples of each LoRA": sum(lora_units(settings, lora) for lora in chosen) - measuring,
        "weighing subject and style": search_units(settings, len(chosen)) if weighed else 0,
        "samples of the combined prompt": combined_units(settings),
        "held-out errors, before and after": measuring,
        f"{settings.steps} updates": settings.steps * update_units(len(chosen)),
    }
    units["all"] = sum(units.values())
    rows = [
        f"| stage | units | share | {' | '.join(f'{card}, s' for card in SPEEDS)} |",
        "|---|---:|---:" + "|---:" * 3 + "|",
    ]
    for stage, count in units.items():
        seconds = " | ".join(f"{count * UNIT_TFLOP / speed:.0f}" for speed in SPEEDS.values())
        rows.append(f"| {stage} | {count} | {count / units['all']:.0%} | {seconds} |")
    return "\n".join(rows)


def measure(
    rank: int = 64, layers: str = "attention", denoiser: MetaDenoiser | None = None
) -> dict[str, float]:
    """The counted figures for two LoRAs of one rank; ``layers``: ``attention`` or ``all``."""
    denoiser = denoiser or MetaDenoiser()
    modules = chosen_modules(denoiser, layers)
    concepts = [lora(modules, rank), lora(modules, rank)]
    one = unit(denoiser)
    figures = {
        "unit_tflop": one / 1e12,
        "step_units": our_step(denoiser, modules, concepts, Plan(True, 0.0)) / one,
        "step_units_checkpointed": our_step(denoiser, modules, concepts, Plan(True, 1.0)) / one,
        "run_overhead_units": run_overhead(),
        "values_held": values_held(concepts),
        "coefficients": sum(m.numel() for m in MergerCoefficients.ones(concepts, "meta").parameters()),
    }
    if layers == "attention":
        figures["public_script_step_units"] = public_script_step(denoiser, modules, concepts) / one
        figures["public_script_values_held"] = dense_values(concepts)
    return figures


def chosen_modules(denoiser: MetaDenoiser, layers: str) -> dict[str, nn.Module]:
    """The UNet's modules that LoRAs of a kind change: ``attention`` or ``all``."""
    every = canonical_modules(denoiser.unet)
    return attention_only(every) if layers == "attention" else every


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=64, help="of both LoRAs")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    parser.add_argument("--stages", action="store_true", help="a default merge by stage, and end")
    arguments = parser.parse_args()
    if arguments.stages:
        print(stages())
        return
    denoiser = MetaDenoiser()
    figures = measure(arguments.rank, "attention", denoiser)
    everything = measure(arguments.rank, "all", denoiser)
    if arguments.json:
        print(json.dumps({**figures, "all_layers": everything}, indent=2))
        return
    print(f"{'two LoRAs of rank ' + str(arguments.rank):28} {'attention':>15} {'all layers':>15}")
    for name, value in figures.items():
        cells = [
            f"{v:,.2f}" if v < 1e4 else f"{v:,.0f}" for v in (value, everything.get(name)) if v is not None
        ]
        print(f"{name:28} {' '.join(f'{cell:>15}' for cell in cells)}")


if __name__ == "__main__":
    main()
