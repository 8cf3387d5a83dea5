"""A pico host that draws: flat pictures whose colour says what they were drawn of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from lib_ziplora.errors import HostError
from lib_ziplora.hosts import Drawn, OnStep, Picture, Sampler

from .pico_host import PicoHost

SIZE = (48, 32)


def colour(picture: Picture) -> tuple[int, int, int]:
    """The same for the same prompt, LoRAs and seed."""
    red, green, blue = hashlib.sha256(repr(picture).encode()).digest()[:3]
    return red, green, blue


class DrawingHost(PicoHost):
    """Also the pen. ``before_picture(n)`` may interrupt or fail; ``saves`` says whether files are made."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.drawn: list[Picture] = []
        self.samplers_used: list[Sampler] = []
        self.counts: list[int] = []
        self.before_picture: Any = lambda number: None
        self.saves: Path | None = None
        self.drawing_refusal = ""
        self.pens = 0
        self.font: Path | None = None

    def samplers(self) -> Sequence[str]:
        return ["first", "second"]

    def default_sampler(self) -> Sampler:
        return Sampler(steps=3)

    def check_drawing(self) -> None:
        if self.drawing_refusal:
            raise HostError(self.drawing_refusal)

    @contextmanager
    def drawing(self, sampler: Sampler, count: int) -> Iterator[DrawingHost]:
        self.samplers_used.append(sampler)
        self.counts.append(count)
        self.pens += 1
        try:
            yield self
        finally:
            self.pens -= 1

    def draw(self, picture: Picture, on_step: OnStep) -> Drawn:
        assert self.pens == 1
        self.before_picture(len(self.drawn) + 1)
        for _ in range(self.samplers_used[-1].steps):
            on_step()
        self.drawn.append(picture)
        return Drawn(Image.new("RGB", SIZE, colour(picture)), f"{picture.tagged}\nSeed: {picture.seed}")

    def keep(self, grid: Any, infotext: str) -> Path | None:
        assert self.pens == 1
        if self.saves is not None:
            grid.save(self.saves)
        return self.saves
