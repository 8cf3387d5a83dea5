"""Does the merge work? Merged LoRAs are drawn on MiniXL and scored against the true drawings.

    python -m benchmarks.quality --pairs rocket:marketeq,crown:picon --seeds 24 \
        --methods sum,ours,np-lora --json out/quality.json --sheet out/quality.png

Method names are explained in ``benchmarks.methods``; ``sum-best`` is the plain sum with the
weights of a grid that score best on the pairs kept for choosing. Merges and pictures are kept below ``--out``
and used again: a run with more seeds draws only those; ``--fresh`` merges anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import methods, scoring
from benchmarks.drawing import contact_sheet, drawn
from benchmarks.methods import BOTH_PROMPT, GRID, STYLE_PROMPT, SUBJECT_PROMPT, Merged, Pair
from benchmarks.minixl.choice import HALVES
from benchmarks.minixl.data import CACHE, Drawings, load, rows_of
from benchmarks.minixl.diffusion import NATIVE_SIZE
from benchmarks.minixl.judge import Judge, SecondJudge, load_judge, load_second
from benchmarks.minixl.latents import autoencoded, to_pixels
from benchmarks.minixl.lora import MODEL
from lib_ziplora.hosts.standalone import StandaloneHost

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = {"both": BOTH_PROMPT, "subject": SUBJECT_PROMPT, "style": STYLE_PROMPT}
TRUTH, SUBJECT_ALONE, STYLE_ALONE = "true drawing", "subject alone", "style alone"
DEVELOPMENT_SEED, DEVELOPMENT_SEEDS = 10_000, 2
ON_SHEET = 4
DEFAULT = (
    "sum,sum-best,balanced,ours,ours-20,equation-5,public,cosine,paper,closed,closed+20,np-lora,ties,dare"
)


@dataclass
class Bench:
    """The model, the judge, and everything that was drawn and scored so far."""

    out: Path
    judge: Judge
    second: SecondJudge
    drawings: Drawings
    pairs: list[Pair]
    seeds: list[int]
    singles: int
    fresh: bool
    host: StandaloneHost = field(default_factory=lambda: StandaloneHost(MODEL))
    scores: dict[str, dict[str, dict[str, scoring.Scores]]] = field(default_factory=dict)
    merges: dict[str, dict[str, Merged]] = field(default_factory=dict)
    true: dict[str, np.ndarray] = field(default_factory=dict)

    def pipeline(self) -> Any:
        """MiniXL in diffusers."""
        pipeline = self.host.pipeline()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def folder(self, pair: Pair) -> Path:
        """Where a pair's merges and pictures are."""
        folder = self.out / f"{pair.subject}_{pair.style.replace('/', '-')}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def merged(self, method: str, pair: Pair) -> Merged:
        """The pair's merge by that method, made once."""
        if method == SUBJECT_ALONE:
            return Merged(pair.files()[0], 0.0)
        if method == STYLE_ALONE:
            return Merged(pair.files()[1], 0.0)
        note = self.folder(pair) / f"{method}.json"
        if method == "sum-best":
            return self.merged(self.best_sum(), pair)
        if self.fresh or not note.is_file():
            made = methods.merge(method, pair, self.host, self.folder(pair))
            values = asdict(made) | {"file": made.file.name}
            note.write_text(json.dumps(values), encoding="utf-8")
        data = json.loads(note.read_text(encoding="utf-8"))
        return Merged(self.folder(pair) / data["file"], data["seconds"], data["figures"])

    def best_sum(self) -> str:
        """The grid's plain sum with the best headline on the pairs kept for choosing."""
        note = self.out / "sum-best.json"
        if not note.is_file():
            seeds = list(range(DEVELOPMENT_SEED, DEVELOPMENT_SEED + DEVELOPMENT_SEEDS))
            found = {}
            for weights in GRID:
                method = f"sum:{weights[0]:g}:{weights[1]:g}"
                scores = {}
                for pair in methods.pairs_of("choosing"):
                    pixels = self.pictures(method, pair, "both", seeds, "development-")
                    scores[pair.name] = self.scored(pixels, pair)
                found[method] = scoring.summarise(scores).headline.mean
            note.write_text(json.dumps(found, indent=1), encoding="utf-8")
        grid: dict[str, float] = json.loads(note.read_text(encoding="utf-8"))
        return max(grid, key=lambda name: grid[name])

    def pictures(
        self, method: str, pair: Pair, prompt: str, seeds: Sequence[int], mark: str = ""
    ) -> np.ndarray:
        """What a method's merge draws for one of ``PROMPTS``."""
        lora = self.merged(method, pair).file
        file = self.folder(pair) / f"{mark}{method}.{prompt}.npz"
        return drawn(self.pipeline(), lora, PROMPTS[prompt], seeds, file)

    def truth(self, pair: Pair) -> np.ndarray:
        """The true drawing, plain and autoencoded, (2, h, w, 3); (0, h, w, 3) where there is none."""
        if pair.name not in self.true:
            row = rows_of(self.drawings, subject=pair.subject, style=pair.style)[:1]
            pixels = self.drawings.pixels[row]
            if len(row):
                back = to_pixels(autoencoded(self.pipeline().vae, pixels, NATIVE_SIZE))
                pixels = np.concatenate([pixels, back])
            self.true[pair.name] = pixels
        return self.true[pair.name]

    def scored(self, pixels: np.ndarray, pair: Pair) -> scoring.Scores:
        """The judge's word on pictures of a pair."""
        return scoring.score(self.judge, pixels, pair.subject, pair.style, self.second)

    def run(self, method: str) -> None:
        """Merge, draw and score one method on every pair."""
        by_prompt: dict[str, dict[str, scoring.Scores]] = {"both": {}, "subject": {}, "style": {}}
        for pair in self.pairs:
            for prompt, found in by_prompt.items():
                seeds = self.seeds if prompt == "both" else self.seeds[: self.singles]
                if seeds and (method, prompt) not in ((SUBJECT_ALONE, "style"), (STYLE_ALONE, "subject")):
                    pixels = self.pictures(method, pair, prompt, seeds)
                    found[pair.name] = self.scored(pixels, pair)
            self.merges.setdefault(method, {})[pair.name] = self.merged(method, pair)
        self.scores[method] = by_prompt

    def rows(self) -> dict[str, scoring.Row]:
        """Method -> figures; the true drawings' own scores too, where there are any."""
        rows = {name: scoring.summarise(*by.values()) for name, by in self.scores.items()}
        true = {pair: self.truth(pair)[1:] for pair in self.pairs}
        truth = {pair.name: self.scored(pixels, pair) for pair, pixels in true.items() if len(pixels)}
        return {TRUTH: scoring.summarise(truth), **rows} if truth else rows

    def extra(self) -> dict[str, dict[str, float]]:
        """Method -> what the table says beside the scores: single-concept behaviour, cost."""
        found: dict[str, dict[str, float]] = {}
        for method, by_prompt in self.scores.items():
            made = self.merges[method].values()
            values = {"seconds": float(np.mean([merge.seconds for merge in made]))}
            for key in ("heldout_loss_end", "mean_travel"):
                numbers = [merge.figures[key] for merge in made if key in merge.figures]
                if numbers and method not in ("sum", "sum-best"):
                    values[key] = float(np.mean(numbers))
            for prompt, single, measure in (
                ("subject", SUBJECT_ALONE, "subject_rr"),
                ("style", STYLE_ALONE, "style_rr"),
            ):
                own = self.scores.get(single, {}).get(prompt, {})
                ours = by_prompt[prompt]
                if own and set(own) == set(ours):
                    total = sum(scores[measure].mean() for scores in own.values())
                    share = sum(scores[measure].mean() for scores in ours.values()) / total
                    values[f"keeps_{prompt}"] = float(share)
            found[method] = values
        return found


