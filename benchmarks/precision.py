"""Do half-precision runs learn the coefficients that fp32 learns? ``python -m benchmarks.precision``.

On MiniXL, for every pair and dtype, the mean of |m - m32| over all coefficients, with its 99th percentile and its
largest value, twice:

- on the same samples: x_t, conditioning, scales and strengths of the fp32 run, while teachers and loop compute
  in the dtype. This is what rounding does to the algorithm.
- of whole runs: the rounded model also encodes the prompts and draws its own trajectories, which guidance
  carries away from those of fp32 step by step, so that it learns from slightly different samples.

Beside them a fp32 run with another seed, to which the differences compare. ``error`` is the held-out error of
the result, measured in fp32 on the samples of the fp32 run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import lessons
from benchmarks.methods import Pair
from lib_ziplora.config import MergeSettings
from lib_ziplora.training.target_samples import TrainingData
from lib_ziplora.ziplora.coefficients import MergerCoefficients
from lib_ziplora.ziplora.train import evaluate

PAIRS = "rocket:streamline-cyber-color,crown:picon"
HALF = ("fp16", "bf16")


@dataclass(frozen=True)
class Row:
    """One run beside that of fp32.

    Attributes:
        pair: subject and style.
        run: the dtype, and what else differs.
        mean: of |m - m32|; ``p99`` and ``largest`` of the same.
        skipped: updates without a finite gradient.
        error: held out, measured in fp32.
    """

    pair: str
    run: str
    mean: float
    p99: float
    largest: float
    skipped: int
    error: float


@dataclass(frozen=True)
class Learnt:
    """The coefficients of a run, flat, and the updates that it left out."""

    values: Tensor
    skipped: int


def learnt(
    pair: Pair, dtype: str, settings: MergeSettings, given: TrainingData | None = None, device: str = "cpu"
) -> Learnt:
    """A run in a dtype: on samples of its own, or on given ones with targets of its own."""
    with lessons.desk(pair, dtype, device) as at:
        data = lessons.draw(at, settings) if given is None else lessons.with_targets_of(at, given)
        coefficients, result = lessons.learn(at, data, settings)
        return Learnt(lessons.flat(coefficients), result.skipped)


def lessons_of(pair: Pair, settings: MergeSettings, device: str = "cpu") -> TrainingData:
    """What the fp32 run learns from."""
    with lessons.desk(pair, "fp32", device) as at:
        return lessons.draw(at, settings)


def rows(pair: Pair, settings: MergeSettings, dtypes: Sequence[str] = HALF, device: str = "cpu") -> list[Row]:
    """All runs of a pair beside that of fp32, which comes first."""
    given = lessons_of(pair, settings, device)
    exact = learnt(pair, "fp32", settings, given, device)
    other = replace(settings, seed=settings.seed + 1)
    runs = {"fp32": exact, "fp32, another seed": learnt(pair, "fp32", other, device=device)}
    for dtype in dtypes:
        runs[f"{dtype}, same samples"] = learnt(pair, dtype, settings, given, device)
        runs[f"{dtype}, whole run"] = learnt(pair, dtype, settings, device=device)
    with lessons.desk(pair, "fp32", device) as at:
        plain = at.ones()
        errors = {name: _error(at, plain, run.values, given) for name, run in runs.items()}
    return [_row(pair, name, run, exact, errors[name]) for name, run in runs.items()]


def _error(at: lessons.Desk, into: MergerCoefficients, values: Tensor, given: TrainingData) -> float:
    """Held-out error of coefficients, per LoRA."""
    with torch.no_grad():
        sizes = [m.numel() for m in into.parameters()]
        for m, part in zip(into.parameters(), values.split(sizes), strict=True):
            m.copy_(part.view_as(m))
    return sum(evaluate(at.denoiser, at.modules, into, given.heldout)) / len(at.concepts)


def _row(pair: Pair, name: str, run: Learnt, exact: Learnt, error: float) -> Row:
    apart = (run.values - exact.values).abs()
    p99 = apart.kthvalue(max(1, round(0.99 * apart.numel()))).values
    return Row(pair.name, name, apart.mean().item(), p99.item(), apart.max().item(), run.skipped, error)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Print a Markdown table, and write it as JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.precision", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default=PAIRS, help="SUBJECT:STYLE,...")
    parser.add_argument("--steps", type=int, default=lessons.SETTINGS.steps, help="updates")
    parser.add_argument("--start", default=lessons.SETTINGS.start, help="ones (default), closed-form")
    parser.add_argument("--dtypes", default=",".join(HALF), help=f"default {','.join(HALF)}")
    parser.add_argument("--device", default="cpu", help="cuda, cuda:1, cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args(arguments)
    settings = replace(lessons.SETTINGS, steps=args.steps, start=args.start)
    found: list[Row] = []
    print(
        "| pair | run | mean difference | 99 % below | largest | skipped | error |\n|---|---|" + "---:|" * 5
    )
    for name in args.pairs.split(","):
        for row in rows(Pair(*name.split(":")), settings, args.dtypes.split(","), args.device):
            found.append(row)
            cells = [f"{value:.3f}" for value in (row.mean, row.p99, row.largest)]
            print(
                f"| {row.pair} | {row.run} | {' | '.join(cells)} | {row.skipped} | {row.error:.3f} |",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
