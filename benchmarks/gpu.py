"""One run on a machine with a GPU, in nine minutes at most: ``make gpu`` (or ``python -m benchmarks.gpu``).

First whether the arithmetic is right, on MiniXL in fp32, fp16 and bf16 against the CPU in fp32; then the full-size
UNet with random weights: each plan's peak beside its estimate and the simulation's, seconds of each stage, where an
update's time goes. Nothing is downloaded. The figures go into ``benchmarks/results/`` under the card's name;
``--docs`` prints the tables of docs/performance.md from all of them. ``--tiny --device cpu`` tries the whole run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import lessons, memory
from benchmarks.cost import SDXL_UNET, chosen_layers
from benchmarks.methods import BOTH_PROMPT, LORAS, Pair
from lib_ziplora.config import MergeSettings
from lib_ziplora.progress import Meter
from lib_ziplora.training.run import learn
from lib_ziplora.ziplora.memory import plans
from lib_ziplora.ziplora.train import backward, batches

RESULTS = Path(__file__).parent / "results"
SIMULATED = RESULTS / "simulated.json"
"""Peaks by plan, from ``python -m benchmarks.simulate --plans --json``."""
TOLERANCE = {"fp32": 0.01, "fp16": 0.03, "bf16": 0.15}
"""Of predictions and gradients: relative error against the CPU in fp32. TF32 convolutions have 10 bits, bf16 has 8."""
SHORT = MergeSettings(
    steps=3, width=64, height=64, trajectories=1, sampling_steps=3, combined_prompt=BOTH_PROMPT
)


def small_pair() -> Pair:
    """The first subject and style of the repository's LoRAs."""
    names = {
        kind: next(LORAS[0].glob(f"minixl_{kind}_*.safetensors")).stem.split("_", 2)[2]
        for kind in ("subject", "style")
    }
    return Pair(names["subject"], names["style"])


def prediction_and_gradients(at: lessons.Desk, data: lessons.TrainingData) -> tuple[Tensor, Tensor]:
    """What the plain sum's objective gives for a first update: its errors, and all coefficients' gradients."""
    start, draws = at.ones(), next(batches(data.terms, 2, 0))
    moved = [replace(draw, sample=on_device(draw.sample, at.denoiser.device)) for draw in draws]
    errors = backward(at.denoiser, at.modules, start, moved, SHORT, 1.0, lessons.FAST)
    return errors.cpu(), torch.cat([p.grad.flatten().cpu() for p in start.parameters()])


def on_device(samples: lessons.Samples, device: torch.device) -> lessons.Samples:
    cond = lessons.Conditioning(samples.cond.context.to(device), samples.cond.vector.to(device))
    moved = {name: getattr(samples, name).to(device) for name in ("x_t", "t", "target", "scale")}
    return replace(samples, cond=cond, **moved)


def checksum(module: nn.Module) -> str:
    """Of every bit of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def correctness(device: str, dtypes: Sequence[str] = tuple(TOLERANCE)) -> Iterator[dict[str, Any]]:
    """Errors and gradients in each dtype against the CPU in fp32, and a short merge that leaves the model as it was."""
    pair = small_pair()
    with lessons.desk(pair) as at:
        data = lessons.draw(at, SHORT)
        expected = prediction_and_gradients(at, data)
    for dtype in dtypes:
        with lessons.desk(pair, dtype, device) as at:
            found = prediction_and_gradients(at, data)
            apart = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
            pipeline = at.session.pipeline
            parts = (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae)
            before = [checksum(part) for part in parts]
            meter = Meter(at.host, None, 10**6)
            learnt, vectors = learn(at.session, at.concepts, lessons.inputs(), {}, SHORT, meter)
            finite = all(bool(v.isfinite().all()) for part in vectors for v in part.values())
            same = before == [checksum(part) for part in parts]
        right = finite and same and max(apart) < TOLERANCE[dtype]
        yield {
            "dtype": dtype,
            "errors_apart": apart[0],
            "gradients_apart": apart[1],
            "heldout_errors": learnt.heldout_errors,
            "weights_bit_for_bit": same,
            "right": right,
        }


def simulated(dtype: str, tiny: bool) -> Mapping[str, float]:
    """The simulation's peak in GB by plan; empty where there is none."""
    if tiny or not SIMULATED.is_file():
        return {}
    return {row["plan"]: row["peak_gb"] for row in json.loads(SIMULATED.read_text(encoding="utf-8"))["plans"]}


