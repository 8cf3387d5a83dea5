"""Alphas that diffusers and PEFT keep beside the tensors: in the header, or in a file of their own.

Newer diffusers writes each component's PEFT configuration as JSON under one header key,
flattened: ``unet.r``, ``unet.lora_alpha``, ``unet.alpha_pattern``, ``unet.use_rslora``,
``text_encoder.r`` and so on. PEFT's own ``save_pretrained`` writes one component's, without
a prefix, to ``adapter_config.json`` in the same folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..untrusted_json import load_json
from .keys import TensorName

HEADER_KEY = "lora_adapter_metadata"
COMPONENTS = {"unet": "unet.", "te1": "text_encoder.", "te2": "text_encoder_2.", "te": "text_encoder."}
SIDECAR = "adapter_config.json"
SIDECAR_LIMIT = 1 << 20


class AdapterAlphas:
    """The alphas of a file's layers that no tensor of theirs says.

    Args:
        file: the LoRA; PEFT's configuration is looked for beside it.
        metadata: its header's strings.
    """

    def __init__(self, file: Path, metadata: Mapping[str, str]) -> None:
        self._header = _decoded(metadata.get(HEADER_KEY, "{}"))
        self._folder = file.parent
        self._beside: Mapping[str, Any] | None = None

    def add_to(self, parts: dict[str, Tensor], down: TensorName | None) -> None:
        """Give a module's tensors an alpha where they have none and the configuration has.

        Args:
            parts: by part.
            down: the name of its ``down``, None where it has none.
        """
        if down is None or parts.keys() & {"alpha", "scale"} or not parts["down"].ndim:
            return
        config, component = self._header, COMPONENTS[down.section]
        if not config and down.dialect == "peft":
            config, component = self._sidecar(), ""
        alpha = _alpha(config, component, down.path, parts["down"].shape[0])
        if alpha is not None:
            parts["alpha"] = torch.tensor(alpha, dtype=torch.float64)

    def _sidecar(self) -> Mapping[str, Any]:
        if self._beside is None:
            self._beside = _read_sidecar(self._folder / SIDECAR)
        return self._beside


def _alpha(config: Mapping[str, Any], component: str, path: str, rank: int) -> float | None:
    """Alpha of a layer, such that scaling = alpha / rank, or None when the configuration is silent."""
    alpha = config.get(f"{component}lora_alpha")
    patterns = config.get(f"{component}alpha_pattern")
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        wanted = pattern.removeprefix("^").replace(".", "_")
        if f"_{path}".endswith(f"_{wanted}"):
            alpha = value
            break
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        return None
    return float(alpha) * (math.sqrt(rank) if config.get(f"{component}use_rslora") is True else 1.0)


def _read_sidecar(path: Path) -> Mapping[str, Any]:
    """PEFT's configuration of a LoRA; empty when there is none, or none of this kind and of a sane size."""
    try:
        if path.stat().st_size > SIDECAR_LIMIT:
            return {}
        config = _decoded(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if config.get("peft_type") == "LORA" else {}


def _decoded(text: str) -> Mapping[str, Any]:
    try:
        config = load_json(text)
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}
