"""LoRAs of MiniXL 2's held-out subjects and styles, trained on the UNet with kohya's default targets.

A subject learns from four drawings of sets that no held-out style belongs to, two of them prompted
with the style's words; a style from sixteen drawings of known subjects.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib_ziplora.lora.layer import LoraLayer

from ..minixl.lora import train
from .choice import (
    HELDOUT_STYLES,
    KNOWN_SUBJECTS,
    SIBLINGS,
    STYLE_TOKEN,
    SUBJECT_TOKEN,
    caption,
    style_words,
)
from .data import Drawings
from .latents import encode
from .studio import Studio

SUBJECT_PICTURES, STYLE_PICTURES = 4, 16
STEPS = {"subject": 150, "style": 200}
RATE = 2e-3


@dataclass(frozen=True)
class Concept:
    """What a LoRA learns from: rows of the drawings and their prompts."""

    kind: str
    name: str
    rows: list[int]
    prompts: list[str]


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


def subject_concept(drawings: Drawings, name: str, keep_out: Container[str] = ()) -> Concept:
    """A held-out subject in four known styles outside ``keep_out``, each of another set; a seeded choice."""
    related = {style.split("/")[0] for style in (*HELDOUT_STYLES, *SIBLINGS)}
    rows: list[int] = []
    sets: set[str] = set()
    for row in np.random.default_rng(0).permutation(rows_of(drawings, subject=name)).tolist():
        style = drawings.styles[drawings.style[row]]
        key = style.split("/")[0]
        if key not in related | sets and style not in keep_out and len(rows) < SUBJECT_PICTURES:
            rows.append(row)
            sets.add(key)
    words = [style_words(drawings.styles[drawings.style[row]]) for row in rows]
    prompts = [caption(SUBJECT_TOKEN, said if number % 2 else None) for number, said in enumerate(words)]
    return Concept("subject", name, rows, prompts)


def style_concept(drawings: Drawings, name: str) -> Concept:
    """A held-out style: sixteen of its drawings of known subjects, a seeded choice."""
    known = [
        row
        for row in rows_of(drawings, style=name)
        if drawings.subjects[drawings.subject[row]] in KNOWN_SUBJECTS
    ]
    rows = np.random.default_rng(0).choice(known, STYLE_PICTURES, replace=False).tolist()
    return Concept(
        "style", name, rows, [caption(drawings.subjects[drawings.subject[row]], STYLE_TOKEN) for row in rows]
    )


def learn(studio: Studio, drawings: Drawings, concept: Concept) -> dict[str, LoraLayer]:
    """The concept's LoRA, at the studio's size."""
    z = encode(studio.vae, drawings.pixels[concept.rows], studio.size).float()
    return train(studio.unet, z, studio.said(concept.prompts), STEPS[concept.kind], RATE)
