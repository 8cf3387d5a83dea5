"""Updates per second on MiniXL beside the public script's step: ``python -m benchmarks.speed``.

The public script (mkshing/ziplora-pytorch) is written here from its description, and nothing of it is used: beside
each layer's own weight a dense merged delta weight, made of both LoRAs' dense delta weights in every forward; one
student's forward for each LoRA; both teachers drawn anew in every update; torch's Adam on one tensor for each
vector. Both learn from the same samples under the same objective with the same settings, so the coefficients must
come out the same: how far they are apart is printed too. They take turns in short rounds, since a machine is
seldom one's own; the ratio is the median of the rounds'.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import lessons
from benchmarks.dense import dense_student
from benchmarks.lessons import Desk
from benchmarks.memory import machine
from benchmarks.methods import Pair
from lib_ziplora.config import MergeSettings
from lib_ziplora.training.target_samples import TrainingData
from lib_ziplora.ziplora.coefficients import Concept
from lib_ziplora.ziplora.hooks import adapters, lora_hooks
from lib_ziplora.ziplora.objective import error
from lib_ziplora.ziplora.train import Draw, batches

EQUATION_5 = replace(lessons.SETTINGS, combined_weight=0.0, auto_balance=False)
"""The paper's objective, two errors and a similarity: the public script has no other."""


@dataclass(frozen=True)
class Round:
    """The same updates by both.

    Attributes:
        ours: seconds; ``script`` the same of the public script's.
        mean_apart: mean |difference| of the coefficients afterwards; ``most_apart`` the largest.
        travel: mean |m - 1| afterwards, to which that compares.
    """

    ours: float
    script: float
    mean_apart: float
    most_apart: float
    travel: float

    @property
    def ratio(self) -> float:
        return self.script / self.ours


class PublicScript:
    """The public script's updates.

    Args:
        at: the model and the LoRAs; layers that both LoRAs have, linear ones.
        data: the samples; of their targets nothing is taken, the teachers draw them anew.
        settings: rate, objective, similarity weight, seed.
    """

    def __init__(self, at: Desk, data: TrainingData, settings: MergeSettings) -> None:
        self.at, self.terms, self.settings = at, data.terms, settings
        self.deltas = {
            name: [layers[name].delta().to(at.denoiser.dtype) for layers in at.concepts]
            for name in at.modules
        }
        self.vectors = {
            name: [torch.ones(delta.shape[1], requires_grad=True) for delta in pair]
            for name, pair in self.deltas.items()
        }
        self.adam = torch.optim.Adam(
            [m for pair in self.vectors.values() for m in pair], settings.learning_rate
        )

    def run(self, updates: int) -> Tensor:
        """So many updates; then the coefficients, in the order of ``lessons.flat``."""
        for drawn in islice(batches(self.terms, len(self.at.concepts), self.settings.seed), updates):
            self.update(drawn)
        return torch.cat([m.detach() for pair in self.vectors.values() for m in pair])

    def update(self, draws: Sequence[Draw]) -> None:
        """Two students, two teachers, one step of Adam."""
        self.adam.zero_grad()
        loss = self.similarity() * self.settings.similarity_lambda
        for draw in draws:
            sample = draw.sample
            with dense_student(self.at.modules, self.deltas, self.vectors):
                output = self.at.denoiser.predict(sample.x_t, sample.t, sample.cond)
            target = self.teacher(self.at.concepts[draw.term], sample)
            loss = loss + draw.weight * error(self.settings.objective, output, target, sample.scale)
        loss.backward()
        self.adam.step()

    @torch.no_grad()
    def teacher(self, layers: Concept, one: lessons.Samples) -> Tensor:
        """What a LoRA by itself predicts."""
        denoiser = self.at.denoiser
        branches = adapters(layers, denoiser.device, denoiser.dtype)
        with lora_hooks(self.at.modules, branches):
            return denoiser.predict(one.x_t, one.t, one.cond)

    def similarity(self) -> Tensor:
        """Mean |m_a * m_b|."""
        products = [(a * b).abs() for a, b in self.vectors.values()]
        return torch.cat(products).mean()


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What it gives, and the seconds that it took."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def one_round(at: Desk, data: TrainingData, settings: MergeSettings) -> Round:
    """The updates of the settings by both, from the plain sum; what each prepares is not timed."""
    start, script = at.ones(), PublicScript(at, data, settings)
    found, ours = timed(lambda: lessons.flat(lessons.learn(at, data, settings, start)[0]))
    expected, theirs = timed(lambda: script.run(settings.steps))
    apart = (found - expected).abs()
    return Round(ours, theirs, apart.mean().item(), apart.max().item(), (expected - 1).abs().mean().item())


def rounds(pair: Pair, updates: int, count: int) -> list[Round]:
    """So many rounds of so many updates each, every one with an order of the samples of its own."""
    settings = replace(EQUATION_5, steps=updates)
    with lessons.desk(pair) as at:
        data = lessons.draw(at, settings)
        one_round(at, data, replace(settings, steps=1))
        return [one_round(at, data, replace(settings, seed=seed)) for seed in range(count)]


def main(arguments: Sequence[str] | None = None) -> list[Round]:
    """Print one line for each round, and the medians."""
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="rocket:streamline-cyber-color", help="SUBJECT:STYLE")
    parser.add_argument("--updates", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args(arguments)
    found = rounds(Pair(*args.pair.split(":")), args.updates, args.rounds)
    print(f"{'ours/s':>8} {'script/s':>8} {'ratio':>6} {'apart, mean':>12} {'most':>9} {'travel':>7}")
    for one in found:
        rates = f"{args.updates / one.ours:8.2f} {args.updates / one.script:8.2f} {one.ratio:6.2f}"
        print(f"{rates} {one.mean_apart:12.1e} {one.most_apart:9.1e} {one.travel:7.3f}")
    median = statistics.median(one.ratio for one in found)
    print(f"{machine(torch.device('cpu'))}: median ratio {median:.2f}")
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
