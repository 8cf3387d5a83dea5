"""Blocks of the UNet and kinds of layers, from a layer's canonical name."""

from __future__ import annotations

import re

KINDS = ("self-attention", "cross-attention", "feed-forward", "convolution", "other")
_UNET = re.compile(r"lora_unet_(input_blocks|middle_block|output_blocks)(?:_(\d+))?")
_KIND_OF = (("attn1", 0), ("self_attn", 0), ("attn2", 1), ("ff_net", 2), ("mlp", 2))
_CONVOLUTION = re.compile(
    r"(in_layers_2|out_layers_3|skip_connection|_op|_conv|lora_unet_input_blocks_0_0|lora_unet_out_2)$"
)
_ORDER = {"input": 0, "middle": 1, "output": 2, "rest": 3, "text": 4}

Place = tuple[str, str]
"""A block and one of ``KINDS``."""


def place_of(name: str) -> Place:
    """Where in the network a layer is, by its canonical name, and of which kind."""
    index = next((index for word, index in _KIND_OF if word in name), 3 if _CONVOLUTION.search(name) else 4)
    kind = KINDS[index]
    if name.startswith("lora_te"):
        return f"text encoder {name[len('lora_te') : len('lora_te') + 1]}", kind
    found = _UNET.match(name)
    if found is None:
        return "rest of the UNet", kind
    side, number = found.group(1).partition("_")[0], found.group(2)
    return (side if side == "middle" else f"{side} {number}"), kind


def network_order(place: Place) -> tuple[int, int, int]:
    """Key that sorts places as the network runs: input, middle, output, the rest, text encoders."""
    words = place[0].split()
    number = int(words[-1]) if words[-1].isdigit() else 0
    return _ORDER[words[0]], number, KINDS.index(place[1])
