"""Loads a real Automatic1111 WebUI in this process, on the CPU in fp32; see ``real_webui``."""

from __future__ import annotations

import functools
import importlib
import random
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from lib_ziplora.hosts._a1111 import text as text_module
from lib_ziplora.lora.formats.keys import canonical_modules

from . import real_webui
from .real_webui import own_lora_folder, started_in_its_folder

marks = real_webui.marks("a1111")

ARGUMENTS = (
    "--use-cpu all --no-half --no-half-vae --precision full --skip-torch-cuda-test --skip-version-check "
    "--no-download-sd-model --do-not-download-clip --skip-load-model-at-start "
    "--disable-console-progressbars --no-prompt-history"
)


@functools.cache
def boot() -> Any:
    """``modules.shared`` of the WebUI with its model loaded and its LoRAs listed in a folder of our own."""
    with started_in_its_folder(ARGUMENTS):
        initialize = importlib.import_module("modules.initialize")
        initialize.imports()
        initialize.initialize()
        importlib.import_module("modules.script_callbacks").before_ui_callback()
        shared = importlib.import_module("modules.shared")
        assert shared.sd_model is not None
        sd_hijack = importlib.import_module("modules.sd_hijack")
        if sd_hijack.current_optimizer is None:
            sd_hijack.apply_optimizations()
    own_lora_folder(shared)
    return shared


def module(name: str) -> Any:
    """One of the WebUI's modules, after it was booted."""
    boot()
    return importlib.import_module(name)


def use_loras(*loras: tuple[str, float, float]) -> None:
    """Load LoRAs as a picture's prompt would: (name, text strength, UNet strength)."""
    names, text, unet = ([lora[i] for lora in loras] for i in range(3))
    module("networks").load_networks(names, text, unet, [None] * len(loras))


def picture(prompt: str, keep_caches: bool = False) -> np.ndarray:
    """See ``real_webui.picture``."""
    boot()
    return real_webui.picture(prompt, keep_caches)


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """x_t, t and conditioning for the UNet, the same every time."""
    model = boot().sd_model
    generator = torch.Generator().manual_seed(5)
    x_t = torch.randn(batch, 4, 16, 16, generator=generator)
    conditioning = module("modules.prompt_parser").SdConditioning(
        ["a cat icon"] * batch, width=128, height=128
    )
    with torch.no_grad():
        return x_t, torch.linspace(900, 50, batch).long(), model.get_learned_conditioning(conditioning)


def webui_prediction(*loras: tuple[str, float, float]) -> torch.Tensor:
    """What the WebUI's own UNet says with these LoRAs; the conditioning stays the base's."""
    use_loras()
    x_t, t, cond = inputs()
    use_loras(*loras)
    with torch.no_grad():
        output = boot().sd_model.apply_model(x_t, t.float(), dict(cond))
    return output.float().clone()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def write_lora(
    name: str, seed: int, *, text: bool = True, unet: bool = True, rank: int = 3
) -> dict[str, torch.Tensor]:
    """A LoRA of random factors on every layer of both text encoders and on the attention layers, installed."""
    model = boot().sd_model
    shapes: dict[str, tuple[int, ...]] = {}
    if text:
        shapes |= {key: tuple(slot.weight.shape) for key, slot in text_module.slots(model).items()}
    if unet:
        named = canonical_modules(model.model.diffusion_model).items()
        shapes |= {
            key: tuple(m.weight.shape) for key, m in named if key.endswith(("_to_q", "_to_k", "_to_v"))
        }
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for key, (rows, columns) in shapes.items():
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, columns, generator=generator) / columns**0.5
        tensors[f"{key}.lora_up.weight"] = torch.randn(rows, rank, generator=generator) * 0.3
        tensors[f"{key}.alpha"] = torch.tensor(float(rank) / 2)
    folder = Path(boot().cmd_opts.lora_dir)
    save_file(tensors, str(folder / f"{name}.safetensors"), {"ss_base_model_version": "sdxl_base_v1-0"})
    module("networks").list_available_networks()
    return tensors


def weights() -> dict[str, torch.Tensor]:
    """A copy of all of the model's weights."""
    return {name: tensor.detach().cpu().clone() for name, tensor in boot().sd_model.state_dict().items()}


def same_weights(before: dict[str, torch.Tensor]) -> bool:
    now = boot().sd_model.state_dict()
    return before.keys() == now.keys() and all(
        torch.equal(now[name].cpu(), value) for name, value in before.items()
    )


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _names(things: Any) -> list[str]:
    return [getattr(thing, "__qualname__", repr(thing)) for thing in things]


def surroundings() -> dict[str, Any]:
    """All but the weights that a guest could leave changed."""
    shared, sd_hijack = boot(), module("modules.sd_hijack")
    hijack, sd_unet = sd_hijack.model_hijack, module("modules.sd_unet")
    model = shared.sd_model
    found: dict[str, Any] = {
        "flags": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [[_names(getattr(m, hooks).values()) for hooks in HOOKS] for m in model.modules()],
        "classes": _names(type(m) for m in model.modules()),
        "overrides": [
            {n: m.__dict__[n] for n in ("forward", "_forward") if n in m.__dict__} for m in model.modules()
        ],
        "padding": [m.padding_mode for m in model.modules() if isinstance(m, torch.nn.Conv2d)],
        "checkpoint": [getattr(m, "checkpoint", None) for m in model.modules()],
        "optimizer": sd_hijack.current_optimizer,
        "hypernetworks": list(shared.loaded_hypernetworks),
        "sd_unet": sd_unet.current_unet_option,
        "merging": getattr(model, "applied_token_merged_ratio", 0),
        "remarks": (list(hijack.comments), dict(hijack.extra_generation_params), hijack.fixes),
        "schedule": id(model.alphas_cumprod),
        "options": dict(shared.opts.data),
        "state": shared.state.dict(),
        "torch": torch.get_rng_state().tolist(),
        "random": (random.getstate(), np.random.get_state()[1].tolist()),
        "modes of torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }
    for side in ("ldm", "sgm"):
        attention = module(f"{side}.modules.attention")
        vae, unet = (module(f"{side}.modules.diffusionmodules.{name}") for name in ("model", "openaimodel"))
        found[side] = (attention.CrossAttention.forward, vae.AttnBlock.forward, vae.nonlinearity, unet.th)
        found[f"{side} unet"] = (unet.UNetModel, unet.UNetModel.forward)
    return found


@contextmanager
def cleaned() -> Any:
    """Whatever a test loads into the WebUI is off again afterwards."""
    boot()
    try:
        yield
    finally:
        boot().loaded_hypernetworks.clear()
        module("modules.sd_models").apply_token_merging(boot().sd_model, 0)
        module("modules.sd_hijack").model_hijack.apply_circular(False)
        module("modules.sd_unet").apply_unet("None")
        use_loras()
