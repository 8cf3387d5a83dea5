"""Loads a real Forge or reForge in this process, on the CPU; see ``real_webui``.

``ZIPLORA_FORGE_STORAGE`` is what Forge keeps the UNet in: fp32, fp16, bf16 or fp8 (it computes in fp32 anyway).
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lib_ziplora.hosts._forge.host import text_modules
from lib_ziplora.lora.formats.keys import canonical_modules

from . import real_webui
from .real_webui import KIND

ARGUMENTS = (
    "--always-cpu --skip-torch-cuda-test --skip-version-check --skip-python-version-check "
    "--disable-console-progressbars --no-prompt-history"
)
STORAGES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
}
STORAGE = os.environ.get("ZIPLORA_FORGE_STORAGE", "fp32")


@functools.cache
def boot() -> Any:
    """``modules.shared`` of the WebUI with its model loaded and its LoRAs listed in a folder of our own."""
    with real_webui.started_in_its_folder(ARGUMENTS):
        importlib.import_module("modules_forge.initialization").initialize_forge()
        initialize = importlib.import_module("modules.initialize")
        initialize.imports()
        initialize.initialize()
        importlib.import_module("modules.script_callbacks").before_ui_callback()
        shared = importlib.import_module("modules.shared")
        if KIND == "forge":
            _load(importlib.import_module("modules.sd_models"))
        assert shared.sd_model is not None
    real_webui.own_lora_folder(shared)
    return shared


def _load(sd_models: Any) -> None:
    sd_models.model_data.forge_loading_parameters = {
        "checkpoint_info": sd_models.select_checkpoint(),
        "additional_modules": [],
        "unet_storage_dtype": STORAGES[STORAGE],
    }
    sd_models.forge_model_reload()


def module(name: str) -> Any:
    """One of the WebUI's modules, after it was booted."""
    boot()
    return importlib.import_module(name)


def model() -> Any:
    return boot().sd_model


def unet() -> Any:
    return model().forge_objects_original.unet.model.diffusion_model


def parts() -> list[torch.nn.Module]:
    """UNet, VAE and text encoders."""
    original = model().forge_objects_original
    return [unet(), original.vae.first_stage_model, original.clip.cond_stage_model]


def picture(prompt: str, keep_caches: bool = False) -> Any:
    """See ``real_webui.picture``."""
    boot()
    return real_webui.picture(prompt, keep_caches)


def write_lora(name: str, seed: int, *, text: bool = True, rank: int = 3) -> dict[str, torch.Tensor]:
    """A LoRA of random factors on the attention layers and both text encoders, installed."""
    modules = {n: m for n, m in canonical_modules(unet()).items() if n.endswith(("_to_q", "_to_k", "_to_v"))}
    if text:
        modules |= text_modules(model().forge_objects_original.clip.cond_stage_model)
        modules.pop("lora_te2_text_projection", None)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for key, layer in modules.items():
        rows, columns = layer.weight.shape
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, columns, generator=generator) / columns**0.5
        tensors[f"{key}.lora_up.weight"] = torch.randn(rows, rank, generator=generator) * 0.3
        tensors[f"{key}.alpha"] = torch.tensor(float(rank) / 2)
    save_file(
        tensors,
        str(Path(boot().cmd_opts.lora_dir) / f"{name}.safetensors"),
        {"ss_base_model_version": "sdxl_base_v1-0"},
    )
    return tensors


@contextmanager
def cleaned() -> Iterator[None]:
    """A LoRA that a test's picture has put on is off again afterwards."""
    boot()
    try:
        yield
    finally:
        module("networks").load_networks([], [], [])
