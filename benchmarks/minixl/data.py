"""The true drawings: one subject in one style, by the sets' own artists, rasterised on white.

    python -m benchmarks.minixl.data [--cache out/minixl-data]

Fetches the sets from the npm registry once (``npm pack``), picks the subjects that at least
``MINIMUM_SETS`` of them draw, and keeps the pixels in one ``.npz`` in the cache folder.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / "out" / "minixl-data"
SIZE = 128
MINIMUM_SETS = 9
VERSIONS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "fluent-emoji-high-contrast": "1.2.6",
    "fxemoji": "1.2.2",
    "emojione": "1.2.3",
    "emojione-monotone": "1.2.1",
    "streamline-emojis": "1.2.4",
}
STYLES = tuple(VERSIONS)
NOT_A_THING = re.compile(
    "button|arrow|oclock|thirty|keycap|face|circle|square|diamond|symbol|moon|heart|speaker|person|man$|man-|"
    "woman|hand|fist|thumb|finger|point|mark|sign|input|speech|thought|medal|japanese|aries|taurus|gemini|cancer|"
    "leo$|virgo|libra|scorpi|sagittarius|capricorn|aquarius|pisces|ophiuchus|anger|mailbox|-book|monkey-|sun-|"
    "cloud-with|latin|chart|page|file|folder|tray|no-|phone|umbrella-|musical-note|cross|star-of|om$|divide|plus|"
    "minus|multiply|loop|zzz|dash|copyright|registered|trade|gesture|boy|girl|baby|suit|ribbon$|double|exclam|"
    "question|warning|oncoming|sunrise|sunset|city|night|fog|hot-springs|clinking|with-slash|busts|speaking"
)


@dataclass(frozen=True)
class Drawings:
    """Every drawing of the chosen subjects.

    Attributes:
        pixels: (n, SIZE, SIZE, 3), uint8.
        subject: (n,), index into ``subjects``.
        style: (n,), index into ``STYLES``.
        subjects: names, sorted.
    """

    pixels: np.ndarray
    subject: np.ndarray
    style: np.ndarray
    subjects: tuple[str, ...]

    def index(self, subject: str, style: str) -> int:
        """The row of one true drawing; KeyError where no artist drew it."""
        rows = (self.subject == self.subjects.index(subject)) & (self.style == STYLES.index(style))
        if not rows.any():
            raise KeyError(f"{style} has no {subject}")
        return int(rows.argmax())


def to_signal(pixels: np.ndarray) -> Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def load(cache: Path = CACHE) -> Drawings:
    """The drawings from the cache, made on first use."""
    file = cache / f"drawings-{SIZE}.npz"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        made = rasterise(fetch(cache / "npm"))
        np.savez_compressed(
            file, pixels=made.pixels, subject=made.subject, style=made.style, subjects=made.subjects
        )
    with np.load(file) as data:
        names = tuple(str(name) for name in data["subjects"])
        return Drawings(data["pixels"], data["subject"], data["style"], names)


def fetch(folder: Path) -> dict[str, dict[str, Any]]:
    """Style -> the set's ``icons.json``; packages that the folder lacks come from npm."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {style: folder / f"iconify-json-{style}-{version}.tgz" for style, version in VERSIONS.items()}
    missing = [f"@iconify-json/{style}@{VERSIONS[style]}" for style in STYLES if not files[style].is_file()]
    if missing:
        subprocess.run(["npm", "pack", "--silent", *missing], cwd=folder, check=True)
    return {style: _icons(file) for style, file in files.items()}


def _icons(package: Path) -> dict[str, Any]:
    with tarfile.open(package) as archive:
        member = archive.extractfile("package/icons.json")
        if member is None:
            raise FileNotFoundError(f"{package} has no package/icons.json; delete it and run again.")
        icons: dict[str, Any] = json.load(member)
        return icons


def choose_subjects(sets: Mapping[str, Mapping[str, Any]], minimum: int = MINIMUM_SETS) -> list[str]:
    """Names of things that at least ``minimum`` sets draw, aliases included."""
    counts = Counter(name for icons in sets.values() for name in {*icons["icons"], *icons.get("aliases", {})})
    return sorted(name for name, count in counts.items() if count >= minimum and not NOT_A_THING.search(name))


def svg_of(icons: Mapping[str, Any], name: str) -> str | None:
    """A standalone SVG of one icon, in a square; None when the set has no such icon."""
    body = icons["icons"].get(name)
    alias = icons.get("aliases", {}).get(name)
    if body is None and alias is not None and not {"rotate", "hFlip", "vFlip"} & set(alias):
        body = icons["icons"].get(alias["parent"])
    if body is None:
        return None
    width, height = (body.get(key, icons.get(key, 16)) for key in ("width", "height"))
    left, top = (body.get(key, icons.get(key, 0)) for key in ("left", "top"))
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="black" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{box}">{body["body"]}</svg>'
    )


def rasterise(sets: Mapping[str, Mapping[str, Any]]) -> Drawings:
    """The chosen subjects in every set that draws them."""
    subjects = choose_subjects(sets)
    pixels, rows = [], []
    for number, name in enumerate(subjects):
        for style, icons in enumerate(sets.values()):
            svg = svg_of(icons, name)
            if svg is not None:
                pixels.append(_render(svg))
                rows.append((number, style))
    subject, style_numbers = np.array(rows, dtype=np.int64).T
    return Drawings(np.stack(pixels), subject, style_numbers, tuple(subjects))


def _render(svg: str) -> np.ndarray:
    import resvg_py

    png: Any = resvg_py.svg_to_bytes(svg_string=svg, background="white", width=SIZE, skip_system_fonts=True)
    data = base64.b64decode(png) if isinstance(png, str) else bytes(png)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the cache and say what is in it."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.data", description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder (default out/minixl-data)")
    args = parser.parse_args(arguments)
    drawings = load(args.cache)
    print(f"{len(drawings.pixels)} drawings of {len(drawings.subjects)} subjects in {len(STYLES)} styles")
    for number, style in enumerate(STYLES):
        print(f"  {style:28} {(drawings.style == number).sum()}")


if __name__ == "__main__":
    main()
