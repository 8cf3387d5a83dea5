"""Scores of pictures against the truth, their means, intervals and table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.minixl.data import STYLES, Drawings
from benchmarks.minixl.embedding import Judge, ranks_of, through_autoencoder

RESAMPLES = 4000
Scores = dict[str, np.ndarray]
"""Measure -> one value a picture, (pictures,)."""
MEASURES = ("subject_rr", "subject_top1", "subject_top5", "style_rr", "style_top1", "style_share", "distance")


def score(
    judge: Judge, pixels: np.ndarray, subject: str, style: str, truth: np.ndarray | None = None
) -> Scores:
    """Judge pictures (n, h, w, 3) that should show ``subject`` in ``style``.

    ``subject_rr`` and ``style_rr`` are the reciprocal ranks of the right subject and style among
    all; ``style_share`` the judge's probability of the style; ``distance`` the cosine distance to
    the true drawing's versions, where they are given.
    """
    embedding, subjects, styles = judge(pixels)
    count = len(pixels)
    ranks = ranks_of(subjects, torch.full((count,), judge.subjects.index(subject)))
    style_row = torch.full((count,), STYLES.index(style))
    style_ranks = ranks_of(styles, style_row)
    found = {
        "subject_rr": 1 / ranks,
        "subject_top1": (ranks <= 1).float(),
        "subject_top5": (ranks <= 5).float(),
        "style_rr": 1 / style_ranks,
        "style_share": styles.softmax(1)[torch.arange(count), style_row],
        "style_top1": (style_ranks <= 1).float(),
    }
    if truth is not None:
        middle = judge(truth)[0].mean(0)
        found["distance"] = 1 - torch.cosine_similarity(embedding, middle[None])
    return {name: values.numpy() for name, values in found.items()}


def true_drawing(drawings: Drawings, subject: str, style: str) -> np.ndarray:
    """The true drawing as it is and as MiniXL's autoencoder gives it back, (2, h, w, 3) uint8."""
    row = drawings.index(subject, style)
    plain = drawings.pixels[row : row + 1]
    size = plain.shape[1]
    back = F.interpolate(through_autoencoder(plain), size=size).permute(0, 2, 3, 1)
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
    """Means over pairs, and a bootstrap over pairs and, within each, over its pictures.

    The same pairs and pictures (seeds) are drawn for every method, so that differences are paired.
    """
    generator = np.random.default_rng(0)
    resampled, by_pair = [], {}
    for pair, found in scores.items():
        subject, style = found["subject_rr"], found["style_rr"]
        rows = generator.integers(len(subject), size=(RESAMPLES, len(subject)))
        resampled.append(headline(subject[rows].mean(1), style[rows].mean(1)))
        by_pair[pair] = float(headline(subject.mean(), style.mean()))
    chosen = generator.integers(len(resampled), size=(len(resampled), RESAMPLES))
    samples = np.take_along_axis(np.stack(resampled), chosen, 0).mean(0)
    means = {name: float(np.mean([s[name].mean() for s in scores.values()])) for name in MEASURES}
    means["headline"] = float(np.mean(list(by_pair.values())))
    low, high = np.quantile(samples, [0.025, 0.975])
    return Row(means, float(low), float(high), by_pair, samples)


def difference(row: Row, other: Row) -> tuple[float, float, float]:
    """Headline of ``row`` less that of ``other``, and its 95 % interval over the same pairs and pictures."""
    low, high = np.quantile(row.samples - other.samples, [0.025, 0.975])
    return row.means["headline"] - other.means["headline"], float(low), float(high)


def chance(judge: Judge) -> dict[str, float]:
    """What guessing gives."""
    count = len(judge.subjects)
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


def by_style(row: Row) -> dict[str, float]:
    """Style -> mean headline of its pairs (named ``subject:style``)."""
    found: dict[str, list[float]] = {}
    for pair, value in row.by_pair.items():
        found.setdefault(pair.split(":")[1], []).append(value)
    return {style: float(np.mean(values)) for style, values in found.items()}


def table(
    rows: Mapping[str, Row], extra: Mapping[str, Mapping[str, float]], against: str, styles: Sequence[str]
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
    lines = ["| " + " | ".join([*titles, *styles]) + " |", "|" + "---|" * (len(titles) + len(styles))]
    for name in names:
        row, more = rows[name], extra.get(name, {})
        cells = [name, f"**{row.means['headline']:.3f}**", f"{row.low:.2f}–{row.high:.2f}"]
        gain = difference(row, rows[against]) if against in rows and name != against else None
        cells.append(f"{gain[0]:+.3f} ({gain[1]:+.2f}…{gain[2]:+.2f})" if gain else "")
        cells += [f"{row.means[measure]:.2f}" for measure in MEASURES]
        kept = ("keeps_subject", "keeps_style", "heldout_loss_end", "mean_travel", "seconds")
        cells += [f"{more[key]:.2f}" if more.get(key) is not None else "" for key in kept]
        groups = by_style(row)
        cells += [f"{groups[style]:.2f}" if style in groups else "" for style in styles]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
