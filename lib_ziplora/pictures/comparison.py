"""Request, plan and result of a comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..hosts import Drawn, Picture, Sampler
from ..options import check_all, check_length, option
from ..pipeline.reexport import MERGED
from .grid import Label

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PROMPTS, MOST_SEEDS, LARGEST_SEED = 12, 16, 2**32 - 1
SMALLEST_SIDE = 64
TAG = re.compile(r"<lora:[^<>]*>")

Place = tuple[int, int, int]
"""Row, prompt and seed of a picture, each counted from 0."""


@dataclass(frozen=True)
class CompareRequest:
    """A comparison to draw; the same object for every front end. Tags of LoRAs in prompts are left out."""

    source: str = option(MISSING, "Merged LoRA", MERGED, flag="source")
    prompts: tuple[str, ...] = option(
        (),
        "Prompts",
        "Each is drawn in every row. Empty: the prompts of the merge, and one for all",
        flag="--prompt",
    )
    seeds: int = option(1, "Seeds", "Pictures of each row and prompt", minimum=1, maximum=MOST_SEEDS)
    seed: int = option(
        0, "Seed", "The first seed; the others follow it", minimum=0, maximum=LARGEST_SEED - MOST_SEEDS
    )
    sampler: Sampler = option(Sampler, "Sampler", "How to draw", json="*")
    preview: bool = option(
        False,
        "Preview",
        "Make the merge's picture the preview of its card, where there is none of your own",
    )

    brief: bool = option(
        False,
        "Two pictures",
        "Only the plain sum and the merge, and without prompts of yours only the one for all",
    )

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError("No merged LoRA is chosen. Choose the one to compare.")
        if len(self.prompts) > MOST_PROMPTS:
            raise ConfigError(f"There are {len(self.prompts)} prompts; {MOST_PROMPTS} are the most.")
        if any(not untagged(prompt) for prompt in self.prompts):
            raise ConfigError("A prompt of the comparison is empty without its tags. Write what to draw.")
        for prompt in self.prompts:
            check_length("A prompt of the comparison", prompt)
        check_all(self)
        check_all(self.sampler)
        for side, value in (("width", self.sampler.width), ("height", self.sampler.height)):
            if 0 < value < SMALLEST_SIDE:
                raise ConfigError(f"{side} must be 0 or at least {SMALLEST_SIDE}, not {value!r}.")


@dataclass(frozen=True)
class Row:
    """A row of the comparison: what it is called, and the LoRAs that draw it."""

    label: Label
    loras: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Plan:
    """Everything that a comparison draws, before it is drawn.

    ``name``: the merged LoRA's. ``rows``: the last one is the merge's.
    """

    name: str
    rows: tuple[Row, ...]
    prompts: tuple[Label, ...]
    seeds: tuple[int, ...]

    def places(self) -> Iterator[tuple[Place, Picture]]:
        """Each picture and where it belongs, row by row."""
        for row, one in enumerate(self.rows):
            for group, prompt in enumerate(self.prompts):
                for column, seed in enumerate(self.seeds):
                    yield (row, group, column), Picture(prompt.detail, one.loras, seed)

    @property
    def count(self) -> int:
        """Pictures in all."""
        return len(self.rows) * len(self.prompts) * len(self.seeds)


@dataclass(frozen=True)
class Comparison:
    """The pictures of a comparison, or those that there are.

    Attributes:
        plan: what was to be drawn.
        pictures: what was drawn.
        grid: all of it on one sheet, with names.
        infotext: of the sheet.
        file: where the host has saved the sheet; None where it saves none.
        stopped: why pictures are missing, as a sentence; "" when none are.
        seconds: from start to end.
    """

    plan: Plan
    pictures: Mapping[Place, Drawn]
    grid: Image
    infotext: str
    file: Path | None = None
    stopped: str = ""
    seconds: float = 0.0

    def gallery(self) -> list[tuple[Drawn, str]]:
        """Each picture with a caption, in the order of the sheet."""
        return [(drawn, self._caption(place)) for place, drawn in sorted(self.pictures.items())]

    def best_preview(self) -> Drawn | None:
        """The merge's picture of the last prompt; None when it was not drawn."""
        return self.pictures.get((len(self.plan.rows) - 1, len(self.plan.prompts) - 1, 0))

    def _caption(self, place: Place) -> str:
        row, group, column = place
        plan = self.plan
        return f"{plan.rows[row].label.title} · {plan.prompts[group].detail} · seed {plan.seeds[column]}"


def untagged(prompt: str) -> str:
    """A prompt without the tags of LoRAs."""
    return " ".join(TAG.sub(" ", prompt).split())
