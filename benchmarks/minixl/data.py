"""The true drawings: one subject in one style, by the sets' own artists, rasterised on white at 128 pixels.

python -m benchmarks.minixl.data [--cache out/minixl]
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .choice import HELDOUT_STYLES, HELDOUT_SUBJECTS, KNOWN_SUBJECTS, SIBLINGS
from .icons import Icon, fetch, matrix

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / "out" / "minixl"
SIZE = 128
MINIMUM_SUBJECTS = 50
EMPTY = 8.0
SAME, SAME_SHARE, SHARED = 4.0, 0.6, 20
"""Styles repeat each other when, of at least SHARED common subjects, SAME_SHARE differ by less than SAME (of 255, at
16 x 16 pixels)."""


@dataclass(frozen=True)
class Drawings:
    """Every drawing of the chosen subjects.

    Attributes:
        pixels: (n, SIZE, SIZE, 3), uint8, read from the file as needed.
        subject: (n,), index into ``subjects``.
        style: (n,), index into ``styles``.
        subjects: names, sorted.
        styles: names, sorted.
    """

    pixels: np.ndarray[Any, Any]
    subject: np.ndarray[Any, Any]
    style: np.ndarray[Any, Any]
    subjects: tuple[str, ...]
    styles: tuple[str, ...]


def load(cache: Path = CACHE) -> Drawings:
    """The drawings from the cache, made on first use."""
    index, pixels = cache / "drawings.npz", cache / f"drawings-{SIZE}.npy"
    if not index.is_file():
        make(cache, index, pixels)
    with np.load(index) as data:
        subjects, styles = (tuple(map(str, data[name])) for name in ("subjects", "styles"))
        return Drawings(np.load(pixels, mmap_mode="r"), data["subject"], data["style"], subjects, styles)


def make(cache: Path, index: Path, pixels: Path) -> None:
    """Fetch, rasterise, choose the styles, and write the drawings and what is said of their sets."""
    icons, about = matrix(fetch(cache), {*KNOWN_SUBJECTS, *HELDOUT_SUBJECTS})
    with Pool() as pool:
        drawn = pool.map(render, icons, 64)
    rows = [(icon, picture) for icon, picture in zip(icons, drawn, strict=True) if picture.std() > EMPTY]
    counts = Counter(icon.style for icon, _ in rows)
    rows = [row for row in rows if counts[row[0].style] >= MINIMUM_SUBJECTS]
    repeats = repeated_styles([icon for icon, _ in rows], np.stack([picture for _, picture in rows]))
    rows = [row for row in rows if row[0].style not in repeats]
    subjects = sorted({icon.subject for icon, _ in rows})
    styles = sorted({icon.style for icon, _ in rows})
    np.save(pixels, np.stack([picture for _, picture in rows]))
    numbers = [(subjects.index(icon.subject), styles.index(icon.style)) for icon, _ in rows]
    subject, style = np.array(numbers, dtype=np.int64).T
    np.savez(index, subject=subject, style=style, subjects=subjects, styles=styles)
    sets = {name.split("/")[0]: about[name.split("/")[0]] for name in styles}
    (cache / "sets.json").write_text(
        json.dumps({"sets": sets, "repeats": repeats}, indent=1), encoding="utf-8"
    )


def render(icon: Icon) -> np.ndarray[Any, Any]:
    """(SIZE, SIZE, 3) uint8: black ink on white, coloured sets as they are; all white where it can't be drawn."""
    import resvg_py

    body = icon.body.replace("currentColor", "#000")
    view = " ".join(map(str, icon.box))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{view}">{body}</svg>'
    )
    try:
        png: Any = resvg_py.svg_to_bytes(svg_string=svg, background="white", width=SIZE, height=SIZE)
    except ValueError:
        return np.full((SIZE, SIZE, 3), 255, np.uint8)
    data = base64.b64decode(png) if isinstance(png, str) else bytes(png)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE)))


def repeated_styles(icons: Sequence[Icon], pixels: np.ndarray[Any, Any]) -> dict[str, str]:
    """Style -> the larger one that it repeats, pixel for pixel, on most of the subjects that both draw."""
    side = SIZE // 16
    small = np.stack([picture.reshape(16, side, 16, side, 3).mean((1, 3, 4)) for picture in pixels])
    at: dict[str, dict[str, int]] = defaultdict(dict)
    for number, icon in enumerate(icons):
        at[icon.style][icon.subject] = number
    repeats: dict[str, str] = {}
    for style in (names := sorted(at, key=lambda name: (-len(at[name]), name))):
        for larger in names[: names.index(style)]:
            common = [] if larger in repeats else [name for name in at[style] if name in at[larger]]
            if len(common) < SHARED:
                continue
            pairs = ((at[style][name], at[larger][name]) for name in common)
            differences = np.array([np.abs(small[a] - small[b]).mean() for a, b in pairs])
            if (differences < SAME).mean() > SAME_SHARE:
                repeats[style] = larger
                break
    return repeats


def known_rows(drawings: Drawings) -> np.ndarray[Any, Any]:
    """Rows of the drawings that MiniXL is trained on, known subjects in known styles, (n,)."""
    subjects = [drawings.subjects.index(name) for name in KNOWN_SUBJECTS if name in drawings.subjects]
    unknown = [
        drawings.styles.index(name) for name in (*HELDOUT_STYLES, *SIBLINGS) if name in drawings.styles
    ]
    return np.flatnonzero(np.isin(drawings.subject, subjects) & ~np.isin(drawings.style, unknown))


def rows_of(
    drawings: Drawings, *, subject: str | None = None, style: str | None = None
) -> np.ndarray[Any, Any]:
    """Rows of one subject, of one style, or of both."""
    chosen = np.ones(len(drawings.subject), bool)
    if subject is not None:
        chosen &= drawings.subject == drawings.subjects.index(subject)
    if style is not None:
        chosen &= drawings.style == drawings.styles.index(style)
    return np.flatnonzero(chosen)


def to_signal(pixels: np.ndarray[Any, Any]) -> Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) in -1..1."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the cache and say what is in it."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.data", description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder (default out/minixl)")
    drawings = load(parser.parse_args(arguments).cache)
    counts = np.bincount(drawings.style)
    print(
        f"{len(drawings.pixels)} drawings, {len(drawings.subjects)} subjects, {len(drawings.styles)} styles"
    )
    print(" ".join(f"{name}:{count}" for name, count in zip(drawings.styles, counts, strict=True)))


if __name__ == "__main__":
    main()
