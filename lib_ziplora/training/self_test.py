"""Self-test of a host: whether gradients reach every layer of its model, and whether it is left as it was.

It takes seconds and needs no LoRA; its one paragraph is the proof for WebUIs and cards that nobody else can try.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from .. import __version__
from ..errors import ZipLoraError
from ..hosts import Host, Session, TellsFacts
from ..lora.formats.keys import canonical_modules
from ..ziplora.hooks import checkpointed, lora_hooks

SIZE = 64
"""Width and height in pixels of the sample."""
TIMESTEP = 500
PROMPT = "a photo of a cat"
QUERIES = ("_to_q", "_to_k")
"""The layers that an attention without a backward pass (Sage, Flash) leaves without a gradient."""
NAMED = 3
"""Layers that are named of those that failed."""


@dataclass(frozen=True)
class SelfTest:
    """How a self-test has ended.

    Attributes:
        problem: a sentence; "" when it was passed.
        facts: what the model was found to be, name -> value.
    """

    problem: str
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def paragraph(self) -> str:
        """Everything in one paragraph, for a bug report."""
        verdict = f"failed. {self.problem}" if self.problem else "passed."
        return f"ZipLoRA self-test {verdict} " + "; ".join(
            f"{name}: {told}" for name, told in self.facts.items()
        )


def self_test(host: Host) -> SelfTest:
    """One forward and one backward pass of the host's UNet with a LoRA of rank 1 on every layer.

    The caller holds the host. Never raises ZipLoraError: what the host refuses is the result.
    """
    facts = {"ZipLoRA": __version__, "host": host.name, "system": platform.system()}
    facts |= {"Python": platform.python_version(), "torch": torch.__version__}
    try:
        facts |= host.facts() if isinstance(host, TellsFacts) else {}
        facts["checkpoint"] = host.checkpoint().name
        started = time.perf_counter()
        with host.open() as session:
            before = checksums(session.denoiser.unet)
            facts |= _about(session)
            gradients = layer_gradients(session)
        with host.open() as session:
            after = checksums(session.denoiser.unet)
        facts["seconds"] = f"{time.perf_counter() - started:.1f}"
    except (ZipLoraError, RuntimeError) as error:
        return SelfTest(" ".join(str(error).split()), facts)
    attention = {name: norm for name, norm in gradients.items() if name.endswith(QUERIES)}
    facts["layers with a gradient"] = f"{_reached(gradients)} of {len(gradients)}"
    facts["attention's among them"] = f"{_reached(attention)} of {len(attention)}"
    changed = [name for name in before if before[name] != after.get(name)]
    facts["weights that changed"] = f"{len(changed)} of {len(before)}"
    return SelfTest(_problem(gradients, changed), facts)


def _problem(gradients: Mapping[str, float], changed: Sequence[str]) -> str:
    if not gradients:
        return "The UNet has no layer that ZipLoRA knows."
    missing = [name for name, norm in gradients.items() if not 0 < norm < float("inf")]
    if missing:
        return f"No usable gradient reaches {_listed(missing)}."
    return f"These weights are not what they were: {_listed(changed)}." if changed else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _reached(gradients: Mapping[str, float]) -> int:
    return sum(0 < norm < float("inf") for norm in gradients.values())


def layer_gradients(session: Session) -> dict[str, float]:
    """Canonical layer name -> Euclidean norm of the gradient that its LoRA's ``up`` gets; 0 where there is none.

    ``up`` is zero, as at the start of a LoRA's training, so the output is the base model's. All blocks recompute
    their activations, as in a merge that is short of memory.
    """
    denoiser = session.denoiser
    modules = canonical_modules(denoiser.unet)
    generator = torch.Generator().manual_seed(0)
    factors = {name: _rank_one(module, generator) for name, module in modules.items()}
    factors = {
        name: (down.to(denoiser.device, denoiser.dtype), up.to(denoiser.device).requires_grad_())
        for name, (down, up) in factors.items()
    }
    cond = session.encode_prompts([PROMPT], width=SIZE, height=SIZE, negative=False, deltas={})
    latents = torch.randn(1, denoiser.latent_channels, SIZE // 8, SIZE // 8, generator=generator)
    probe = torch.randn(latents.shape, generator=generator).to(denoiser.device)
    adapters = {name: partial(_same, pair) for name, pair in factors.items()}
    with lora_hooks(modules, adapters), checkpointed(denoiser.checkpoint_blocks()):
        output = denoiser.predict(
            latents.to(denoiser.device), torch.tensor([TIMESTEP]).to(denoiser.device), cond
        )
        if output.requires_grad:
            (output * probe).sum().backward()
    return {name: 0.0 if up.grad is None else float(up.grad.norm()) for name, (_, up) in factors.items()}


def _rank_one(module: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(down, up) of rank 1 for a linear or convolution layer, fp32 on the CPU; ``up`` is zero."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    down = torch.randn(1, *weight.shape[1:], generator=generator)
    return down / down.norm(), torch.zeros(weight.shape[0], 1)


def _same(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return pair


def checksums(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Parameter -> two sums over its bits, exact and on its device, one of them weighted by position."""
    found = {}
    for name, parameter in module.named_parameters():
        data = parameter.detach()
        bits = (
            data.contiguous()
            .flatten()
            .view({1: torch.int8, 2: torch.int16, 4: torch.int32}[data.element_size()])
        )
        wide = bits.to(torch.int64)
        places = torch.arange(1, len(wide) + 1, device=wide.device)
        found[name] = (int(wide.sum()), int((wide * places).sum()))
    return found


def _about(session: Session) -> dict[str, str]:
    """What the model computes on and in."""
    denoiser = session.denoiser
    device = denoiser.device
    stored = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in denoiser.unet.parameters()})
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    facts = {
        "device": named,
        "computes in": str(denoiser.dtype).removeprefix("torch."),
        "stored in": ", ".join(stored),
    }
    if device.type == "cuda":
        facts["free memory"] = f"{torch.cuda.mem_get_info(device)[0] / 2**30:.1f} GiB"
    return facts | {"prediction": denoiser.prediction_type}
