"""How sure the balanced strengths are, and what cheaper weighing makes of them: ``python -m benchmarks.strengths``.

The angle whose cosine is the subject's strength and whose sine is the style's, found with several seeds, for several
numbers of pictures, sampling steps and timesteps. ``spread`` is the standard deviation over the seeds, the mean of
the pairs'; ``apart`` the mean distance of a pair's mean angle from that of the present setting; ``units`` the UNet
forwards of one sample.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import torch

from benchmarks import lessons
from benchmarks.methods import Pair
from lib_ziplora.job import balancing
from lib_ziplora.merge import balance

PAIRS = "turtle:fluent-emoji,crown:emojione-monotone"


@dataclass(frozen=True)
class Weighing:
    """How much is drawn and measured at every strength that is tried."""

    pictures: int
    steps: int
    times: tuple[float, ...]

    @property
    def words(self) -> str:
        return f"{self.pictures} pictures, {self.steps} steps, {len(self.times)} timesteps"


PRESENT = Weighing(balancing.WEIGHED_PICTURES, balancing.WEIGHED_STEPS, balance.TIMES)
OTHERS = (
    Weighing(1, 4, balance.TIMES),
    Weighing(2, 3, balance.TIMES),
    Weighing(2, 4, (0.3, 0.6)),
    Weighing(1, 4, (0.3, 0.6)),
)


@dataclass(frozen=True)
class Found:
    """One search: degrees, the subject's share there, and what it took."""

    weighing: str
    pair: str
    seed: int
    angle: float
    units: int


@contextmanager
def weighed_by(weighing: Weighing) -> Iterator[None]:
    """Balancing draws and measures so much inside the block."""
    with (
        mock.patch.multiple(balancing, WEIGHED_PICTURES=weighing.pictures, WEIGHED_STEPS=weighing.steps),
        mock.patch.object(balance, "TIMES", weighing.times),
    ):
        yield


def found(at: lessons.Desk, pair: Pair, weighing: Weighing, seed: int) -> Found:
    """The strengths of a pair by one way of weighing."""
    units, predict = 0, at.denoiser.predict

    def counted(x_t: torch.Tensor, t: torch.Tensor, cond: lessons.Conditioning) -> torch.Tensor:
        nonlocal units
        units += len(x_t)
        return predict(x_t, t, cond)

    teacher, chosen = lessons.teacher_of(at, replace(lessons.SETTINGS, seed=seed)), lessons.inputs()
    conditions = teacher.conditioning(chosen, {})
    with weighed_by(weighing), mock.patch.object(at.denoiser, "predict", counted):
        subject, style = teacher.balance(at.concepts, chosen, conditions).strengths
    return Found(weighing.words, pair.name, seed, math.degrees(math.atan2(style, subject)), units)


def rows(all_found: Sequence[Found]) -> Iterator[str]:
    """A line of the table for every way of weighing."""
    present = _by_pair(all_found, PRESENT.words)
    for words in dict.fromkeys(one.weighing for one in all_found):
        pairs = _by_pair(all_found, words)
        spread = statistics.mean(statistics.pstdev(angles) for angles in pairs.values())
        apart = statistics.mean(
            abs(statistics.mean(angles) - statistics.mean(present[name])) for name, angles in pairs.items()
        )
        units = statistics.mean(one.units for one in all_found if one.weighing == words)
        yield f"| {words} | {units:.0f} | {spread:.1f}° | {apart:.1f}° |"


def _by_pair(all_found: Sequence[Found], words: str) -> dict[str, list[float]]:
    angles: dict[str, list[float]] = {}
    for one in all_found:
        if one.weighing == words:
            angles.setdefault(one.pair, []).append(one.angle)
    return angles


def main(arguments: Sequence[str] | None = None) -> list[Found]:
    """Print a Markdown table, and write every search as JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.strengths", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default=PAIRS, help="SUBJECT:STYLE,...")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args(arguments)
    searches = []
    for pair in (Pair(*name.split(":")) for name in args.pairs.split(",")):
        with lessons.desk(pair) as at:
            searches += [
                found(at, pair, weighing, seed)
                for weighing in (PRESENT, *OTHERS)
                for seed in range(args.seeds)
            ]
    print("| weighing | units | spread | apart |\n|---|---:|---:|---:|")
    print("\n".join(rows(searches)))
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in searches], indent=2) + "\n", encoding="utf-8")
    return searches


if __name__ == "__main__":
    main()
