"""The objective's value against time, for every method: ``python -m benchmarks.objective``.

All methods are measured alike, on samples that none has learnt from: the relative error on what each LoRA draws by
itself (the two errors of equation 5, as shares of the LoRAs' effects; 1 is what no LoRA at all would give), and that
on what the balanced sum draws for the combined prompt. Time is the processor's, on one thread, with the drawing and
weighing of the samples that a method learns from, and without the measuring. A curve begins where its loop does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import torch

from benchmarks import lessons
from benchmarks.lessons import Desk, Unseen
from benchmarks.methods import ALIASES, Pair, settings_of
from benchmarks.minixl.data import ROOT
from lib_ziplora.config import MergeSettings
from lib_ziplora.ziplora.train import Update

METHODS = ("ours", "from-ones", "instant", "equation-5", "closed", "closed+20", "paper", "public")
COLOURS = ("#2f5fe0", "#8fb1ff", "#d4af00", "#16a085", "#111111", "#8e44ad", "#e0600f", "#999999")
MEASURED = (1, 2, 5, 10, 20, 35, 50, 75, 100)
"""Updates after which the errors are taken, beside the beginning."""


@dataclass(frozen=True)
class Point:
    """Where a method is at a time.

    Attributes:
        updates: so far.
        seconds: of the processor.
        alone: mean error of the LoRAs' own samples; ``both`` that of the combined prompt's.
    """

    updates: int
    seconds: float
    alone: float
    both: float


class Clock:
    """The processor's seconds, but for those inside ``measured``."""

    def __init__(self) -> None:
        self._since = time.process_time()

    def read(self) -> float:
        return time.process_time() - self._since

    def leave_out(self, seconds: float) -> None:
        self._since += seconds


def settings_at_size(method: str) -> MergeSettings:
    """A method's settings, at MiniXL's size and with the combined prompt."""
    size = f"width={lessons.SIZE},height={lessons.SIZE},combined_prompt={lessons.BOTH_PROMPT}"
    return settings_of(f"{ALIASES[method]},{size}")


def curve(at: Desk, method: str, unseen: Unseen) -> list[Point]:
    """A method's way, from the start of its loop to the end."""
    settings, points, clock = settings_at_size(method), [], Clock()

    def measure(updates: int) -> None:
        now = clock.read()
        points.append(Point(updates, now, *unseen.errors(at, coefficients)))
        clock.leave_out(clock.read() - now)

    def on_update(update: Update) -> bool:
        if update.index + 1 in MEASURED:
            measure(update.index + 1)
        return True

    data = lessons.draw(at, settings)
    coefficients = lessons.begin(at, data)
    measure(0)
    if settings.needs.updates:
        lessons.learn(at, data, settings, coefficients, on_update)
    return points


def draw(curves: dict[str, list[Point]], image: Path) -> None:
    """Both errors against time."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.6))
    titles = {"alone": "each LoRA by itself", "both": "the combined prompt"}
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        for (method, points), colour in zip(curves.items(), COLOURS, strict=False):
            seconds, errors = [p.seconds for p in points], [getattr(p, kind) for p in points]
            marks = {"marker": "o", "markersize": 4 if len(points) > 1 else 7, "color": colour}
            axis.plot(seconds, errors, label=method, linewidth=1.4, **marks)
        axis.set_title(f"held-out error: {title}", fontsize=10)
        axis.set_xlabel("seconds, samples included")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(image, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Point]]:
    """Print each method's beginning and end, draw the curves, and write them as JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.objective", description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="rocket:streamline-cyber-color", help="SUBJECT:STYLE")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--image", type=Path, default=ROOT / "docs" / "images" / "objective.png")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    curves: dict[str, list[Point]] = {}
    print("| method | updates | begins at, s | ends at, s | by itself | combined |\n|---|" + "---:|" * 5)
    with lessons.desk(Pair(*args.pair.split(":"))) as at:
        unseen = lessons.unseen(at, lessons.draw(at).strengths)
        for method in args.methods.split(","):
            curves[method] = points = curve(at, method, unseen)
            first, last = points[0], points[-1]
            times = f"{last.updates} | {first.seconds:.1f} | {last.seconds:.1f}"
            errors = [f"{a:.3f} → {b:.3f}" for a, b in ((first.alone, last.alone), (first.both, last.both))]
            print(f"| {method} | {times} | {' | '.join(errors)} |", flush=True)
    draw(curves, args.image)
    if args.json:
        found = {method: [asdict(point) for point in points] for method, points in curves.items()}
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return curves


if __name__ == "__main__":
    main()
