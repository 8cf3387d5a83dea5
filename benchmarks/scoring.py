"""Scores of pictures against the truth, their means, intervals and table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.minixl.judge import PANEL, Judge, SecondJudge, reciprocal_ranks
from benchmarks.minixl.networks import to_input

RESAMPLES = 4000
Scores = dict[str, np.ndarray]
"""Measure -> one value a picture, (pictures,)."""
RANKS = ("subject_rr", "style_rr")
SECOND = ("second_subject_rr", "second_style_rr")
MEASURES = (*RANKS, *SECOND)


def score(
    judge: Judge, pixels: np.ndarray, subject: str, style: str, second: SecondJudge | None = None
) -> Scores:
    """Judge pictures (n, h, w, 3) that should show ``subject`` in ``style``.

    ``subject_rr`` and ``style_rr`` are the reciprocal ranks of the right subject among all and of
    the right style in the panel; those of the second judge, where it is given, bear its name.
    """
    x = to_input(pixels)
    found = dict(zip(RANKS, reciprocal_ranks(judge, x, subject, style).T, strict=True))
    if second is not None:
        found |= zip(SECOND, reciprocal_ranks(second, x, subject, style).T, strict=True)
    return found


def harmonic_mean(scores: np.ndarray) -> np.ndarray:
    """Over the first axis; 0 where a score is 0."""
    inverse = np.divide(1, scores, out=np.full_like(scores, np.inf), where=scores > 0)
    mean: np.ndarray = len(scores) / inverse.sum(0)
    return mean


@dataclass(frozen=True)
class Score:
    """One figure over all pairs with its 95 % interval.

    Attributes:
        mean: over the pairs.
        low: lower end of the interval; ``high``: its upper end.
        by_pair: pair -> value.
        samples: resampled means, (RESAMPLES,).
    """

    mean: float
    low: float
    high: float
    by_pair: dict[str, float]
    samples: np.ndarray


@dataclass(frozen=True)
class Row:
    """One method's figures over all pairs.

    Attributes:
        means: measure -> mean over pairs of the mean over pictures of the combined prompt.
        headline: harmonic mean of the subject's and the style's score on the combined prompt.
        overall: harmonic mean of these two and of each concept's score with its own prompt, where
            that was drawn.
        second: the headline of the second judge, where there is one.
    """

    means: dict[str, float]
    headline: Score
    overall: Score | None = None
    second: Score | None = None


def summarise(
    both: Mapping[str, Scores],
    subject: Mapping[str, Scores] | None = None,
    style: Mapping[str, Scores] | None = None,
) -> Row:
    """Means over pairs with intervals.

    Args:
        both: pair -> scores of the pictures of the combined prompt.
        subject: the same of the subject's own prompt, and ``style`` of the style's.
    """
    measured = [name for name in MEASURES if all(name in scores for scores in both.values())]
    means = {name: float(np.mean([s[name].mean() for s in both.values()])) for name in measured}
    together = _stacked(both, RANKS)
    overall = None
    if subject and style and set(subject) == set(style) == set(both):
        overall = _resampled(
            {
                pair: [*parts, subject[pair]["subject_rr"][None], style[pair]["style_rr"][None]]
                for pair, parts in together.items()
            }
        )
    second = _resampled(_stacked(both, SECOND)) if SECOND[0] in measured else None
    return Row(means, _resampled(together), overall, second)


def _stacked(both: Mapping[str, Scores], names: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """Pair -> one array (measures, pictures)."""
    return {pair: [np.stack([scores[name] for name in names])] for pair, scores in both.items()}


def _resampled(parts: Mapping[str, Sequence[np.ndarray]]) -> Score:
    """Harmonic mean of all measures, with a bootstrap over pairs and, within each, over its pictures.

    The same pairs and pictures (seeds) are drawn for every method, so that differences are paired.

    Args:
        parts: pair -> arrays of (measures, pictures), one for each prompt.
    """
    generator = np.random.default_rng(0)
    resampled, by_pair = [], {}
    for pair, arrays in parts.items():
        drawn = []
        for values in arrays:
            rows = generator.integers(values.shape[1], size=(RESAMPLES, values.shape[1]))
            drawn += list(values[:, rows].mean(2))
        resampled.append(harmonic_mean(np.stack(drawn)))
        by_pair[pair] = float(harmonic_mean(np.concatenate([values.mean(1) for values in arrays])))
    chosen = generator.integers(len(resampled), size=(len(resampled), RESAMPLES))
    samples = np.take_along_axis(np.stack(resampled), chosen, 0).mean(0)
    low, high = np.quantile(samples, [0.025, 0.975])
    return Score(float(np.mean(list(by_pair.values()))), float(low), float(high), by_pair, samples)


def difference(score: Score, other: Score) -> tuple[float, float, float]:
    """``score`` less ``other``, and the 95 % interval over the same pairs and pictures."""
    low, high = np.quantile(score.samples - other.samples, [0.025, 0.975])
    return score.mean - other.mean, float(low), float(high)


def chance(judge: Judge) -> dict[str, float]:
    """The scores of guessing."""
    means = [float((1 / np.arange(1, count + 1)).mean()) for count in (len(judge.subjects), len(PANEL))]
    return dict(zip(RANKS, means, strict=True)) | {"headline": float(harmonic_mean(np.array(means)))}


def by_style(score: Score) -> dict[str, float]:
    """Style -> mean of its pairs (named ``subject:style``)."""
    found: dict[str, list[float]] = {}
    for pair, value in score.by_pair.items():
        found.setdefault(pair.split(":")[1], []).append(value)
    return {style: float(np.mean(values)) for style, values in found.items()}


TITLES = (
    *("method", "headline", "95 %", "less {} (95 %)", "overall", "95 %", "less {} (95 %)"),
    *("subject", "style", "second judge", "keeps subject", "keeps style", "held-out", "travel", "s"),
)
KEPT = ("keeps_subject", "keeps_style", "heldout_loss_end", "mean_travel", "seconds")


def table(
    rows: Mapping[str, Row], extra: Mapping[str, Mapping[str, float]], against: str, styles: Sequence[str]
) -> str:
    """A Markdown table, best headline first.

    Args:
        rows: method -> scores.
        extra: method -> figures beside the scores, by the names of ``KEPT``.
        against: the method that the others are compared with.
        styles: whose own mean headlines are the last columns.
    """
    titles = [title.format(against) for title in TITLES] + list(styles)
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    base = rows.get(against)
    for name in sorted(rows, key=lambda name: -rows[name].headline.mean):
        row, more = rows[name], extra.get(name, {})
        paired = (
            base is not None and base is not row and set(base.headline.by_pair) == set(row.headline.by_pair)
        )
        other = base if paired else None
        cells = [name, *_cells(row.headline, other and other.headline)]
        cells += _cells(row.overall, other and other.overall)
        cells += [f"{row.means[measure]:.2f}" for measure in RANKS]
        cells += [f"{row.second.mean:.3f}" if row.second else ""]
        cells += [f"{more[key]:.2f}" if more.get(key) is not None else "" for key in KEPT]
        groups = by_style(row.headline)
        cells += [f"{groups[style]:.2f}" if style in groups else "" for style in styles]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(score: Score | None, against: Score | None) -> list[str]:
    """A figure, its interval, and its gain over another's."""
    if score is None:
        return ["", "", ""]
    cells = [f"**{score.mean:.3f}**", f"{score.low:.2f}–{score.high:.2f}", ""]
    if against is not None:
        gain, low, high = difference(score, against)
        cells[2] = f"{gain:+.3f} ({low:+.2f}…{high:+.2f})"
    return cells
