"""SDXL's conditioning from the WebUI's own text encoders, with delta weights added for the moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...denoiser import Conditioning, TextDeltas
from .._webui.encoding import encode_prompts
from ..text_deltas import require_layers, summed
from .model import text_encoders

OPEN_CLIP_LINEAR = {
    "attn.out_proj": "self_attn_out_proj",
    "mlp.c_fc": "mlp_fc1",
    "mlp.c_proj": "mlp_fc2",
}
"""open_clip's layers in a residual block -> kohya's names."""

NOT_APPLIED = frozenset({"lora_te2_text_projection"})
"""Layers that the WebUI leaves out of a ``<lora:…>``, and that are left out here too."""


@dataclass(frozen=True)
class Slot:
    """Where a layer's weight lives: rows ``start`` to ``stop`` of a parameter."""

    parameter: nn.Parameter
    start: int
    stop: int

    @property
    def weight(self) -> Tensor:
        return self.parameter[self.start : self.stop]


def slots(model: Any) -> dict[str, Slot]:
    """Kohya's layer name -> its weight in the two text encoders."""
    encoders = text_encoders(model)
    found: dict[str, Slot] = {}
    for path, module in encoders[1].named_modules():
        if isinstance(module, nn.Linear):
            found[f"lora_te1_{path.replace('.', '_')}"] = _whole(module)
    for number, block in enumerate(encoders[2].transformer.resblocks):
        stem = f"lora_te2_text_model_encoder_layers_{number}"
        rows = block.attn.embed_dim
        for index, name in enumerate("qkv"):
            slot = Slot(block.attn.in_proj_weight, index * rows, (index + 1) * rows)
            found[f"{stem}_self_attn_{name}_proj"] = slot
        for path, name in OPEN_CLIP_LINEAR.items():
            found[f"{stem}_{name}"] = _whole(block.get_submodule(path))
    return found


def _whole(module: nn.Module) -> Slot:
    parameter = module.weight
    assert isinstance(parameter, nn.Parameter)
    return Slot(parameter, 0, parameter.shape[0])


@contextmanager
def applied(deltas: TextDeltas, places: Mapping[str, Slot]) -> Iterator[None]:
    """Add delta weights to the text encoders; take them off again bit for bit.

    Raises:
        IncompatibleError: a layer that the text encoders don't have, or of another shape.
    """
    names = [name for name in deltas if name not in NOT_APPLIED]
    require_layers(names, places)
    saved: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name in names:
                saved[name] = places[name].weight.to("cpu", copy=True)  # an 8 GB card has no room for both
                places[name].weight.copy_(summed(places[name].weight, deltas[name](), name))
        yield
    finally:
        with torch.no_grad():
            for name, original in saved.items():
                places[name].weight.copy_(original)


def encode(
    model: Any, prompts: Sequence[str], *, width: int, height: int, negative: bool, deltas: TextDeltas
) -> Conditioning:
    """See ``encode_prompts``, with the deltas added meanwhile."""
    with torch.inference_mode(False), torch.no_grad(), applied(deltas, slots(model)):
        return encode_prompts(model, prompts, width=width, height=height, negative=negative)
