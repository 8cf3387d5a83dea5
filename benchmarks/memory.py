"""Memory and time of a merge on an SDXL UNet with random weights, for ``benchmarks.gpu`` and ``benchmarks.simulate``.

``python -m benchmarks.memory`` prints README's table of estimates.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.cost import SDXL_UNET, MetaDenoiser, chosen_layers, lora
from lib_ziplora.config import LoraInput, MergeSettings
from lib_ziplora.denoiser import Conditioning
from lib_ziplora.hosts import Progress
from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.progress import Meter
from lib_ziplora.training.memory import estimate_memory
from lib_ziplora.training.run import learn
from lib_ziplora.ziplora.coefficients import Concept, MergerCoefficients
from lib_ziplora.ziplora.memory import Plan, plans
from lib_ziplora.ziplora.samples import Samples
from lib_ziplora.ziplora.train import Term, train

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
TINY_UNET = {
    **SDXL_UNET,
    "block_out_channels": (32, 64, 64),
    "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (2, 2, 2),
    "norm_num_groups": 16,
}


class RandomDenoiser:
    """SDXL's UNet with random weights as ``Denoiser``."""

    def __init__(self, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                self.unet: nn.Module = UNet2DConditionModel(**config).requires_grad_(False).eval()
        finally:
            torch.set_default_dtype(before)
        self.alphas_cumprod, self.prediction_type = torch.linspace(0.999, 0.005, 1000), "epsilon"
        self.latent_channels, self.device, self.dtype = 4, device, dtype

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        added = {"text_embeds": cond.vector[:, :1280].to(self.dtype), "time_ids": cond.vector[:, 1280:]}
        return self.unet(
            x_t.to(self.dtype), t, cond.context.to(self.dtype), added_cond_kwargs=added
        ).sample.float()

    def checkpoint_blocks(self) -> Sequence[nn.Module]:
        names = ("BasicTransformerBlock", "ResnetBlock2D")
        return [module for module in self.unet.modules() if type(module).__name__ in names]


class RandomHost:
    """``Session`` over a random model, and as much of a host as a meter asks for."""

    def __init__(self, denoiser: RandomDenoiser) -> None:
        self.denoiser = denoiser

    def encode_prompts(self, prompts: Sequence[str], **_: object) -> Conditioning:
        return conditioning(self.denoiser, len(prompts))

    def unet_alone(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def check_alive(self) -> None: ...

    def report(self, progress: Progress) -> None: ...

    def interrupted(self) -> bool:
        return False

    def finish_requested(self) -> bool:
        return False


def conditioning(denoiser: RandomDenoiser, rows: int) -> Conditioning:
    """77 random tokens a row."""
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(rows, 77, 2048, generator=generator)
    return Conditioning(
        context.to(denoiser.device), torch.randn(rows, 1286, generator=generator).to(denoiser.device)
    )


def random_lora(modules: Mapping[str, nn.Module], rank: int, seed: int) -> Concept:
    """Small random factors of one rank for the modules, on the CPU, as a file gives them."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, module in modules.items():
        shape = module.weight.shape
        down = torch.randn(rank, *shape[1:], generator=generator) / shape[1] ** 0.5
        up = torch.randn(shape[0], rank, generator=generator) * 0.02
        layers[name] = LoraLayer(name, down, up, rank)
    return layers


def random_samples(denoiser: RandomDenoiser, latent: int, count: int) -> Samples:
    """Samples whose targets are noise: what they cost does not depend on it."""
    x_t, target = torch.randn(2, count, 4, latent, latent, device=denoiser.device)
    t = torch.arange(count, device=denoiser.device) * (1000 // count)
    return Samples(
        x_t,
        t,
        conditioning(denoiser, 1).expand(count),
        target,
        torch.ones(count, device=denoiser.device),
    )


def of_plan(
    denoiser: RandomDenoiser, concepts: Sequence[Concept], plan: Plan, size: int, updates: int
) -> dict[str, Any]:
    """Peak and time of a few updates under a plan; ``fits`` is False where the memory ran out."""
    modules = canonical_modules(denoiser.unet)
    itemsize = denoiser.dtype.itemsize
    weights = sum(p.numel() * p.element_size() for p in denoiser.unet.parameters())
    estimate = weights + estimate_memory(concepts, size, size, plan, itemsize=itemsize)
    figures: dict[str, Any] = {"plan": plan.description, "estimated_gb": estimate / 1e9}
    settings = MergeSettings(steps=updates, width=size, height=size)
    clear(denoiser.device)
    terms = [Term("alone", random_samples(denoiser, size // 8, 2)) for _ in concepts]
    coefficients = MergerCoefficients.ones(concepts, denoiser.device, denoiser.dtype)
    times: list[float] = []
    try:
        train(
            denoiser,
            modules,
            coefficients,
            terms,
            settings,
            lambda _: times.append(time.perf_counter()) is None,
            [plan],
        )
    except Exception as problem:  # noqa: BLE001, of any kind: the other plans are measured all the same
        return {**figures, "fits": False, "problem": str(problem)}
    return {
        **figures,
        "fits": True,
        "peak_gb": peak(denoiser.device),
        "seconds_an_update": (times[-1] - times[0]) / (len(times) - 1),
    }


class StageClock(Meter):
    """A meter that also knows the seconds of each stage."""

    def __init__(self, host: Any, device: torch.device) -> None:
        super().__init__(host, None, 10**6)
        self.device, self.seconds, self.current, self.since = device, dict[str, float](), "", 0.0

    def enter(self, stage: str, text: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self.current:
            self.seconds[self.current] = self.seconds.get(self.current, 0.0) + now - self.since
        self.current, self.since = text, now
        super().enter(stage, text)


def whole_run(
    denoiser: RandomDenoiser, concepts: Sequence[Concept], settings: MergeSettings
) -> dict[str, Any]:
    """A merge with its samples and held-out figures, the seconds of each stage, and what it leaves allocated."""
    clear(denoiser.device)
    before = allocated(denoiser.device)
    host: Any = RandomHost(denoiser)
    chosen = [LoraInput("a", "a", role="subject"), LoraInput("b", "b", role="style")]
    started, clock = time.perf_counter(), StageClock(host, denoiser.device)
    learnt, vectors = learn(host, concepts, chosen, {}, settings, clock)
    clock.enter("done", "")
    seconds = time.perf_counter() - started
    plan, highest = learnt.plan, peak(denoiser.device)
    del learnt, vectors
    clear(denoiser.device, peak_too=False)
    left = (allocated(denoiser.device) - before) / 2**20
    figures = {"updates": settings.steps, "plan": plan, "seconds": seconds, "stages": clock.seconds}
    return {**figures, "peak_gb": highest, "left_mib": left}


def profiled(denoiser: RandomDenoiser, concepts: Sequence[Concept], size: int) -> str:
    """Where the time of one update goes, the twenty heaviest operations."""
    from torch.profiler import ProfilerActivity, profile

    cuda = denoiser.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    of_plan(denoiser, concepts, plans("auto", "auto")[0], size, 2)
    with profile(activities=activities) as found:
        of_plan(denoiser, concepts, plans("auto", "auto")[0], size, 2)
    key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return str(found.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=60))


def clear(device: torch.device, peak_too: bool = True) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        if peak_too:
            torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float | None:
    """Highest reserved memory in GB; None where nothing counts it."""
    return torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else None


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def machine(device: torch.device) -> str:
    """What was measured on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}"


@contextlib.contextmanager
def told(words: str) -> Iterator[None]:
    print(words, end=" ", flush=True)
    started = time.perf_counter()
    yield
    print(f"({time.perf_counter() - started:.1f} s)", flush=True)


ESTIMATED = {
    "fastest plan": 0,
    "one sample at a time": 1,
    "… recomputing 60 % of the blocks": 3,
    "smallest plan": -1,
}
"""README's rows, and the plans they are of."""


def estimates() -> str:
    """README's table: two ordinary LoRAs of rank 64 at 1024 x 1024 in fp16, and two of attention layers alone."""
    unet, allowed = MetaDenoiser().unet, plans("auto", "auto")
    pairs = [[lora(chosen_layers(unet, layers), 64)] * 2 for layers in ("kohya", "attention")]
    rows = [
        "| estimated beside the checkpoint, 1024 × 1024, fp16, two LoRAs of rank 64 | ordinary | attention only |",
        "|---|---:|---:|",
    ]
    for words, number in ESTIMATED.items():
        needs = [estimate_memory(pair, 1024, 1024, allowed[number]) / 1e9 for pair in pairs]
        rows.append(f"| {words} | {' | '.join(f'{need:.1f} GB' for need in needs)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(estimates())
