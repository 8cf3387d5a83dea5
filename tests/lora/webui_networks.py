"""The WebUI's own LoRA classes, loaded from the folder in ``ZIPLORA_WEBUI`` without starting it."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(os.environ.get("ZIPLORA_WEBUI", "")) / "extensions-builtin" / "Lora"
PRESENT = bool(os.environ.get("ZIPLORA_WEBUI")) and (FOLDER / "network_oft.py").is_file()
NAMES = ("lora", "hada", "ia3", "lokr", "full", "norm", "glora", "oft")
LORA_PARTS = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}


def _stub_modules() -> dict[str, types.ModuleType]:
    """What the files import of the WebUI, empty; only ``devices``, ``shared`` and ``sd_models`` are used."""
    stubs = {"modules": types.ModuleType("modules"), "modules.models": types.ModuleType("modules.models")}
    for name in ("sd_models", "cache", "errors", "hashes", "shared", "devices"):
        stubs[f"modules.{name}"] = types.ModuleType(name)
        setattr(stubs["modules"], name, stubs[f"modules.{name}"])
    for name in ("scripts", "sd_hijack", "patches", "textual_inversion"):
        stubs[f"modules.{name}"] = MagicMock()
        setattr(stubs["modules"], name, stubs[f"modules.{name}"])
    stubs["modules.textual_inversion.textual_inversion"] = stubs["gradio"] = MagicMock()
    stubs["modules.shared"].cmd_opts = SimpleNamespace(lora_dir=os.devnull, lyco_dir_backcompat=os.devnull)
    stubs["modules.shared"].walk_files = lambda *_, **__: []
    stubs["modules.sd_models"].read_state_dict = load_file
    stubs["modules.devices"].cpu, stubs["modules.devices"].dtype = torch.device("cpu"), torch.float32
    mmdit = types.ModuleType("mmdit")
    mmdit.QkvLinear = type("QkvLinear", (nn.Linear,), {})
    stubs |= {"modules.models.sd3": SimpleNamespace(mmdit=mmdit), "modules.models.sd3.mmdit": mmdit}
    stubs["modules.models"].sd3 = stubs["modules.models.sd3"]
    stubs["modules"].models = stubs["modules.models"]
    return stubs


@functools.cache
def _load() -> tuple[types.ModuleType, list[object], types.ModuleType]:
    """(``network``, every ``ModuleType``, ``networks``)."""
    before, stubs = dict(sys.modules), _stub_modules()
    sys.modules.update(stubs)
    sys.path.insert(0, str(FOLDER))
    try:
        network = importlib.import_module("network")
        kinds = [importlib.import_module(f"network_{name}") for name in NAMES]
        with patch("os.makedirs"):
            networks = importlib.import_module("networks")
    finally:
        sys.path.remove(str(FOLDER))
        ours = [name for name, m in sys.modules.items() if str(FOLDER) in str(getattr(m, "__file__", ""))]
        for name in (*stubs, *ours):  # a WebUI that is started later imports its own
            del sys.modules[name]
            if name in before:
                sys.modules[name] = before[name]
    types_of = [v() for m in kinds for v in vars(m).values() if _is_module_type(v, network)]
    return network, types_of, networks


def load_network(file: Path, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What the WebUI's loader makes of a file: the WebUI's name of a layer -> what it adds to the weight.

    Args:
        file: the LoRA.
        layers: of the model, by the names that the WebUI gives them.

    Raises:
        AssertionError: tensors of the file that the WebUI passes over.
    """
    networks = _load()[2]
    networks.shared.sd_model = SimpleNamespace(network_layer_mapping=dict(layers), is_sdxl=True)
    with patch.object(networks.logging, "debug") as passed_over, patch("os.path.getmtime"):
        found = networks.load_network("test", SimpleNamespace(filename=file))
    assert not passed_over.called, passed_over.call_args
    found.te_multiplier = found.unet_multiplier = 1.0
    with torch.no_grad():
        return {
            name: module.calc_updown(_original(name, module))[0] for name, module in found.modules.items()
        }


def _original(name: str, module: Any) -> Tensor:
    """The weight that a module is relative to: of an attention as one module, that of the projection."""
    owner = module.sd_module
    if isinstance(owner, nn.MultiheadAttention):
        return owner.in_proj_weight.chunk(3)["qkv".index(name[-len("q_proj")])]
    return owner.weight


def _is_module_type(value: object, network: types.ModuleType) -> bool:
    return (
        isinstance(value, type) and issubclass(value, network.ModuleType) and value is not network.ModuleType
    )


def updown(
    parts: Mapping[str, Tensor], weight: Tensor, strength: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """What the WebUI adds to weight and bias.

    Raises:
        LookupError: no network type takes the tensors, which in the WebUI fails the whole file.
    """
    network, kinds, _ = _load()
    owner = SimpleNamespace(te_multiplier=strength, unet_multiplier=strength, dyn_dim=None, name="test")
    names = {LORA_PARTS.get(name, name): tensor.clone() for name, tensor in parts.items()}
    weights = network.NetworkWeights("key", "diffusion_model_key", names, _owner(weight))
    for kind in kinds:
        module = kind.create_module(owner, weights)
        if module is not None:
            with torch.no_grad():
                return module.calc_updown(weight)
    raise LookupError(", ".join(parts))


def _owner(weight: Tensor) -> nn.Module:
    if weight.ndim == 1:
        module: nn.Module = nn.LayerNorm(weight.shape[0])
    elif weight.ndim == 2:
        module = nn.Linear(weight.shape[1], weight.shape[0])
    else:
        module = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], padding=weight.shape[2] // 2)
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module
