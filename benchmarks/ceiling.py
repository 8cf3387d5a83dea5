"""How well could any merge do? What MiniXL and each LoRA by itself draw of pairs that they must put together.

    python -m benchmarks.ceiling --subjects 12 --seeds 4

* ``base``: known subjects in known styles, without any LoRA;
* ``style``: known subjects that are not among the style LoRA's sixteen drawings, in its style;
* ``subject``: a subject LoRA's subject in known styles that are not among its four drawings.

A merged LoRA must do both at once: new subject, new style. Scored as in ``benchmarks.quality``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import quality, scoring
from benchmarks.drawing import draw
from benchmarks.methods import lora_file
from benchmarks.minixl.choice import (
    HELDOUT_STYLES,
    KNOWN_STYLES,
    STYLE_TOKEN,
    SUBJECT_TOKEN,
    caption,
    known_subjects,
)
from benchmarks.minixl.data import Drawings, load
from benchmarks.minixl.embedding import Judge, load_judge
from benchmarks.minixl.lora import style_concept
from lib_ziplora.hosts.standalone import StandaloneHost

BASE_STYLES = ("noto", "twemoji")
UNSEEN_STYLES = ("fluent-emoji-flat", "emojione")
"""Known to the base; no subject's LoRA was trained on them."""
SEED = 3


@dataclass(frozen=True)
class Case:
    """A drawing that exists, the prompt for it, and the LoRA that it is drawn with."""

    subject: str
    style: str
    prompt: str
    lora: Path | None = None


@dataclass
class Studio:
    """The model, the judge and the true drawings."""

    pipeline: Any
    drawings: Drawings
    judge: Judge
    seeds: Sequence[int]
    scores: dict[str, dict[str, scoring.Scores]] = field(default_factory=dict)

    def run(self, name: str, cases: Iterator[Case]) -> None:
        """Draw and score the cases whose true drawing exists."""
        found = self.scores.setdefault(name, {})
        for case in cases:
            try:
                truth = scoring.true_drawing(self.drawings, case.subject, case.style)
            except KeyError:
                continue
            pixels = draw(self.pipeline, case.lora, case.prompt, self.seeds)
            key = f"{case.subject}:{case.style}"
            found[key] = scoring.score(self.judge, pixels, case.subject, case.style, truth)


def base_cases(subjects: Sequence[str]) -> Iterator[Case]:
    """Known subjects in known styles."""
    for subject in subjects:
        for style in BASE_STYLES:
            yield Case(subject, style, caption(subject, KNOWN_STYLES[style]))


def style_cases(drawings: Drawings, subjects: Sequence[str], style: str) -> Iterator[Case]:
    """Known subjects in a held-out style, without those that its LoRA was trained on."""
    seen = {drawings.subjects[drawings.subject[row]] for row in style_concept(drawings, style).rows}
    for subject in subjects:
        if subject not in seen:
            yield Case(subject, style, caption(subject, STYLE_TOKEN), lora_file("style", style))


def subject_cases(subjects: Sequence[str]) -> Iterator[Case]:
    """Held-out subjects in known styles that their LoRAs were not trained on."""
    for subject in subjects:
        for style in UNSEEN_STYLES:
            prompt = caption(SUBJECT_TOKEN, KNOWN_STYLES[style])
            yield Case(subject, style, prompt, lora_file("subject", subject))


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, score, and print a line for each way."""
    parser = argparse.ArgumentParser("python -m benchmarks.ceiling", description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=12, help="known subjects (default 12)")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each pair (default 4)")
    parser.add_argument("--json", type=Path, help="write every pair's scores")
    args = parser.parse_args(arguments)
    pipeline = StandaloneHost(quality.MODEL).pipeline()
    pipeline.set_progress_bar_config(disable=True)
    drawings = load()
    studio = Studio(pipeline, drawings, load_judge(), range(args.seeds))
    generator = np.random.default_rng(SEED)
    known = [str(name) for name in generator.choice(known_subjects(drawings), args.subjects, replace=False)]
    studio.run("base", base_cases(known))
    for style in HELDOUT_STYLES:
        studio.run("style", style_cases(drawings, known, style))
    subjects = sorted({pair.subject for pair in quality.halves()["report"]})
    studio.run("subject", subject_cases(subjects))
    rows = {name: scoring.summarise(found) for name, found in studio.scores.items()}
    styles = sorted({pair.split(":")[1] for row in rows.values() for pair in row.headline.by_pair})
    print(scoring.table(rows, {}, "base", styles))
    if args.json is not None:
        data = {name: row.means | {"by_pair": row.headline.by_pair} for name, row in rows.items()}
        args.json.write_text(json.dumps(data, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
