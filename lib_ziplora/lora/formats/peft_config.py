"""PEFT's configurations, which diffusers keeps in the header and PEFT in a file beside the tensors.

Newer diffusers writes each component's configuration as JSON under one header key, flattened: ``unet.r``,
``unet.lora_alpha``, ``unet.alpha_pattern``, ``text_encoder.r`` and so on. PEFT's own ``save_pretrained`` writes one
component's, without a prefix, to ``adapter_config.json`` in the same folder. Their meaning is that of peft 0.18.1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..untrusted_json import load_json
from .keys import TensorName
from .patterns import check_patterns, matches

HEADER_KEY = "lora_adapter_metadata"
COMPONENTS = {"unet": "unet.", "te1": "text_encoder.", "te2": "text_encoder_2.", "te": "text_encoder."}
SIDECAR = "adapter_config.json"
SIDECAR_LIMIT = 1 << 20
PATTERNS = ("alpha_pattern", "rank_pattern")

# PEFT's types that can be read -> where their alpha stands.
ALPHAS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
DEFAULT = 8
"""PEFT's own alpha and rank, where a configuration leaves them out."""
# Ways to begin that leave the checkpoint's weights as they are.
HARMLESS_STARTS = frozenset({"gaussian", "eva", "orthogonal"})
# Ways to begin that took a part off the checkpoint's weights, which follows from those and the rank alone.
STARTS = frozenset({"pissa", "olora"})
_REPAIR = "Put the one there that PEFT wrote with it, or take it away"
_CONVERT = "Save it with PEFT's path_initial_model_for_weight_conversion, which makes an ordinary LoRA of it"
# Options that make of an adapter what no LoRA file holds -> why.
REFUSED_OPTIONS = {
    "layer_replication": "it was trained on a model with layers repeated (layer_replication)",
    "alora_invocation_tokens": "it acts from certain words on only (aLoRA)",
    "use_qalora": "it groups the inputs of each layer (QALoRA)",
}
ENCODER_2 = "CLIPTextModelWithProjection"


@dataclass(frozen=True)
class AdapterConfig:
    """One component's configuration; empty where there is none, ``broken`` where it is there and can't be read."""

    values: Mapping[str, Any]
    broken: str = ""

    @property
    def start(self) -> str:
        """How the adapter began where that has changed the checkpoint's weights (``init_lora_weights``), or ""."""
        start = self.values.get("init_lora_weights")
        return start.lower() if isinstance(start, str) and start.lower() not in HARMLESS_STARTS else ""

    @property
    def text_encoder_2(self) -> bool:
        """Whether it says that it is for the second text encoder."""
        mapping = self.values.get("auto_mapping")
        return isinstance(mapping, dict) and mapping.get("base_model_class") == ENCODER_2

    def scaling(self, module: str, family: str | None, rank: int | None) -> float | None:
        """The factor of a module's delta weight, or None where the configuration is silent.

        Args:
            module: its path in the model that PEFT wraps, with dots.
            family: of its tensors.
            rank: of its tensors; None in a family whose tensors don't tell.
        """
        if not self.values or family is None or family.upper() != self._type:
            return None
        alpha = self._of("alpha_pattern", module, ALPHAS[self._type])
        divisor = rank or self._of("rank_pattern", module, "r")
        if alpha is None or divisor is None or divisor <= 0:
            return None
        return float(alpha) / (math.sqrt(divisor) if self.values.get("use_rslora") is True else divisor)

    def problem(self, families: Collection[str], magnitudes: bool) -> str:
        """Why its adapter can't be merged, as half a sentence and what to do; "" when it can.

        Args:
            families: of the file's layers.
            magnitudes: whether the file has DoRA's.
        """
        if self.broken:
            return (
                f"its PEFT configuration, {self.broken}, can't be read, so its alpha is not known. {_REPAIR}"
            )
        if self._type not in ALPHAS:
            return f"it is an adapter of PEFT's type {self._type[:40]}. Choose a LoRA of another kind"
        if self.values and self._type.lower() not in families:
            return f"its PEFT configuration is for {self._type}, which the file is not. {_REPAIR}"
        wrong = next((name for name in (ALPHAS[self._type], *PATTERNS) if not self._numbers(name)), "")
        if wrong:
            return f"{wrong} in its PEFT configuration is {self.values[wrong]!r:.40} instead of a number. {_REPAIR}"
        start = self.start
        if start and start not in STARTS:
            return (
                f"it began as {start[:40]} (init_lora_weights), which took a part off the checkpoint's weights that "
                f"the file does not hold. {_CONVERT}"
            )
        for name, why in REFUSED_OPTIONS.items():
            if self.values.get(name):
                return f"{why}. Choose another LoRA"
        if self.values.get("use_dora") is True and not magnitudes:
            return "it is DoRA, but its file has no magnitudes. Save it again with PEFT"
        try:
            check_patterns(key for name in PATTERNS for key in self._patterns(name))
        except ValueError as error:
            return (
                f"its alpha_pattern or rank_pattern can't be used: {error}. Write the layers' names instead"
            )
        return ""

    def _numbers(self, name: str) -> bool:
        """Whether what an alpha, or every pattern of a kind, says is a number; patterns may be none."""
        given = self.values.get(name, {} if name in PATTERNS else DEFAULT)
        if name in PATTERNS:
            return given is None or (isinstance(given, dict) and all(map(_is_number, given.values())))
        return _is_number(given)

    @property
    def _type(self) -> str:
        return str(self.values.get("peft_type") or "LORA").rpartition(".")[2].upper()

    def _patterns(self, name: str) -> Mapping[str, Any]:
        patterns = self.values.get(name)
        return patterns if isinstance(patterns, dict) else {}

    def _of(self, patterns: str, module: str, default: str) -> float | None:
        """The value of the first pattern that fits a module, else the one for all; None where it is no number."""
        found = self._patterns(patterns)
        value = next(
            (value for key, value in found.items() if matches(key, module)), self.values.get(default, DEFAULT)
        )
        return value if _is_number(value) else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


