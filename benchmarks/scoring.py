"""Scores of pictures against the truth, their means, intervals and table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.minixl.data import STYLES
from benchmarks.minixl.embedding import Judge, ranks_of, through_autoencoder, to_input

RESAMPLES = 4000
Scores = dict[str, np.ndarray]
"""Measure -> one value a picture, (pictures,)."""
MEASURES = ("subject_rr", "subject_top1", "subject_top5", "style_rr", "style_top1", "style_share", "distance")


def score(judge: Judge, pixels: np.ndarray, subject: str, style: str) -> Scores:
    """Judge pictures (n, h, w, 3) that should show ``subject`` in ``style``.

    ``subject_rr`` and ``style_rr`` are the reciprocal ranks of the right subject and style among
    all; ``style_share`` the judge's probability of the style; ``distance`` the cosine distance to
    the true drawing.
    """
    embedding, subjects, styles = judge(pixels)
    count = len(pixels)
    ranks = ranks_of(subjects, torch.full((count,), judge.drawings.subjects.index(subject)))
    style_row = torch.full((count,), STYLES.index(style))
    truth = judge(true_drawing(judge, subject, style))[0].mean(0)
    return {
        "subject_rr": (1 / ranks).numpy(),
        "subject_top1": (ranks <= 1).float().numpy(),
        "subject_top5": (ranks <= 5).float().numpy(),
        "style_rr": (1 / ranks_of(styles, style_row)).numpy(),
        "style_share": styles.softmax(1)[torch.arange(count), style_row].numpy(),
        "style_top1": (ranks_of(styles, style_row) <= 1).float().numpy(),
        "distance": (1 - torch.cosine_similarity(embedding, truth[None])).numpy(),
    }


def true_drawing(judge: Judge, subject: str, style: str) -> np.ndarray:
    """The true drawing as it is and as MiniXL's autoencoder gives it back, (2, h, w, 3) uint8."""
    row = judge.drawings.index(subject, style)
    plain = judge.drawings.pixels[row : row + 1]
    back = through_autoencoder(to_input(plain)).permute(0, 2, 3, 1)
    return np.concatenate([plain, ((back + 1) * 127.5).round().to(torch.uint8).numpy()])


def headline(subject: float | np.ndarray, style: float | np.ndarray) -> np.ndarray:
    """Harmonic mean of both scores."""
    return 2 * subject * style / np.maximum(np.asarray(subject + style), 1e-9)


@dataclass(frozen=True)
class Row:
    """One method's figures over all pairs.

    Attributes:
        means: measure -> mean over pairs of the mean over pictures; ``headline`` too.
        low: lower end of the headline's 95 % interval; ``high``: its upper end.
        by_pair: pair -> headline.
        samples: resampled headlines, (RESAMPLES,).
    """

    means: dict[str, float]
    low: float
    high: float
    by_pair: dict[str, float]
    samples: np.ndarray


def summarise(scores: Mapping[str, Scores]) -> Row:
    """Means over pairs, and a bootstrap over the pictures of each pair.

    The same pictures (seeds) are drawn for every method, so that differences are paired.
    """
    resampled, by_pair = [], {}
    for pair, found in scores.items():
        subject, style = found["subject_rr"], found["style_rr"]
        rows = np.random.default_rng(0).integers(len(subject), size=(RESAMPLES, len(subject)))
        resampled.append(headline(subject[rows].mean(1), style[rows].mean(1)))
        by_pair[pair] = float(headline(subject.mean(), style.mean()))
    means = {name: float(np.mean([s[name].mean() for s in scores.values()])) for name in MEASURES}
    means["headline"] = float(np.mean(list(by_pair.values())))
    samples = np.mean(resampled, axis=0)
    low, high = np.quantile(samples, [0.025, 0.975])
    return Row(means, float(low), float(high), by_pair, samples)


def difference(row: Row, other: Row) -> tuple[float, float, float]:
    """Headline of ``row`` less that of ``other``, and its 95 % interval over the same pictures."""
    low, high = np.quantile(row.samples - other.samples, [0.025, 0.975])
    return row.means["headline"] - other.means["headline"], float(low), float(high)


def chance(judge: Judge) -> dict[str, float]:
    """What guessing gives."""
    count = len(judge.drawings.subjects)
    rr, style_rr = (float((1 / np.arange(1, number + 1)).mean()) for number in (count, len(STYLES)))
    return {
        "subject_rr": rr,
        "subject_top1": 1 / count,
        "subject_top5": 5 / count,
        "style_rr": style_rr,
        "style_share": 1 / len(STYLES),
        "style_top1": 1 / len(STYLES),
        "headline": float(headline(rr, style_rr)),
    }


def table(
    rows: Mapping[str, Row], extra: Mapping[str, Mapping[str, float]], against: str, pairs: Sequence[str]
) -> str:
    """A Markdown table, best headline first; ``extra`` holds columns beside the scores."""
    names = sorted(rows, key=lambda name: -rows[name].means["headline"])
    titles = ["method", "headline", "95 %", f"less {against} (95 %)", "subject", "top 1", "top 5"]
    titles += [
        "style",
        "top 1",
        "share",
        "distance",
        "keeps subject",
        "keeps style",
        "held-out",
        "travel",
        "s",
    ]
    lines = ["| " + " | ".join([*titles, *pairs]) + " |", "|" + "---|" * (len(titles) + len(pairs))]
    for name in names:
        row, more = rows[name], extra.get(name, {})
        cells = [name, f"**{row.means['headline']:.3f}**", f"{row.low:.2f}–{row.high:.2f}"]
        gain = difference(row, rows[against]) if against in rows and name != against else None
        cells.append(f"{gain[0]:+.3f} ({gain[1]:+.2f}…{gain[2]:+.2f})" if gain else "")
        cells += [f"{row.means[measure]:.2f}" for measure in MEASURES]
        kept = ("keeps_subject", "keeps_style", "heldout_loss_end", "mean_travel", "seconds")
        cells += [f"{more[key]:.2f}" if more.get(key) is not None else "" for key in kept]
        cells += [f"{row.by_pair[pair]:.2f}" if pair in row.by_pair else "" for pair in pairs]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
