"""Colour variants of ink drawings with exact words: a tint, a gradient, a coloured ground, a tile, a badge."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .choice import COLOURS

INK_CHROMA = 6.0
LIGHT = ("orange", "yellow", "pink", "grey")
DARK = ("red", "green", "teal", "blue", "navy", "purple", "brown")


def is_ink(pixels: np.ndarray[Any, Any]) -> bool:
    """Whether a picture (h, w, 3) uint8 has no colours of its own."""
    return float(np.ptp(pixels.astype(np.int16), axis=2).mean()) < INK_CHROMA


def variant(pixels: np.ndarray[Any, Any], seed: int) -> tuple[np.ndarray[Any, Any], str]:
    """A seeded variant of an ink drawing (h, w, 3) uint8, and the words for it: ink, then ground.

    Half are tints (``red``), a quarter gradients from top to bottom (``red blue gradient``), a
    quarter light ink on dark or black on light: a whole ground (``white on navy``), or a rounded
    ``tile`` or round ``badge`` on white, with the drawing smaller inside (``black on red badge``).
    """
    dice = random.Random(seed)
    grey = pixels.astype(np.float32).mean(2, keepdims=True) / 255
    names = [name for name in COLOURS if name != "white"]
    first, second = dice.sample(names, 2)
    kind = dice.random()
    ink: np.ndarray[Any, Any]
    paper: np.ndarray[Any, Any] = np.array(COLOURS["white"])
    if kind < 0.5:
        ink, words = np.array(COLOURS[first]), first
    elif kind < 0.75:
        share = np.linspace(0, 1, len(pixels), dtype=np.float32)[:, None, None]
        ink = (1 - share) * np.array(COLOURS[first]) + share * np.array(COLOURS[second])
        words = f"{first} {second} gradient"
    else:
        first, second = dice.choice(("white", "yellow", "orange", "pink")), dice.choice(DARK)
        if dice.random() < 0.5:
            first, second = "black", dice.choice(LIGHT)
        ink, paper, words = (
            np.array(COLOURS.get(first, (0, 0, 0))),
            np.array(COLOURS[second]),
            f"{first} on {second}",
        )
        if shape := dice.choice(("", "", "tile", "badge")):
            return on(shape, grey, ink, paper), f"{words} {shape}"
    return (ink + (paper - ink) * grey).round().astype(np.uint8), words


def on(shape: str, grey: np.ndarray[Any, Any], ink: Any, paper: Any) -> np.ndarray[Any, Any]:
    """A drawing (h, w, 1), 0 to 1, at .62 of its size on a ``tile`` or ``badge``, on white."""
    side = len(grey)
    sheet = Image.new("L", (4 * side, 4 * side), 0)
    box, draw = (side // 8, side // 8, 4 * side - side // 8, 4 * side - side // 8), ImageDraw.Draw(sheet)
    if shape == "tile":
        draw.rounded_rectangle(box, radius=side * 3 // 4, fill=255)
    else:
        draw.ellipse(box, fill=255)
    mask = np.asarray(sheet.resize((side, side), Image.BOX), np.float32)[:, :, None] / 255
    small = round(side * 0.62)
    inside = np.ones_like(grey)
    edge = (side - small) // 2
    scaled = Image.fromarray((grey[:, :, 0] * 255).round().astype(np.uint8)).resize((small, small), Image.BOX)
    inside[edge : edge + small, edge : edge + small, 0] = np.asarray(scaled, np.float32) / 255
    drawn = ink + (paper - ink) * inside
    return (255 + (drawn - 255) * mask).round().astype(np.uint8)