NONE = AdapterConfig({})


class AdapterConfigs:
    """The configurations that belong to a file.

    Args:
        file: the LoRA; PEFT's configuration is looked for beside it.
        metadata: its header's strings.
    """

    def __init__(self, file: Path, metadata: Mapping[str, str]) -> None:
        header = _decoded(metadata.get(HEADER_KEY, "{}"), HEADER_KEY)
        self._header = {
            prefix: _component(header, prefix)
            for prefix in COMPONENTS.values()
            if header.values or header.broken
        }
        self._file = file.parent / SIDECAR
        self._beside: AdapterConfig | None = None

    @property
    def beside(self) -> AdapterConfig:
        """The one beside the file."""
        if self._beside is None:
            self._beside = _read_sidecar(self._file)
        return self._beside

    def of(self, name: TensorName) -> AdapterConfig:
        """The one of the component that a tensor belongs to."""
        if self._header:
            return self._header.get(COMPONENTS[name.section], NONE)
        return self.beside if name.dialect == "peft" else NONE

    def every(self, names: Collection[TensorName]) -> list[AdapterConfig]:
        """All that tensors of a file belong to."""
        sections = {(name.section, name.dialect == "peft"): name for name in names if name.module}
        return [self.of(name) for name in sections.values()]


def _component(header: AdapterConfig, prefix: str) -> AdapterConfig:
    own = {key[len(prefix) :]: value for key, value in header.values.items() if key.startswith(prefix)}
    return AdapterConfig(own, header.broken)


def _read_sidecar(path: Path) -> AdapterConfig:
    """PEFT's configuration of an adapter."""
    if not path.is_file():
        return NONE
    try:
        content = path.read_bytes() if path.stat().st_size <= SIDECAR_LIMIT else b""
        return _decoded(content.decode(json.detect_encoding(content)), SIDECAR)
    except (OSError, ValueError):
        return AdapterConfig({}, SIDECAR)


def _decoded(text: str, where: str) -> AdapterConfig:
    try:
        config = load_json(text)
    except ValueError:
        config = None
    return AdapterConfig(config) if isinstance(config, dict) else AdapterConfig({}, where)
