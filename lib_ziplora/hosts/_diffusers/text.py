"""SDXL's text conditioning with diffusers' two text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...denoiser import Conditioning
from ...names import untagged
from .prompts import emphasised, ids, windows


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


def encode(pipeline: Any, prompts: Sequence[str], *, width: int, height: int, negative: bool) -> Conditioning:
    """Text and size conditioning of ``prompts``, one row each, on the UNet's device.

    ``context`` is (batch, 77 * windows, width of both encoders) and ``vector`` is the second
    encoder's pooled output, fp32, followed by the six size ids (height, width, 0, 0, height,
    width). Prompts are in the WebUI's syntax (see ``prompts``), and tags such as
    ``<lora:name:1>`` are taken out. An empty negative prompt is zeros where the checkpoint
    asks for it (``force_zeros_for_empty_prompt``).

    Raises:
        ConfigError: a prompt is too long, or one of its weights is no number.
    """
    zeros = negative and pipeline.config.get("force_zeros_for_empty_prompt", True)
    size = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
    device, dtype = pipeline.unet.device, pipeline.unet.dtype
    rows = []
    for prompt in map(untagged, prompts):
        context_1, _ = _run(pipeline.text_encoder, pipeline.tokenizer, prompt)
        context_2, pooled = _run(pipeline.text_encoder_2, pipeline.tokenizer_2, prompt)
        filled = not zeros or bool(prompt.strip())
        context = torch.cat([context_1, context_2], dim=-1) * filled
        vector = torch.cat([pooled * filled, size.to(pooled.device)], dim=1)
        rows.append(Conditioning(context.to(device, dtype), vector.to(device)))
    return Conditioning.cat(rows)


@torch.no_grad()
def _run(encoder: Any, tokenizer: Any, prompt: str) -> tuple[Tensor, Tensor]:
    """Weighted penultimate hidden states (1, 77 * windows, width) and the first window's pooled output, fp32.

    One window at a time, as in the WebUI: a batch rounds otherwise.
    """
    contexts, pooled = [], []
    for window in windows(prompt, tokenizer):
        tokens = torch.tensor([ids(window, tokenizer)], device=encoder.device)
        output = encoder(tokens, output_hidden_states=True)
        contexts.append(emphasised(output.hidden_states[-2].float(), window))
        pooled.append(output[0].float())
    return torch.cat(contexts, dim=1), pooled[0]