def full_size(device: torch.device, dtype: str, tiny: bool, updates: int, until: float) -> dict[str, Any]:
    """Every plan, whole merges and an update's profile on a UNet with random weights, as long as there is time."""
    size, rank = (64, 4) if tiny else (1024, 64)
    denoiser = memory.RandomDenoiser(memory.TINY_UNET if tiny else SDXL_UNET, device, memory.DTYPES[dtype])
    modules = chosen_layers(denoiser.unet, "kohya")
    concepts = [memory.random_lora(modules, rank, seed) for seed in (0, 1)]
    figures: dict[str, Any] = {"dtype": dtype, "size": size, "rank": rank, "plans": []}
    peaks = simulated(dtype, tiny)

    def part(name: str, work: Callable[[], Any]) -> Any:
        if time.monotonic() > until:
            print(f"{name}: no time left", flush=True)
            return None
        with memory.told(name):
            return work()

    for plan in plans("auto", "auto"):
        row = part(plan.description, lambda plan=plan: memory.of_plan(denoiser, concepts, plan, size, 3))
        if row:
            figures["plans"].append({**row, "simulated_gb": peaks.get(plan.description)})
    settings = MergeSettings(steps=updates, width=size, height=size, combined_prompt="a in b")
    figures["run"] = part("default merge", lambda: memory.whole_run(denoiser, concepts, settings))
    at_once = replace(settings, method="instant")
    figures["instant"] = part("instant merge", lambda: memory.whole_run(denoiser, concepts, at_once))
    figures["profile"] = part("profile", lambda: memory.profiled(denoiser, concepts, size))
    return figures


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """The tables of docs/performance.md, of every card that was measured."""
    lines: list[str] = []
    for found in results:
        lines += [
            f"### {found['machine']}",
            "",
            "| MiniXL | errors against the CPU | gradients | weights bit for bit |",
            "|---|---:|---:|---|",
        ]
        lines += [
            f"| {row['dtype']} | {row['errors_apart']:.1e} | {row['gradients_apart']:.1e} | "
            f"{'yes' if row['weights_bit_for_bit'] else 'NO'} |"
            for row in found["correctness"]
        ]
        lines += [
            "",
            "| plan | estimated | simulated | measured | seconds an update |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in found["full_size"]["plans"]:
            cells = (row["estimated_gb"], row["simulated_gb"], row.get("peak_gb"))
            words = " | ".join("" if value is None else f"{value:.2f} GB" for value in cells)
            seconds = f"{row['seconds_an_update']:.2f}" if row["fits"] else "does not fit"
            lines.append(f"| {row['plan']} | {words} | {seconds} |")
        lines += ["", "| stage | default, seconds | instant, seconds |", "|---|---:|---:|"]
        runs = [found["full_size"][name] or {"stages": {}} for name in ("run", "instant")]
        for stage in dict.fromkeys(stage for run in runs for stage in run["stages"]):
            cells = (f"{run['stages'][stage]:.2f}" if stage in run["stages"] else "" for run in runs)
            lines.append(f"| {stage} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=memory.DTYPES, default="fp16", help="of the full-size UNet")
    parser.add_argument("--updates", type=int, default=MergeSettings().steps)
    parser.add_argument("--tiny", action="store_true", help="a small UNet, to try the command itself")
    parser.add_argument("--seconds", type=float, default=480, help="what has not begun by then is left out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the figures")
    parser.add_argument("--docs", action="store_true", help="print the tables of docs/performance.md and end")
    args = parser.parse_args(arguments)
    if args.docs:
        files = [file for file in sorted(args.out.glob("*.json")) if file.name != SIMULATED.name]
        print(tables([json.loads(file.read_text(encoding="utf-8")) for file in files]))
        return {}
    until, device = time.monotonic() + args.seconds, torch.device(args.device)
    found: dict[str, Any] = {"machine": memory.machine(device), "correctness": []}
    file = args.out / (re.sub(r"[^a-z0-9]+", "-", found["machine"].lower()) + ".json")
    args.out.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

    for row in correctness(args.device, ["bf16"] if args.tiny else tuple(TOLERANCE)):
        print(row, flush=True)
        found["correctness"].append(row)
        save()
    found["full_size"] = full_size(device, args.dtype, args.tiny, args.updates, until)
    save()
    print(tables([found]), found["full_size"]["profile"] or "", f"written to {file}", sep="\n")
    if not all(row["right"] for row in found["correctness"]):
        raise SystemExit("The arithmetic on this device is not right: see above.")
    return found


if __name__ == "__main__":
    main()
