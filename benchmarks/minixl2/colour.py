"""Colour variants of ink drawings with exact words: a tint, a gradient of two colours, a coloured ground."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from .choice import COLOURS

INK_CHROMA = 6.0
DARK = ("red", "green", "teal", "blue", "navy", "purple", "brown")


def is_ink(pixels: np.ndarray[Any, Any]) -> bool:
    """Whether a picture (h, w, 3) uint8 has no colours of its own."""
    return float(np.ptp(pixels.astype(np.int16), axis=2).mean()) < INK_CHROMA


def variant(pixels: np.ndarray[Any, Any], seed: int) -> tuple[np.ndarray[Any, Any], str]:
    """A seeded variant of an ink drawing (h, w, 3) uint8, and the words for it: ink, then ground.

    Half are tints (``red``), a quarter gradients from top to bottom (``red blue gradient``), a
    quarter light ink on a dark ground (``white on navy``) or black on a light one.
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
    elif dice.random() < 0.5:
        first, second = dice.choice(("white", "yellow", "orange", "pink")), dice.choice(DARK)
        ink, paper, words = np.array(COLOURS[first]), np.array(COLOURS[second]), f"{first} on {second}"
    else:
        ink, paper, words = np.zeros(3), np.array(COLOURS[second]), f"black on {second}"
    return (ink + (paper - ink) * grey).round().astype(np.uint8), words
