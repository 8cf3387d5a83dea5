"""What MiniXL is shown, and what it never sees: the subjects and styles that are held out, and the prompts."""

from __future__ import annotations

import random

import numpy as np

from .data import STYLES, Drawings

HELDOUT_STYLES = ("fluent-emoji", "fluent-emoji-high-contrast", "emojione-monotone")
KNOWN_STYLES = {
    "noto": "noto",
    "noto-v1": "classic",
    "twemoji": "twemoji",
    "fluent-emoji-flat": "flat",
    "fxemoji": "firefox",
    "emojione": "emojione",
    "streamline-emojis": "streamline",
}
"""Set -> the word for its style in a prompt."""
UNRELATED_STYLES = ("noto", "noto-v1", "twemoji", "fxemoji", "streamline-emojis")
"""Known sets of which no held-out set is another version: a subject's LoRA learns from these alone."""
HELDOUT_SUBJECTS = (
    "anchor",
    "banana",
    "bell",
    "cactus",
    "camera",
    "castle",
    "crown",
    "elephant",
    "ghost",
    "guitar",
    "key",
    "octopus",
    "palm-tree",
    "penguin",
    "pineapple",
    "rocket",
    "sailboat",
    "snail",
    "strawberry",
    "sunflower",
    "trophy",
    "turtle",
    "umbrella",
    "watermelon",
)
KNOWN_SUBJECTS = 160
ALWAYS = (
    "cat",
    "dog",
    "dolphin",
    "cherries",
    "lemon",
    "tomato",
    "rose",
    "airplane",
    "bicycle",
    "bus",
    "frog",
)
"""Subjects that examples and tests name."""
SUBJECT_TOKEN, STYLE_TOKEN = "sks", "szn"


def known_subjects(drawings: Drawings) -> list[str]:
    """The subjects that MiniXL is trained on: a seeded choice without the held-out ones."""
    free = [name for name in drawings.subjects if name not in HELDOUT_SUBJECTS and name not in ALWAYS]
    chosen = random.Random(0).sample(free, KNOWN_SUBJECTS - len(ALWAYS))
    return sorted([*ALWAYS, *chosen])


def known_rows(drawings: Drawings) -> np.ndarray:
    """Rows of the drawings that MiniXL is trained on, (n,)."""
    subjects = [drawings.subjects.index(name) for name in known_subjects(drawings)]
    styles = [STYLES.index(name) for name in KNOWN_STYLES]
    return np.flatnonzero(np.isin(drawings.subject, subjects) & np.isin(drawings.style, styles))


def caption(subject: str, style_word: str | None) -> str:
    """The prompt of a drawing; without a style word it says the subject alone."""
    words = subject.replace("-", " ")
    return f"a {words} emoji" if style_word is None else f"a {words} emoji in {style_word} style"
