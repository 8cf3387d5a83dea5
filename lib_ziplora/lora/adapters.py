"""Alphas that diffusers keeps in the header instead of in tensors.

Newer diffusers writes each component's PEFT configuration as JSON under one header key,
flattened: ``unet.r``, ``unet.lora_alpha``, ``unet.alpha_pattern``, ``unet.use_rslora``,
``text_encoder.r`` and so on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from .keys import TensorName

HEADER_KEY = "lora_adapter_metadata"
COMPONENTS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2", "te": "text_encoder"}


def adapter_config(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """The flattened PEFT configuration of a header, empty when it has none."""
    try:
        config = json.loads(metadata.get(HEADER_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def adapter_alpha(config: Mapping[str, Any], name: TensorName, rank: int) -> float | None:
    """Alpha of a layer, such that scaling = alpha / rank, or None when the configuration is silent."""
    component = COMPONENTS[name.section]
    alpha = config.get(f"{component}.lora_alpha")
    patterns = config.get(f"{component}.alpha_pattern")
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if f"_{name.path}".endswith(f"_{pattern.replace('.', '_')}"):
            alpha = value
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        return None
    return float(alpha) * (math.sqrt(rank) if config.get(f"{component}.use_rslora") is True else 1.0)
