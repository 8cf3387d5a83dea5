"""The header strings of a merged file: what loaders sort by, what people read, how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from ... import __version__
from ..layer import Lora, LoraLayer
from ..untrusted_json import load_json

OWN_PREFIX = "ziplora_"


def merged_metadata(
    name: str,
    layers: Mapping[str, LoraLayer],
    sources: Sequence[Lora] = (),
    recipe: Mapping[str, Any] | None = None,
    date: datetime | None = None,
) -> dict[str, str]:
    """Header strings of a merged SDXL LoRA.

    ``ss_base_model_version`` and ``modelspec.architecture`` make WebUI and Forge list it under
    SDXL; ``ss_output_name`` is the name itself, so that ``<lora:name:1>`` means this file.

    Args:
        name: the file's stem.
        layers: what is written; ranks and alphas that differ are called ``Dynamic``.
        sources: the LoRAs it was made of; their names, hashes and training tags are kept.
        recipe: how it was made; each item becomes ``ziplora_<key>``, JSON unless it is a string.
        date: of the merge; now by default.
    """
    moment = (date or datetime.now(timezone.utc)).replace(microsecond=0)
    result = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _one_or_dynamic([float(layer.rank) for layer in layers.values()]),
        "ss_network_alpha": _one_or_dynamic([layer.alpha for layer in layers.values()]),
        "ss_output_name": name,
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
        "modelspec.date": moment.isoformat(),
        f"{OWN_PREFIX}version": __version__,
    }
    if sources:
        result["modelspec.merged_from"] = ", ".join(source.name for source in sources)
        result[f"{OWN_PREFIX}sources"] = _json([{"name": s.name, "sha256": s.sha256} for s in sources])
    tags = _tag_frequency(sources)
    if tags:
        result["ss_tag_frequency"] = _json(tags)
    for key, value in (recipe or {}).items():
        result[OWN_PREFIX + key] = value if isinstance(value, str) else _json(value)
    return result


def read_recipe(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The ``ziplora_`` items of a header, without prefix, JSON decoded where it is JSON."""
    return {
        key[len(OWN_PREFIX) :]: _decoded(value)
        for key, value in metadata.items()
        if key.startswith(OWN_PREFIX)
    }


def _decoded(value: str) -> Any:
    try:
        return load_json(value)
    except ValueError:
        return value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _one_or_dynamic(values: Sequence[float]) -> str:
    distinct = set(values)
    return f"{distinct.pop():g}" if len(distinct) == 1 else "Dynamic"


def _tag_frequency(sources: Sequence[Lora]) -> dict[str, dict[str, int]]:
    """Training tags of all sources, one entry a source and dataset, as the WebUI's card editor shows them."""
    merged = {}
    for source in sources:
        datasets = _decoded(source.metadata.get("ss_tag_frequency", ""))
        for dataset, tags in datasets.items() if isinstance(datasets, dict) else ():
            if isinstance(tags, dict):
                merged[f"{source.name}: {dataset}"] = tags
    return merged
