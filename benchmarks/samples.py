"""How many samples and updates a merge needs: ``python -m benchmarks.samples``.

Held-out errors after the updates, on the same samples for every row: of each LoRA by itself and of the combined
prompt (``benchmarks.lessons.Unseen``), the means of the pairs. ``units`` are UNet forwards of one sample, those of
the weighing left out, which is the same for all.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

from benchmarks import lessons
from benchmarks.lessons import Desk, Unseen
from benchmarks.methods import Pair
from lib_ziplora.job.progress import combined_units, lora_units, update_units
from lib_ziplora.merge.optimize import Step
from lib_ziplora.merge.stepping import Stepper

PAIRS = "turtle:fluent-emoji,crown:emojione-monotone"
TERMS = 3


@dataclass(frozen=True)
class Choice:
    """Samples of each term, terms that an update draws, and after which updates to look."""

    trajectories: int
    steps: int
    at_once: int = 2
    updates: tuple[int, ...] = (100,)


CHOICES = (
    Choice(3, 3, updates=(20, 50, 100, 200)),
    Choice(3, 3, at_once=3),
    Choice(1, 9),
    Choice(2, 4),
    Choice(4, 8),
)


@dataclass(frozen=True)
class Row:
    """What a choice leads to for one pair; the errors as in ``Unseen.errors``."""

    pair: str
    choice: str
    updates: int
    units: int
    alone: float
    both: float


def rows(at: Desk, pair: Pair, choice: Choice, strengths: Sequence[float], unseen: Unseen) -> Iterator[Row]:
    """Learn by a choice; a row for every number of updates."""
    settings = replace(
        lessons.SETTINGS,
        trajectories=choice.trajectories,
        sampling_steps=choice.steps,
        steps=choice.updates[-1],
    )
    taught = lessons.draw(at, settings, strengths)
    start, found = at.ones(), {}
    start.fill(strengths)

    def on_step(step: Step) -> bool:
        if step.index + 1 in choice.updates:  # on a CPU an update is told of once it is taken
            found[step.index + 1] = unseen.errors(at, start)
        return True

    with mock.patch.object(Stepper, "at_once", choice.at_once):
        lessons.learn(at, taught, settings, start, on_step)
    drawing = sum(lora_units(settings, lora) for lora in lessons.inputs()) + combined_units(settings)
    words = f"{choice.trajectories} x {choice.steps} samples, {choice.at_once} of {TERMS} terms"
    for updates, errors in found.items():
        yield Row(pair.name, words, updates, drawing + update_units(choice.at_once) * updates, *errors)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Print a Markdown table of the pairs' means, and write every row as JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.samples", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default=PAIRS, help="SUBJECT:STYLE,...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args(arguments)
    found: list[Row] = []
    for pair in (Pair(*name.split(":")) for name in args.pairs.split(",")):
        with lessons.desk(pair) as at:
            strengths = lessons.draw(at).strengths
            unseen = lessons.unseen(at, strengths)
            for choice in CHOICES:
                found += rows(at, pair, choice, strengths, unseen)
    print("| samples and terms | updates | units | by itself | combined |\n|---|" + "---:|" * 4)
    for words, updates in dict.fromkeys((row.choice, row.updates) for row in found):
        same = [row for row in found if (row.choice, row.updates) == (words, updates)]
        alone, both = (statistics.mean(getattr(row, kind) for row in same) for kind in ("alone", "both"))
        print(f"| {words} | {updates} | {same[0].units} | {alone:.3f} | {both:.3f} |")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
