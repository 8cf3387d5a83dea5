"""Which base model a LoRA was trained for, judged by its tensors' names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from .keys import ParsedKeys, TensorName, parse_key

# What people call them.
BASE_NAMES = {
    "sdxl": "Stable Diffusion XL",
    "sdxl-refiner": "the SDXL refiner",
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
    "wan": "Wan",
    "qwen": "Qwen-Image",
    "unknown": "a model that is not known here",
}

# Pieces of module paths that only one architecture has. The first that occurs counts.
SIGNATURES = (
    ("single_transformer_blocks_", "flux"),
    ("double_blocks_", "flux"),
    ("single_blocks_", "flux"),
    ("_img_mlp_", "qwen"),
    ("joint_blocks_", "sd3"),
    ("_attn_add_k_proj", "sd3"),
    ("_cross_attn_", "wan"),
)

# Places that SD 1 and 2 have and SDXL has not: attention at full resolution, a fourth level.
OLDER_PLACES = (
    "input_blocks_1_1_",
    "input_blocks_2_1_",
    "input_blocks_9_",
    "input_blocks_10_",
    "input_blocks_11_",
    "output_blocks_6_1_",
    "output_blocks_7_1_",
    "output_blocks_8_1_",
    "output_blocks_9_",
    "output_blocks_10_",
    "output_blocks_11_",
    "down_blocks_0_attentions_",
    "down_blocks_3_",
    "up_blocks_2_attentions_",
    "up_blocks_3_",
)

# Width of the text conditioning that cross-attention reads; SDXL's own is 2048.
CONTEXT_WIDTHS = {768: "sd1", 1024: "sd2", 1280: "sdxl-refiner"}

# What SDXL's second text encoder has and its first has not: width, inner width, layers from 12 on.
WIDTHS_2 = frozenset({1280, 5120})
_DEEP_LAYER = re.compile(r"layers_(1[2-9]|[23]\d)_")


def sole_text_encoder(shapes: Mapping[str, Sequence[int]], second: bool = False) -> int:
    """Which of SDXL's text encoders is meant in a file that has layers of one only: 1 or 2.

    PEFT's names say nothing of it, and some tools write the first one's name for any.

    Args:
        shapes: tensor name -> shape.
        second: whether the file's folder or configuration says that it is the second.
    """
    names = {key: parse_key(key) for key in shapes}
    text = [key for key, name in names.items() if name.section in ("te1", "te")]
    if not text or any(name.section == "te2" for name in names.values()):
        return 1
    wide = any(not WIDTHS_2.isdisjoint(shapes[key]) for key in text)
    deep = any(_DEEP_LAYER.search(names[key].path) for key in text)
    return 2 if wide or deep or (second and len(text) == len(names)) else 1


def detect_base(parsed: ParsedKeys, shapes: Mapping[str, Sequence[int]]) -> str:
    """One of ``BASE_NAMES``.

    SDXL is told by its layout (three levels, attention on the lower two), not by the width of
    its conditioning alone, so that a smaller model of the same layout counts as SDXL.

    Args:
        parsed: the file's tensor names.
        shapes: tensor name -> shape.
    """
    names = [name for name in parsed.names.values() if name.family not in (None, "module")]
    paths = {name.path for name in names if name.section == "unet"}
    sections = {name.section for name in names}
    signs = {_sign(path) for path in paths}
    for _, base in SIGNATURES:
        if base in signs:
            return base
    width = _context_width(parsed.names, shapes)
    if "older" in signs:
        return CONTEXT_WIDTHS.get(width, "sd1")
    if any(name.module is not None and name.section == "unet" for name in names):
        deep = "te2" in sections or "deep" in signs
        return "sdxl" if deep else CONTEXT_WIDTHS.get(width, "sdxl")
    if paths:
        return "unknown"
    if "te" in sections:
        return "sd1"
    return "sdxl" if sections else "unknown"


@lru_cache(maxsize=32768)
def _sign(path: str) -> str:
    """What one module path alone says: a base, ``older`` (SD 1 or 2), ``deep`` (several transformer
    blocks in one place, as only SDXL's lower levels have) or ""."""
    for piece, base in SIGNATURES:
        if piece in f"_{path}":
            return base
    if path.startswith(OLDER_PLACES):
        return "older"
    return "deep" if "_transformer_blocks_1_" in path else ""


def _context_width(names: Mapping[str, TensorName], shapes: Mapping[str, Sequence[int]]) -> int:
    """Input width of cross-attention's keys and values, or 0 when the file has none."""
    for key, name in names.items():
        if name.part in ("down", "hada_w1_b") and name.path.endswith(("_attn2_to_k", "_attn2_to_v")):
            shape = shapes[key]
            if len(shape) >= 2:
                return shape[1]
    return 0
