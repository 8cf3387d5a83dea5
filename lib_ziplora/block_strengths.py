"""Strengths by block: how much each block of a LoRA counts, in the names that WebUIs give to SDXL's blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from .errors import ConfigError

PRESETS = {"style blocks only": "ALL=0 OUT01=1", "content blocks only": "ALL=0 OUT00=1"}
"""The blocks in which B-LoRA (arXiv 2403.14572) finds style and content."""
INPUTS, OUTPUTS = (tuple(f"{side}{number:02}" for number in range(9)) for side in ("IN", "OUT"))
BASE, MIDDLE = "BASE", "MID"
"""The text encoders with what of the UNet is in no block, and the block in the middle."""
BLOCKS = (BASE, *INPUTS, MIDDLE, *OUTPUTS)
GROUPS = {"ALL": BLOCKS, "IN": INPUTS, "OUT": OUTPUTS, "M00": (MIDDLE,)}
LARGEST = 10
_UNET = re.compile(r"lora_unet_(?:(input|output)_blocks_(\d+)|middle_block)_")


def block_strengths(text: str) -> dict[str, float]:
    """Block -> strength: a preset, or settings such as ``ALL=0 OUT01=1 MID=0.5``, of which later ones count.

    Raises:
        ConfigError: there is no such block, or its strength is no number from -10 to 10.
    """
    strengths = dict.fromkeys(BLOCKS, 1.0)
    for word in re.split(r"[\s,;]+", PRESETS.get(text.strip().lower(), text).strip()) if text.strip() else ():
        name, _, number = word.upper().partition("=")
        try:
            strength = float(number)
        except ValueError:
            strength = math.nan
        blocks = GROUPS.get(name, (name,) if name in strengths else ())
        if not blocks or not abs(strength) <= LARGEST:
            raise ConfigError(
                f"blocks can't be {word!r:.60}: write {' or '.join(PRESETS)}, or settings such as ALL=0 OUT01=1 of "
                f"{BASE}, IN00 to IN08, {MIDDLE}, OUT00 to OUT08, IN, OUT and ALL, from -{LARGEST} to {LARGEST}."
            )
        strengths |= dict.fromkeys(blocks, strength)
    return strengths


def strength_of(layer: str, strengths: Mapping[str, float]) -> float:
    """The strength of a layer, by its canonical name."""
    found = _UNET.match(layer)
    if found is None:
        return strengths[BASE]
    block = f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02}" if found[1] else MIDDLE
    return strengths.get(block, 1.0)
