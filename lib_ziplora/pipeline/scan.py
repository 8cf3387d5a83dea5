"""Scan: which LoRAs go together, by the columns' overlap of every subject with every style; without a model."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import MISSING, asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ZipLoraError
from ..hosts import Host
from ..library.catalog import catalog
from ..options import option
from .matrix import LARGEST
from .overlap import overlap_of

PATIENCE = 20.0
"""Seconds that somebody waits for an answer."""
ADVICE = {
    "apart": "hardly overlap: the plain sum will usually do",
    "in part": "overlap in part: learn the coefficients",
    "together": "pull on the same columns: learn, and expect a trade",
}


@dataclass(frozen=True)
class ScanRequest:
    """Which LoRAs to scan; names of installed LoRAs, or files where paths are taken."""

    subjects: tuple[str, ...] = option(MISSING, "Subjects", "LoRAs of subjects")
    styles: tuple[str, ...] = option(
        (),
        "Styles",
        "LoRAs of styles; without any, every installed LoRA that can be merged and is no subject",
    )

    def __post_init__(self) -> None:
        if not self.subjects:
            raise ConfigError("No subject is chosen. Choose at least one.")


@dataclass(frozen=True)
class ScannedPair:
    """How much a subject and a style get in each other's way.

    Attributes:
        subject: its name.
        style: its name.
        overlap: the mean |cosine| of the same columns; None where it can't be told.
        chance: what columns without anything in common would have.
        common_layers: that both change.
        advice: what that means, or why it can't be told.
    """

    subject: str
    style: str
    overlap: float | None = None
    chance: float = 0.0
    common_layers: int = 0
    advice: str = ""

    @property
    def ratio(self) -> float:
        """The overlap in multiples of that of chance; what can't be told is infinite."""
        return math.inf if self.overlap is None else self.overlap / self.chance if self.chance else 0.0


@dataclass(frozen=True)
class Scan:
    """The pairs that were looked at, those that go together best first, and how many others there are."""

    pairs: tuple[ScannedPair, ...]
    pending: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"pairs": [asdict(pair) for pair in self.pairs], "pending": self.pending}


def scan(request: ScanRequest, host: Host, patience: float = math.inf) -> Scan:
    """Look at every pair; what was found is remembered, so that a scan that was cut short goes on from there.

    Args:
        request: the pairs.
        host: where LoRAs are installed.
        patience: seconds after which no further pair is looked at.

    Raises:
        ConfigError: there are more pairs than a matrix may have, or none.
    """
    subjects = list(dict.fromkeys(request.subjects))
    styles = list(dict.fromkeys(request.styles)) or [
        one.name for one in catalog(host) if one.usable and not one.merged and one.name not in subjects
    ]
    pairs = list(itertools.product(subjects, styles))
    if not 0 < len(pairs) <= LARGEST:
        raise ConfigError(f"These are {len(pairs)} pairs; {LARGEST} are the most, and there must be one.")
    resolve = cache(host.resolve)
    end, found, left = time.monotonic() + patience, list[ScannedPair](), len(pairs)
    for subject, style in pairs:
        names = Path(subject).stem, Path(style).stem
        try:
            files = resolve(subject), resolve(style)
            if not files[0].samefile(files[1]):
                overlap = overlap_of(*files)
                advice = ADVICE[overlap.degree]
                found.append(ScannedPair(*names, overlap.mean, overlap.chance, overlap.common, advice))
        except ZipLoraError as error:
            found.append(ScannedPair(*names, advice=str(error)))
        left -= 1
        if time.monotonic() >= end:
            break
    return Scan(tuple(sorted(found, key=lambda pair: pair.ratio)), left)
