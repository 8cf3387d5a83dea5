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
TAGS = "ss_tag_frequency"
TAGS_LIMIT = 1_000_000
"""Characters of training tags that a merged file keeps; some files have 50 million, and no loader needs them."""


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
        result[TAGS] = _json(tags)
    for key, value in (recipe or {}).items():
        result[OWN_PREFIX + key] = value if isinstance(value, str) else _json(value)
    return result


def renamed(metadata: Mapping[str, str], name: str, sidecar: str) -> dict[str, str]:
    """The strings of a merge's header that hold its name, with another; ``sidecar`` is its coefficients' new file."""
    note = read_recipe(metadata).get("coefficients")
    named = {"ss_output_name": name, "modelspec.title": name}
    return {**named, f"{OWN_PREFIX}coefficients": _json({**note, "file": sidecar})} if note else named


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


def tags_are_shortened(sources: Sequence[Lora]) -> bool:
    """Whether the sources have more training tags than a merged file keeps."""
    return sum(len(source.metadata.get(TAGS, "")) for source in sources) > TAGS_LIMIT


def _tag_frequency(sources: Sequence[Lora]) -> dict[str, dict[str, Any]]:
    """Training tags of all sources, one entry a source and dataset, as the WebUI's card editor shows them.

    Of more than ``TAGS_LIMIT``, the most frequent.
    """
    merged: dict[str, dict[str, Any]] = {}
    for source in sources:
        datasets = _decoded(source.metadata.get(TAGS, ""))
        for dataset, tags in datasets.items() if isinstance(datasets, dict) else ():
            if isinstance(tags, dict):
                merged[f"{source.name}: {dataset}"] = tags
    if not tags_are_shortened(sources):
        return merged
    every = [(count, dataset, tag) for dataset, tags in merged.items() for tag, count in tags.items()]
    every.sort(key=lambda entry: entry[0] if isinstance(entry[0], int) else 0, reverse=True)
    kept: dict[str, dict[str, Any]] = {}
    room = TAGS_LIMIT
    for count, dataset, tag in every:
        room -= len(_json({tag: count})) + (0 if dataset in kept else len(_json(dataset)))
        if room < 0:
            break
        kept.setdefault(dataset, {})[tag] = count
    return kept
