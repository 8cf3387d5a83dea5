"""SDXL's text conditioning with diffusers' two text encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...denoiser import Conditioning, TextDeltas
from ...errors import IncompatibleError
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
