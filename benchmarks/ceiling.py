"""What MiniXL, and each LoRA by itself, draws of pairs that a merge must put together, against the true drawings.

    python -m benchmarks.ceiling --half choosing [--base-only]

* ``base``: known subjects in known styles of the judge's panel, without any LoRA;
* ``style``: known subjects that the style's LoRA did not see, in its style;
* ``subject``: the subject of a LoRA in known styles of the panel that it did not see;
* ``sum``: both LoRAs added, 1 : 1, on the combined prompt;
* ``sum-empty-by-base``: the same, where guidance subtracts what the base predicts for the empty prompt.

Each beside the autoencoded true drawings of the same pairs, under both judges. The LoRAs are those of
``benchmarks.minixl.lora``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.layer import LoraLayer

from .drawing import contact_sheet
from .methods import BOTH_PROMPT, lora_file
from .minixl.choice import HALVES, KNOWN_SUBJECTS, STYLE_TOKEN, SUBJECT_TOKEN, caption, style_words
from .minixl.data import CACHE, Drawings, load, rows_of
from .minixl.diffusion import NATIVE_SIZE
from .minixl.judge import JUDGE, KNOWN_PANEL, Judge, SecondJudge, load_judge, load_second
from .minixl.latents import autoencoded, to_pixels
from .minixl.lora import MODEL, style_concept
from .minixl.studio import Studio
from .scoring import Row, Scores, score, summarise

PER_STYLE = 10
ON_SHEET = 8
Pairs = list[tuple[str, str]]


@dataclass
class Bench:
    """The model, the judges, the true drawings, and the figures so far.

    Attributes:
        figures: part -> judge -> headline.
    """

    studio: Studio
    drawings: Drawings
    judges: tuple[Judge, SecondJudge]
    seeds: Sequence[int]
    sheets: Path
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)

    def row(self, subject: str, style: str) -> int | None:
        """The row of a true drawing, where one exists."""
        rows = rows_of(self.drawings, subject=subject, style=style)
        return int(rows[0]) if len(rows) else None

    def subjects_in(self, style: str, without: Sequence[int] = ()) -> list[str]:
        """Known subjects that the style draws."""
        rows = [row for row in rows_of(self.drawings, style=style).tolist() if row not in without]
        names = [self.drawings.subjects[self.drawings.subject[row]] for row in rows]
        return [name for name in names if name in KNOWN_SUBJECTS]

    def judged(self, part: str, drawn: Mapping[tuple[str, str], np.ndarray[Any, Any]]) -> None:
        """Score the pictures (seeds, h, w, 3) of each pair and the true drawings; print, keep, and draw a sheet."""
        scores: dict[str, dict[str, Scores]] = {"drawn": {}, "true": {}}
        for (subject, style), pixels in drawn.items():
            true = self.drawings.pixels[[self.row(subject, style)]]
            back = to_pixels(autoencoded(self.studio.vae, true, self.studio.size))
            for kind, pictures in (("drawn", pixels), ("true", back)):
                scores[kind][f"{subject}:{style}"] = score(
                    self.judges[0], pictures, subject, style, self.judges[1]
                )
        rows = {kind: summarise(some) for kind, some in scores.items()}
        self.figures[part] = {"pairs": len(drawn)} | _figures(rows["drawn"], rows["true"])
        print(part, json.dumps(self.figures[part]), flush=True)
        cells: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        for style in sorted({style for _, style in drawn}):
            subjects = [subject for subject, of in drawn if of == style][:ON_SHEET]
            shown = np.stack([self.drawings.pixels[self.row(subject, style)] for subject in subjects])
            cells[style] = {"true": shown, part: np.stack([drawn[subject, style][0] for subject in subjects])}
        contact_sheet(cells, ("true", part)).quantize(128).save(self.sheets / f"{part}.png", optimize=True)

    def draw(
        self,
        pairs: Pairs,
        prompts: Sequence[str],
        *layers: Mapping[str, LoraLayer],
        empty_by_base: bool = False,
    ) -> dict[tuple[str, str], np.ndarray[Any, Any]]:
        """Pair -> pictures."""
        if not pairs:
            return {}
        return dict(
            zip(
                pairs,
                self.studio.draw(prompts, self.seeds, *layers, empty_by_base=empty_by_base),
                strict=True,
            )
        )

    def base(self) -> None:
        """Random known subjects in the panel's known styles."""
        dice, pairs = np.random.default_rng(3), []
        for style in KNOWN_PANEL:
            chosen = dice.choice(self.subjects_in(style), PER_STYLE // 2, replace=False)
            pairs += [(str(name), style) for name in chosen]
        prompts = [caption(subject, style_words(style)) for subject, style in pairs]
        self.judged("base", self.draw(pairs, prompts))

    def with_loras(self, subjects: Sequence[str], styles: Sequence[str]) -> None:
        """The styles' LoRAs alone, the subjects' alone, and their sums."""
        dice = np.random.default_rng(4)
        style_loras = {name: read_lora(lora_file("style", name)).layers for name in styles}
        subject_loras = {name: read_lora(lora_file("subject", name)).layers for name in subjects}
        drawn: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
        for style, layers in style_loras.items():
            known = self.subjects_in(style, style_concept(self.drawings, style).rows)
            chosen = dice.choice(known, min(PER_STYLE, len(known)), replace=False)
            pairs = [(str(name), style) for name in chosen]
            drawn |= self.draw(pairs, [caption(name, STYLE_TOKEN) for name, _ in pairs], layers)
        self.judged("style", drawn)
        drawn = {}
        for subject, layers in subject_loras.items():
            pairs = [(subject, style) for style in KNOWN_PANEL if self.row(subject, style) is not None]
            prompts = [caption(SUBJECT_TOKEN, style_words(style)) for _, style in pairs]
            drawn |= self.draw(pairs, prompts, layers)
        self.judged("subject", drawn)
        for part, by_base in (("sum", False), ("sum-empty-by-base", True)):
            drawn = {}
            for subject, first in subject_loras.items():
                for style, second in style_loras.items():
                    if self.row(subject, style) is not None:
                        drawn |= self.draw(
                            [(subject, style)], [BOTH_PROMPT], first, second, empty_by_base=by_base
                        )
            self.judged(part, drawn)


def _figures(drawn: Row, true: Row) -> dict[str, Any]:
    """Both judges' headlines with their intervals, and the share of the true drawings' own."""
    found: dict[str, Any] = {name: round(value, 3) for name, value in drawn.means.items()}
    for judge, ours, theirs in (
        ("networks", drawn.headline, true.headline),
        ("least squares", drawn.second, true.second),
    ):
        if ours is not None and theirs is not None:
            both = {"drawn": ours, "true": theirs}
            found[judge] = {
                kind: [round(s.mean, 3), round(s.low, 3), round(s.high, 3)] for kind, s in both.items()
            } | {"share": round(ours.mean / theirs.mean, 3)}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, score, print, and write ``ceiling.json`` and the sheets."""
    parser = argparse.ArgumentParser("python -m benchmarks.ceiling", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--judge", type=Path, default=JUDGE)
    parser.add_argument("--cache", type=Path, default=CACHE, help="of the drawings (default out/minixl)")
    parser.add_argument(
        "--out", type=Path, help="folder of the figures and sheets (default out/ceiling-HALF)"
    )
    parser.add_argument("--half", choices=sorted(HALVES), default="choosing")
    for kind in ("subjects", "styles"):
        parser.add_argument(f"--{kind}", help="names, separated by commas (default: all of the half)")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument(
        "--size", type=int, default=NATIVE_SIZE, help="of the pictures, in pixels (default 64)"
    )
    parser.add_argument("--base-only", action="store_true")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    drawings, out = load(args.cache), args.out or CACHE.with_name(f"ceiling-{args.half}")
    out.mkdir(parents=True, exist_ok=True)
    judges = load_judge(args.judge), load_second(args.judge)
    bench = Bench(Studio.load(args.model, args.size), drawings, judges, range(args.seeds), out)
    bench.base()
    if not args.base_only:
        given = (args.subjects, args.styles)
        bench.with_loras(
            *(
                names.split(",") if names else half
                for names, half in zip(given, HALVES[args.half], strict=True)
            )
        )
    (out / "ceiling.json").write_text(json.dumps(bench.figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