def report(bench: Bench, json_file: Path | None) -> str:
    """The table; with a file, also everything that was measured, picture by picture."""
    rows, extra = bench.rows(), bench.extra()
    chance = scoring.chance(bench.judge)
    text = scoring.table(rows, extra, "sum", sorted({pair.style for pair in bench.pairs}))
    text += (
        f"\n\nchance: headline {chance['headline']:.3f}, subject {chance['subject_rr']:.3f}, style "
        f"{chance['style_rr']:.2f}; {len(bench.seeds)} seeds a pair ({bench.singles} for the single concepts)\n"
        f"the judge on real drawings that it was not trained on: "
        + ", ".join(f"{name} {value:.2f}" for name, value in bench.judge.accuracy.items())
    )
    if json_file is not None:
        data = {
            "methods": {
                name: row.means
                | {"headline": _interval(row.headline), "overall": _interval(row.overall)}
                | extra.get(name, {})
                for name, row in rows.items()
            },
            "chance": chance,
            "judge": bench.judge.accuracy,
            "seeds": len(bench.seeds),
            "pictures": {
                method: {p: {pair: _plain(s) for pair, s in found.items()} for p, found in by.items()}
                for method, by in bench.scores.items()
            },
            "figures": {m: {p: merge.figures for p, merge in by.items()} for m, by in bench.merges.items()},
        }
        json_file.write_text(json.dumps(data, indent=1), encoding="utf-8")
    return text


