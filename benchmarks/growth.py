"""How the work and the memory of a merge grow: ``python -m benchmarks.growth``.

Counted on the full-size SDXL UNet on the meta device: the units of one update (a unit is a forward of
one sample at 1024 x 1024), the values that a run holds, and the memory that the plans are chosen by.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.cost import MetaDenoiser, chosen_modules, lora, our_step, unit, values_held
from lib_ziplora.config import LoraInput, MergeSettings
from lib_ziplora.job.progress import lora_units
from lib_ziplora.merge.footprint import estimate_memory
from lib_ziplora.merge.plans import Plan

RANKS = (4, 16, 64, 128, 256)
LORAS = (2, 3, 4, 5, 6)
SIZES = (512, 768, 1024, 1280, 1536)
SAMPLES = ((1, 9), (2, 4), (3, 3), (4, 4), (4, 8), (6, 16))
FAST, SMALL = Plan(True, 0.0), Plan(False, 1.0)


@dataclass(frozen=True)
class Point:
    """One row of a table.

    Attributes:
        step_units: one update, without checkpointing; ``checkpointed`` with it.
        values_held: factors and coefficients.
        fast_gb: estimated memory beside the checkpoint in fp16, everything in one batch and kept.
        small_gb: the same one sample at a time, with checkpointing.
    """

    rank: int
    layers: str
    loras: int
    size: int
    step_units: float
    checkpointed: float
    values_held: int
    fast_gb: float
    small_gb: float


def point(
    denoiser: MetaDenoiser,
    one: int,
    rank: int = 64,
    layers: str = "attention",
    loras: int = 2,
    size: int = 1024,
) -> Point:
    """Count one merge; ``one`` is the unit."""
    denoiser.latent = size // 8
    modules = chosen_modules(denoiser, layers)
    concepts = [lora(modules, rank) for _ in range(loras)]
    steps = [our_step(denoiser, modules, concepts, plan) / one for plan in (FAST, Plan(True, 1.0))]
    memory = [estimate_memory(concepts, size, size, plan) / 1e9 for plan in (FAST, SMALL)]
    return Point(rank, layers, loras, size, *steps, values_held(concepts), *memory)


def points() -> Iterator[tuple[str, Point]]:
    """Every table's name with its rows, one after the other."""
    denoiser = MetaDenoiser()
    one = unit(denoiser)
    for rank in RANKS:
        yield "rank", point(denoiser, one, rank=rank)
    for layers in ("attention", "all"):
        yield "layers", point(denoiser, one, layers=layers)
    for loras in LORAS:
        yield "loras", point(denoiser, one, loras=loras)
    for size in SIZES:
        yield "size", point(denoiser, one, size=size)


def sample_units() -> list[tuple[int, int, int]]:
    """Trajectories, steps of each, and the units of two LoRAs beside the updates."""
    found = []
    for trajectories, steps in SAMPLES:
        settings = MergeSettings(trajectories=trajectories, sampling_steps=max(2, steps))
        found.append((trajectories, steps, 2 * lora_units(settings, LoraInput("a"))))
    return found


def table(name: str, rows: Sequence[Point]) -> str:
    """A Markdown table of the points along one axis."""
    heads = [name, "units an update", "checkpointed", "values held", "fast plan, GB", "small plan, GB"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---:|" * len(heads)]
    for row in rows:
        cells = [str(getattr(row, name)), f"{row.step_units:.2f}", f"{row.checkpointed:.2f}"]
        cells += [f"{row.values_held / 1e6:,.0f} million", f"{row.fast_gb:.1f}", f"{row.small_gb:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()
    tables: dict[str, list[Point]] = {}
    for name, row in points():
        tables.setdefault(name, []).append(row)
    for name, rows in tables.items():
        print(table(name, rows), end="\n\n")
    print("| trajectories | steps | units beside the updates |\n|---:|---:|---:|")
    for trajectories, steps, units in sample_units():
        print(f"| {trajectories} | {steps} | {units} |")
    if args.json:
        figures = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
