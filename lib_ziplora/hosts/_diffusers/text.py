"""SDXL's text conditioning with diffusers' two text encoders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...denoiser import Conditioning, TextDeltas
from ...errors import IncompatibleError

WINDOW = 75
"""Prompt tokens that fit between the two special tokens of one CLIP window."""

TAG = re.compile(r"<\w+:[^>]+>")
"""An extra network in a prompt, ``<lora:name:1>``."""


def text_modules(encoders: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Kohya's module name -> linear layer of the text encoders, te1 first.

    transformers before version 5 keeps ``text_model.`` in front of the first encoder's
    module paths and version 5 does not; the kohya name always has it.
    """
    table: dict[str, nn.Module] = {}
    for number, encoder in enumerate(encoders, start=1):
        for path, module in encoder.named_modules():
            if isinstance(module, nn.Linear):
                rooted = path.startswith(("text_model.", "text_projection"))
                full = path if rooted else f"text_model.{path}"
                table[f"lora_te{number}_{full.replace('.', '_')}"] = module
    return table


@contextmanager
def applied(deltas: TextDeltas, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Add dense delta weights to the text encoders; take them off again bit for bit.

    Raises:
        IncompatibleError: a layer that the text encoders don't have, or of another shape.
    """
    missing = sorted(set(deltas) - set(modules))
    if missing:
        raise IncompatibleError(
            f"The checkpoint's text encoders have no layer {missing[0]}"
            f"{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}; "
            "is the LoRA made for SDXL? Set the text encoder layers to none to leave them out."
        )
    saved: dict[str, Tensor] = {}
    try:
        for name, delta in deltas.items():
            weight = _weight(modules[name])
            with torch.no_grad():
                saved[name] = weight.detach().clone()
                _add(weight, delta, name)
        yield
    finally:
        with torch.no_grad():
            for name, original in saved.items():
                _weight(modules[name]).copy_(original)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _add(weight: Tensor, delta: Callable[[], Tensor], name: str) -> None:
    dense = delta()
    if dense.shape != weight.shape:
        raise IncompatibleError(
            f"Layer {name} of the LoRA has a delta weight of shape {tuple(dense.shape)}, "
            f"the checkpoint's is {tuple(weight.shape)}; is the LoRA made for SDXL?"
        )
    weight.copy_(weight.float() + dense.to(weight.device, torch.float32))


def encode(pipeline: Any, prompts: Sequence[str], *, width: int, height: int, negative: bool) -> Conditioning:
    """Text and size conditioning of ``prompts``, one row each, on the UNet's device.

    ``context`` is (batch, 77 * windows, width of both encoders) and ``vector`` is the second
    encoder's pooled output, fp32, followed by the six size ids (height, width, 0, 0, height,
    width). Prompts of more than 75 tokens take several windows, as in the WebUI, and tags such
    as ``<lora:name:1>`` are taken out. An empty negative prompt is zeros where the checkpoint
    asks for it (``force_zeros_for_empty_prompt``).
    """
    prompts = [TAG.sub("", prompt) for prompt in prompts]
    first = _windows(pipeline.tokenizer, prompts)
    second = _windows(pipeline.tokenizer_2, prompts)
    context_1, _ = _run(pipeline.text_encoder, first)
    context_2, pooled = _run(pipeline.text_encoder_2, second)
    context = torch.cat([context_1, context_2], dim=-1)
    if negative and pipeline.config.get("force_zeros_for_empty_prompt", True):
        filled = torch.tensor([bool(p.strip()) for p in prompts], device=context.device)
        context = context * filled[:, None, None]
        pooled = pooled * filled[:, None]
    ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
    ids = ids.expand(len(prompts), -1).to(pooled.device)
    device = pipeline.unet.device
    vector = torch.cat([pooled.float(), ids], dim=1)
    return Conditioning(context.to(device, pipeline.unet.dtype), vector.to(device))


def _windows(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Token ids (batch, windows, 77); every prompt gets as many windows as the longest."""
    rows = [tokenizer(p, add_special_tokens=False, verbose=False).input_ids for p in prompts]
    count = max(1, *(-(-len(row) // WINDOW) for row in rows))
    windows = [[_window(tokenizer, row[i * WINDOW : (i + 1) * WINDOW]) for i in range(count)] for row in rows]
    return torch.tensor(windows, dtype=torch.long)


def _window(tokenizer: Any, tokens: Sequence[int]) -> list[int]:
    padding = [tokenizer.pad_token_id] * (WINDOW - len(tokens))
    return [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id, *padding]


@torch.no_grad()
def _run(encoder: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Penultimate hidden states (batch, 77 * windows, width) and the first window's pooled output."""
    batch, windows, tokens = ids.shape
    output = encoder(ids.flatten(0, 1).to(encoder.device), output_hidden_states=True)
    hidden = output.hidden_states[-2]
    pooled = output[0].reshape(batch, windows, *output[0].shape[1:])[:, 0]
    return hidden.reshape(batch, windows * tokens, -1), pooled
