"""Do the paper's two pictures show here? How many coefficients are off, and how alike the merged columns are.

    python -m benchmarks.sparsity --pairs report --methods ours,equation-5,closed,paper --image out/sparsity.png

Reads the merges that ``benchmarks.quality`` has kept. The cosine is that of the subject's and the style's
columns of a layer's delta weight (arXiv 2311.13600, figure 3). A positive coefficient can't change it, so the
columns are weighted by what is left of them: by the product of their norms after the merge, as a share of before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from benchmarks import methods, quality
from lib_ziplora.lora.file import read_lora
from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.lora.sidecar import read_sidecar, sidecar_path

OFF = 0.1
BINS = np.linspace(-0.5, 1.75, 46)


@dataclass(frozen=True)
class Merge:
    """One merge: all coefficients of the subject and of the style, and the alignment that is left.

    Attributes:
        subject: (columns of all common layers,).
        style: the same.
        aligned: sum over columns of |inner product| of both parts after the merge, as a share of before.
    """

    subject: np.ndarray
    style: np.ndarray
    aligned: float


def column_products(a: LoraLayer, b: LoraLayer) -> Tensor:
    """|inner product| of the two delta weights' columns, (columns,), from the factors."""
    inner = (a.up.flatten(1).T @ b.up.flatten(1)).float() * a.scaling * b.scaling
    return torch.einsum("rc,rs,sc->c", a.down.flatten(1).float(), inner, b.down.flatten(1).float()).abs()


def measured(method: str, pair: methods.Pair, folder: Path) -> Merge:
    """What a kept merge's coefficients are."""
    name = json.loads((folder / f"{pair.subject}_{pair.style}" / f"{method}.json").read_text())["file"]
    saved, _ = read_sidecar(sidecar_path(folder / f"{pair.subject}_{pair.style}" / name))
    subject, style = saved.vectors
    files = [read_lora(file).unet_layers() for file in pair.files()]
    before = after = 0.0
    for layer in subject.keys() & style.keys():
        products = column_products(files[0][layer], files[1][layer])
        before += float(products.sum())
        after += float((products * (subject[layer] * style[layer]).abs()).sum())
    vectors = [torch.cat(list(part.values())).numpy() for part in (subject, style)]
    return Merge(vectors[0], vectors[1], after / before)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table; with ``--image``, draw the histograms."""
    parser = argparse.ArgumentParser("python -m benchmarks.sparsity", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="report")
    parser.add_argument("--methods", default="ours,equation-5,closed,paper")
    parser.add_argument("--out", type=Path, default=quality.ROOT / "out" / "quality")
    parser.add_argument("--image", type=Path)
    args = parser.parse_args(arguments)
    found = {
        method: [measured(method, pair, args.out) for pair in quality.wanted_pairs(args.pairs)]
        for method in args.methods.split(",")
    }
    print("| method | subject: mean | nearly off | style: mean | nearly off | inner products left |")
    print("|---|---|---|---|---|---|")
    for method, merges in found.items():
        cells = []
        for role in ("subject", "style"):
            values = np.concatenate([getattr(merge, role) for merge in merges])
            cells += [f"{np.abs(values).mean():.2f}", f"{(np.abs(values) < OFF).mean():.0%}"]
        aligned = np.mean([merge.aligned for merge in merges])
        print(f"| {method} | {' | '.join(cells)} | {aligned:.2f} |")
    if args.image is not None:
        draw(found, args.image)


def draw(found: dict[str, list[Merge]], image: Path) -> None:
    """A histogram of the coefficients for every method."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 2.6), squeeze=False)
    for axis, (method, merges) in zip(axes[0], found.items(), strict=True):
        for role, colour in (("subject", "#2f5fe0"), ("style", "#e0600f")):
            values = np.concatenate([getattr(merge, role) for merge in merges])
            axis.hist(values, BINS, density=True, histtype="step", color=colour, label=role, linewidth=1.5)
        axis.set_title(method, fontsize=10)
        axis.set_xlabel("coefficient")
        axis.set_yticks([])
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(image, dpi=110)


if __name__ == "__main__":
    main()
