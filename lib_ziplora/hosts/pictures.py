"""Drawing pictures with installed LoRAs, for hosts that can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..options import option

if TYPE_CHECKING:
    from PIL.Image import Image

OnStep = Callable[[], None]
"""Told of every sampling step, by hosts whose own bar does not show it; what it raises ends the drawing."""


MOST_STEPS, LARGEST_GUIDANCE, LARGEST_SIDE, SIDE_STEP = 150, 30.0, 2048, 8


def _side(name: str) -> Any:
    text = f"In pixels, a multiple of {SIDE_STEP}; 0 is the checkpoint's own"
    return option(0, name, text, minimum=0, maximum=LARGEST_SIDE, step=SIDE_STEP)


@dataclass(frozen=True)
class Sampler:
    """How pictures are drawn. ``name`` is one of ``Draws.samplers``; "" is the first of them."""

    name: str = option("", "Sampler", "Its name. Empty: the host's own", json="sampler", flag="--sampler")
    steps: int = option(20, "Steps", "Sampling steps", minimum=1, maximum=MOST_STEPS, step=1)
    guidance_scale: float = option(
        7.0, "CFG scale", "Classifier-free guidance", minimum=1, maximum=LARGEST_GUIDANCE, step=0.5
    )
    width: int = _side("Width")
    height: int = _side("Height")
    negative_prompt: str = option("", "Negative prompt", "What the pictures should not show")


@dataclass(frozen=True)
class Picture:
    """What to draw: a prompt without tags, LoRAs (name and weight, as in ``<lora:name:weight>``), a seed."""

    prompt: str
    loras: tuple[tuple[str, float], ...]
    seed: int

    @property
    def tagged(self) -> str:
        """The prompt that draws it in a WebUI."""
        return " ".join([self.prompt, *(f"<lora:{name}:{weight:g}>" for name, weight in self.loras)])


@dataclass(frozen=True)
class Drawn:
    """A picture that was drawn.

    Attributes:
        image: a PIL image; ``info["parameters"]`` is its infotext.
        infotext: how it was drawn, as the WebUI writes it into its pictures.
        file: where the host has saved it; None where it saves none.
    """

    image: Image
    infotext: str
    file: Path | None = None


class Pen(Protocol):
    """A host that is ready to draw."""

    @property
    def font(self) -> Path | None:
        """A TrueType file for labels; None where the host brings none."""
        ...

    def draw(self, picture: Picture, on_step: OnStep) -> Drawn:
        """Draw one picture, and save it where the host saves its own.

        Raises:
            ZipLoraError: a LoRA that can't be used, NaN in the picture, no room to save it.
        """
        ...

    def keep(self, grid: Image, infotext: str) -> Path | None:
        """Save a sheet of several pictures where the host saves its own; None where it saves none.

        Raises:
            OutputError: it can't be written.
        """
        ...


@runtime_checkable
class Draws(Protocol):
    """A host that draws pictures as its own user would: ``<lora:name:weight>`` in the prompt, its own sampler."""

    def samplers(self) -> Sequence[str]:
        """Names for ``Sampler.name``, the default first."""
        ...

    def default_sampler(self) -> Sampler:
        """How the host's user draws if he says nothing."""
        ...

    def check_drawing(self) -> None:
        """Raise HostError, in words that say what to do, when nothing can be drawn."""
        ...

    def drawing(self, sampler: Sampler, count: int) -> AbstractContextManager[Pen]:
        """A pen for so many pictures; the caller holds the host's lock.

        Afterwards the model is clean and the host's settings and random state are what they were.

        Raises:
            HostError: nothing can be drawn, or there is no such sampler.
        """
        ...