def _interval(score: scoring.Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    return {"mean": score.mean, "low": score.low, "high": score.high, "by_pair": score.by_pair}


def _plain(scores: scoring.Scores) -> dict[str, list[float]]:
    return {name: [round(float(value), 4) for value in values] for name, values in scores.items()}


def sheet(bench: Bench, file: Path) -> None:
    """The contact sheet: true drawings above, then each method's first seeds."""
    titles = [pair.name for pair in bench.pairs]
    truth = {pair.name: bench.truth(pair) for pair in bench.pairs}
    pictures = {
        method: {
            pair.name: bench.pictures(method, pair, "both", bench.seeds[:ON_SHEET]) for pair in bench.pairs
        }
        for method in bench.scores
    }
    image = contact_sheet({TRUTH: truth, **pictures}, titles)
    image.quantize(128).save(file, optimize=True)


def wanted_pairs(text: str) -> list[Pair]:
    """Pairs by a half's name, by their own names, or a number of those for choosing, evenly spread."""
    if text in HALVES:
        return methods.pairs_of(text)
    if text.isdecimal():
        pairs = methods.pairs_of("choosing")
        return [pairs[index * len(pairs) // int(text)] for index in range(min(int(text), len(pairs)))]
    known = {pair.name: pair for half in HALVES for pair in methods.pairs_of(half)}
    return [known[name] for name in text.split(",")]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pairs",
        default="reporting",
        help="reporting (default), choosing, a number, or subject:style,...",
    )
    parser.add_argument("--seeds", type=int, default=8, help="pictures of each pair (default 8)")
    parser.add_argument("--singles", type=int, default=2, help="pictures of each single concept (default 2)")
    parser.add_argument(
        "--methods", default=DEFAULT, help=f"separated by blanks or commas (default {DEFAULT})"
    )
    parser.add_argument("--json", type=Path, help="write everything that was measured")
    parser.add_argument("--text", type=Path, help="write the table, anew after each method")
    parser.add_argument("--sheet", type=Path, help="write the contact sheet (PNG)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "quality", help="merges and pictures")
    parser.add_argument("--cache", type=Path, default=CACHE, help="of the drawings (default out/minixl)")
    parser.add_argument("--fresh", action="store_true", help="merge again")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Merge, draw, score; print the table."""
    args = parse(arguments)
    pairs = wanted_pairs(args.pairs)
    names = args.methods.split() if " " in args.methods else args.methods.split(",")
    seeds = list(range(args.seeds))
    bench = Bench(
        args.out, load_judge(), load_second(), load(args.cache), pairs, seeds, args.singles, args.fresh
    )
    for method in dict.fromkeys([SUBJECT_ALONE, STYLE_ALONE, *names]):
        bench.run(method)
        print(f"{method} done", file=sys.stderr)
        text = report(bench, args.json)
        if args.text is not None:
            args.text.write_text(text + "\n", encoding="utf-8")
    print(text)
    if args.sheet is not None:
        sheet(bench, args.sheet)


if __name__ == "__main__":
    main()
