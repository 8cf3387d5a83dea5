"""Forge's SDXL UNet, made differentiable for the time of a session, and as a denoiser."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...denoiser import Conditioning, PredictionType
from ...errors import HostError

TRANSFORMER, RESIDUAL = "BasicTransformerBlock", "ResBlock"
"""Names of the block classes, which every fork has a copy of."""
QUANTISED = ("gguf_cls", "bnb_quantized", "quant_state")
"""What GGUF's and bitsandbytes' parameters carry."""


@dataclass(frozen=True)
class ForgeDenoiser:
    """The UNet as ``Denoiser``; ``vector`` is pooled text and embedded sizes.

    The module itself is called, so nothing that extensions put on a patcher (ToMe, FreeU, ControlNet, ...) takes part.

    Attributes:
        ready: puts the UNet where it computes, without a LoRA and differentiable; called before every forward, since
            encoding a prompt may have moved it away, and cheap where it did not.
    """

    unet: nn.Module
    alphas_cumprod: Tensor
    prediction_type: PredictionType
    latent_channels: int
    device: torch.device
    dtype: torch.dtype
    ready: Callable[[], None]

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The UNet's raw output in fp32; see ``Denoiser.predict``."""
        self.ready()
        x_t, context, vector = (
            tensor.to(self.device, self.dtype) for tensor in (x_t, cond.context, cond.vector)
        )
        options: dict[str, Any] = {}  # a fresh one each time: the UNet writes into it
        output: Tensor = self.unet(
            x_t,
            t.to(self.device).float(),
            context=context,
            y=vector,
            control=None,
            transformer_options=options,
        )
        return output.float()

    def checkpoint_blocks(self) -> Sequence[nn.Module]:
        """The transformer and residual blocks, recognised by the name of their class."""
        return [m for m in self.unet.modules() if type(m).__name__ in (TRANSFORMER, RESIDUAL)]


def normal_tensors(module: nn.Module) -> None:
    """Copies in place of inference tensors, which autograd refuses, one at a time and without a gradient of their own.

    Forge loads and moves its models inside ``torch.inference_mode``.
    """
    with torch.inference_mode(False):
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None and parameter.is_inference():
                    part._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            for name, buffer in list(part._buffers.items()):
                if buffer is not None and buffer.is_inference():
                    part._buffers[name] = buffer.clone()


def any_inference(module: nn.Module) -> bool:
    """Whether a parameter is an inference tensor."""
    return any(parameter.is_inference() for parameter in module.parameters())


@contextmanager
def out_of_place(unet: nn.Module) -> Iterator[None]:
    """Transformer blocks that write into no tensor which the backward pass needs.

    Forge's block adds to its input in place (``x += n``) after norm1 and norm2 have kept it for their gradients, and
    so changes the caller's tensor too, from which checkpointing recomputes. Copies of those inputs mend both; the
    outputs stay the same to the bit, and a block that works out of place is none the worse.
    """
    undo: list[Callable[[], Any]] = []
    try:
        for block in unet.modules():
            if type(block).__name__ != TRANSFORMER:
                continue
            for name in ("norm1", "norm2", "norm3"):
                norm = getattr(block, name)
                undo.append(norm.register_forward_pre_hook(_copied_input).remove)
            block.__dict__["forward"] = functools.partial(_on_a_copy, block.forward)
            undo.append(functools.partial(block.__dict__.pop, "forward"))
        yield
    finally:
        for one in reversed(undo):
            one()


def _copied_input(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].clone(), *inputs[1:])


def _on_a_copy(forward: Callable[..., Any], x: Tensor, *args: Any, **options: Any) -> Any:
    return forward(x.clone(), *args, **options)


@contextmanager
def attributes(*places: tuple[Any, str, Any]) -> Iterator[None]:
    """(owner, name, value): attributes that have another value inside the block."""
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, value in places:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(kept):
            setattr(owner, name, value)


def check_layers(name: str, unet: nn.Module) -> None:
    """Refuse a UNet through whose layers no gradient passes, or that is compiled.

    Raises:
        HostError: quantised weights (nf4, GGUF, int8, nunchaku, mixed), ``torch.compile``.
    """
    if hasattr(unet, "_orig_mod") or getattr(unet, "_compiled_call_impl", None) is not None:
        raise HostError(f"{name} is compiled (torch.compile). Switch that off and load the checkpoint again.")
    blocks = [m for m in unet.modules() if type(m).__name__ == TRANSFORMER]
    attending = [m for block in blocks for path, m in block.named_modules() if path.endswith(".to_q")]
    weights = [getattr(module, "weight", None) for module in attending]
    plain = [w for w in weights if isinstance(w, Tensor) and w.is_floating_point() and w.ndim == 2]
    if (
        not blocks
        or len(plain) < 2 * len(blocks)
        or any(hasattr(w, mark) for w in plain for mark in QUANTISED)
    ):
        stored = getattr(attending[0], "weight", None) if attending else None
        kind = str(getattr(stored, "dtype", "")).removeprefix("torch.") or "an unknown form"
        raise HostError(
            f"{name}'s layers are quantised ({kind}, as by nf4, GGUF, int8 or nunchaku), which a gradient doesn't "
            "pass through. Choose a checkpoint in fp16, bf16 or fp8, and Diffusion in Low Bits: Automatic."
        )
