"""What MiniXL 2, and each LoRA by itself, draws of pairs that a merge must put together, against the true drawings.

    python -m benchmarks.minixl2.ceiling --model DIR --out out/minixl2 --half choosing

* ``base``: known subjects in known styles of the judge's panel, without any LoRA;
* ``style``: known subjects that the style's LoRA did not see, in its style;
* ``subject``: the subject of a LoRA in known styles of the panel that it did not see;
* ``sum``: both LoRAs added, 1 : 1, on the combined prompt.

Each beside the autoencoded true drawings of the same pairs.
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
import torch.nn.functional as F
from PIL import Image

from lib_ziplora.lora.layer import LoraLayer

from ..drawing import contact_sheet
from ..minixl.embedding import to_input
from ..scoring import Score, summarise
from .choice import HALVES, KNOWN_SUBJECTS, STYLE_TOKEN, SUBJECT_TOKEN, caption, style_words
from .data import Drawings, load
from .judge import KNOWN_PANEL, Judge, SecondJudge, load_judge, reciprocal_ranks, second_judge
from .latents import encode
from .lora import learn, rows_of, style_concept, subject_concept
from .studio import Studio

PER_STYLE = 10


@dataclass
class Bench:
    """The model, the judges, the true drawings, and what was found.

    Attributes:
        figures: part -> judge -> headline.
    """

    studio: Studio
    drawings: Drawings
    judges: Mapping[str, Judge | SecondJudge]
    seeds: Sequence[int]
    sheets: Path
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)

    def row(self, subject: str, style: str) -> int | None:
        """The row of a true drawing, where one exists."""
        rows = rows_of(self.drawings, subject=subject, style=style)
        return int(rows[0]) if len(rows) else None

    @torch.no_grad()
    def true(self, row: int) -> torch.Tensor:
        """A true drawing as the autoencoder gives it back at the studio's size, for the judges, (1, 3, 64, 64)."""
        vae = self.studio.vae
        z = encode(vae, self.drawings.pixels[[row]], self.studio.size).float()
        back = vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1)
        return F.interpolate(back, size=64, mode="area")

    def judged(self, part: str, drawn: Mapping[tuple[str, str], np.ndarray[Any, Any]]) -> None:
        """Score the pictures (seeds, h, w, 3) of each pair and the true drawings; print, keep, and draw a sheet."""
        found: dict[str, Any] = {"pairs": len(drawn)}
        true = {pair: self.true(row) for pair in drawn if (row := self.row(*pair)) is not None}
        for name, judge in self.judges.items():
            scores: dict[str, dict[str, dict[str, np.ndarray[Any, Any]]]] = {"drawn": {}, "true": {}}
            for (subject, style), pixels in drawn.items():
                inputs = {"drawn": to_input(pixels), "true": true[subject, style]}
                for kind, x in inputs.items():
                    ranks = reciprocal_ranks(judge, x, subject, style)
                    scores[kind][f"{subject}:{style}"] = {"subject_rr": ranks[:, 0], "style_rr": ranks[:, 1]}
            rows = {kind: summarise(some) for kind, some in scores.items()}
            headline: dict[str, Score] = {kind: row.headline for kind, row in rows.items()}
            share = headline["drawn"].mean / headline["true"].mean
            found[name] = {
                kind: [round(score.mean, 3), round(score.low, 3), round(score.high, 3)]
                for kind, score in headline.items()
            } | {"share": round(share, 3), **{k: round(v, 3) for k, v in rows["drawn"].means.items()}}
        self.figures[part] = found
        print(part, json.dumps(found), flush=True)
        styles = sorted({style for _, style in drawn})
        cells: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        for style in styles:
            subjects = [subject for subject, of in drawn if of == style][:8]
            shown = np.stack([self.drawings.pixels[self.row(subject, style)] for subject in subjects])
            cells[style] = {"true": shown, part: np.stack([drawn[subject, style][0] for subject in subjects])}
        picture: Image.Image = contact_sheet(cells, ("true", part))
        picture.save(self.sheets / f"{part}.png")

    def draw(
        self, pairs: Sequence[tuple[str, str]], prompts: Sequence[str], *layers: Mapping[str, LoraLayer]
    ) -> dict[tuple[str, str], np.ndarray[Any, Any]]:
        """Pair -> pictures."""
        if not pairs:
            return {}
        return dict(zip(pairs, self.studio.draw(prompts, self.seeds, *layers), strict=True))

    def base(self) -> None:
        """Random known subjects in the panel's known styles."""
        dice, pairs = np.random.default_rng(3), []
        for style in KNOWN_PANEL:
            names = [
                self.drawings.subjects[self.drawings.subject[row]]
                for row in rows_of(self.drawings, style=style)
            ]
            known = [name for name in names if name in KNOWN_SUBJECTS]
            pairs += [(str(name), style) for name in dice.choice(known, PER_STYLE // 2, replace=False)]
        prompts = [caption(subject, style_words(style)) for subject, style in pairs]
        self.judged("base", self.draw(pairs, prompts))

    def with_loras(self, subjects: Sequence[str], styles: Sequence[str]) -> None:
        """The styles' LoRAs alone, the subjects' alone, and their sums."""
        drawings, dice = self.drawings, np.random.default_rng(4)
        style_loras, subject_loras = {}, {}
        drawn: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
        for style in styles:
            concept = style_concept(drawings, style)
            style_loras[style] = learn(self.studio, drawings, concept)
            left = sorted(set(rows_of(drawings, style=style).tolist()) - set(concept.rows))
            names = [drawings.subjects[drawings.subject[row]] for row in left]
            known = [name for name in names if name in KNOWN_SUBJECTS]
            chosen = dice.choice(known, min(PER_STYLE, len(known)), replace=False)
            pairs = [(str(name), style) for name in chosen]
            drawn |= self.draw(pairs, [caption(name, STYLE_TOKEN) for name, _ in pairs], style_loras[style])
        self.judged("style", drawn)
        drawn = {}
        for subject in subjects:
            subject_loras[subject] = learn(
                self.studio, drawings, subject_concept(drawings, subject, KNOWN_PANEL)
            )
            pairs = [(subject, style) for style in KNOWN_PANEL if self.row(subject, style) is not None]
            prompts = [caption(SUBJECT_TOKEN, style_words(style)) for _, style in pairs]
            drawn |= self.draw(pairs, prompts, subject_loras[subject])
        self.judged("subject", drawn)
        drawn = {}
        for subject, first in subject_loras.items():
            for style, second in style_loras.items():
                if self.row(subject, style) is not None:
                    prompt = caption(SUBJECT_TOKEN, STYLE_TOKEN)
                    drawn |= self.draw([(subject, style)], [prompt], first, second)
        self.judged("sum", drawn)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, score, print, and write ``ceiling-HALF.json`` and the sheets."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl2.ceiling", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--half", choices=sorted(HALVES), default="choosing")
    parser.add_argument("--subjects", type=int, default=6, help="how many subjects get a LoRA (default 6)")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--size", type=int, default=64, help="of the pictures, in pixels (default 64)")
    parser.add_argument("--base-only", action="store_true")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    drawings = load(args.out)
    judges: dict[str, Judge | SecondJudge] = {
        "networks": load_judge(args.out / "judge"),
        "least squares": second_judge(args.out, drawings),
    }
    sheets = args.out / f"sheets-{args.half}"
    sheets.mkdir(exist_ok=True)
    bench = Bench(Studio.load(args.model, args.size), drawings, judges, range(args.seeds), sheets)
    bench.base()
    if not args.base_only:
        subjects, styles = HALVES[args.half]
        often = sorted(subjects, key=lambda name: (-len(rows_of(drawings, subject=name)), name))
        bench.with_loras(often[: args.subjects], styles)
    (args.out / f"ceiling-{args.half}.json").write_text(json.dumps(bench.figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
