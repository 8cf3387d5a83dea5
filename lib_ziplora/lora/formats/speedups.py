"""Distilled models and LoRAs, told by their names: few sampling steps, no guidance."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_WORDS = {
    "LCM": r"lcm",
    "TCD": r"tcd",
    "PCM": r"pcm",
    "DMD2": r"dmd2?",
    "Hyper": r"hyper(?!_?(?:real|detail))(?:_?sd)?(?:xl)?",
}
_MODELS = {
    **{kind: re.compile(rf"(?:^|_){word}(?=_|\d|$)") for kind, word in _WORDS.items()},
    "Lightning": re.compile("lightning"),
    "Turbo": re.compile("turbo"),
}
_PREFERENCES = {kind: re.compile(rf"(?:^|_){kind.lower()}(?=_|\d|$)") for kind in ("DPO", "SPO")}
_FOR_SDXL = re.compile(r"sdxl|sd_xl|\dsteps?(?:_|$)|\d_steps?(?:_|$)")
_NAMES = ("modelspec.title", "ss_output_name")
GENERIC = frozenset({"pytorch_lora_weights", "diffusion_pytorch_model", "model"})
"""File names that say nothing; the folder's name does."""


def distilled_model(*names: str) -> str:
    """What made a model need few steps and no guidance (``Lightning``, ``LCM``, ...); "" for an ordinary one.

    Args:
        names: of its file or folder, and those in its metadata.
    """
    return next((kind for name in map(_plain, names) for kind in _MODELS if _MODELS[kind].search(name)), "")


def speed_up_lora(path: Path, metadata: Mapping[str, str]) -> str:
    """What kind of speed-up or preference LoRA a file is (``LCM``, ``DPO``, ...); "" for a subject or a style.

    Lightning and Turbo are ordinary words too: they count where the name also says SDXL or how many steps,
    and the file was not trained on captions.
    """
    stem = path.parent.name if path.stem.lower() in GENERIC else path.stem
    for name in map(_plain, (stem, *(metadata.get(key, "") for key in _NAMES))):
        kind = distilled_model(name)
        captions = metadata.get("ss_tag_frequency", "{}") not in ("", "{}")
        if kind in _WORDS or (kind and _FOR_SDXL.search(name) and not captions):
            return kind
        for preference, pattern in _PREFERENCES.items():
            if pattern.search(name):
                return preference
    return ""


def speed_up_warning(name: str, kind: str) -> str:
    """What merging such a LoRA as a subject or a style comes to, as a sentence."""
    effect = (
        "which shifts every picture to what people preferred"
        if kind in _PREFERENCES
        else "which makes the model draw in few steps"
    )
    return (
        f"By its name {name} is a LoRA of {kind}, {effect}: it has no subject, no style and no trigger words to "
        "learn from. Merge without it, and add it in the prompt beside the merged LoRA."
    )


def _plain(name: str) -> str:
    """Lower case, with ``_`` between words: ``bigLust_v16DMD2`` -> ``big_lust_v16_dmd2``."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", parted.lower()).strip("_")
