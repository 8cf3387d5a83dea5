"""The LoRAs that a front end offers, judged by their tensors, and their prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import LoraFileError
from ..hosts import Host, InstalledLora
from ..lora.header import LoraHeader, inspect_header, unsupported_reason


@dataclass(frozen=True)
class CatalogEntry:
    """One installed LoRA as a picker shows it.

    Attributes:
        name: as in ``<lora:name:1>``.
        path: the file.
        base: ``sdxl``, ``sd1``, ``flux``, ..., ``unknown``; "" for an unreadable file.
        rank: the highest rank.
        layers: low-rank layers in all.
        prompt: a prompt to start from, or "".
        usable: it can be merged.
        reason: why not, as a sentence; "" when usable.
    """

    name: str
    path: Path
    base: str
    rank: int
    layers: int
    prompt: str
    usable: bool
    reason: str


def catalog(host: Host) -> list[CatalogEntry]:
    """Every LoRA that the host lists, in its order; unusable ones with the reason."""
    return [_entry(lora) for lora in host.loras()]


def prompt_for(host: Host, name: str) -> str:
    """A prompt for an installed LoRA (or a file) from its card or its training metadata, or ""."""
    path = host.resolve(name)
    card: Mapping[str, Any] = next((lora.user_metadata for lora in host.loras() if lora.path == path), {})
    return _prompt(card, _header(path).metadata)


def _entry(lora: InstalledLora) -> CatalogEntry:
    try:
        header = _header(lora.path)
    except LoraFileError as error:
        return CatalogEntry(lora.name, lora.path, "", 0, 0, "", False, str(error))
    reason = unsupported_reason(header) or ("" if header.layers else f"{lora.name} has no LoRA layers.")
    return CatalogEntry(
        name=lora.name,
        path=lora.path,
        base=header.base,
        rank=header.rank,
        layers=header.layers,
        prompt=_prompt(lora.user_metadata, header.metadata),
        usable=not reason,
        reason=reason,
    )


def _header(path: Path) -> LoraHeader:
    """The file's header; read again only when the file has changed."""
    try:
        stat = path.stat()
    except OSError as error:
        raise LoraFileError(f"{path.name} can't be read ({error.strerror}). Refresh the list.") from error
    return _cached_header(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _cached_header(path: Path, modified: int, size: int) -> LoraHeader:
    return inspect_header(path)


def _prompt(card: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Activation text, else the trainer's trigger phrase, its most frequent tag, its output name."""
    for text in (card.get("activation text"), metadata.get("modelspec.trigger_phrase"), _top_tag(metadata)):
        if isinstance(text, str) and text.strip():
            return text.strip()
    return metadata.get("ss_output_name", "").replace("_", " ").strip()


def _top_tag(metadata: Mapping[str, str]) -> str:
    """The tag that most training captions have (kohya: {"folder": {"tag": count}})."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: dict[str, int] = {}
        for tags in folders.values():
            for tag, count in tags.items():
                counts[tag] = counts.get(tag, 0) + int(count)
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return ""
    return max(counts, key=lambda tag: counts[tag], default="")
