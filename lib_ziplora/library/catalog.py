"""The installed LoRAs as front ends list them: base model, family, ranks, a prompt, usable or why not."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import LoraFileError
from ..hosts import Host, InstalledLora
from ..lora.formats.base_models import BASE_NAMES
from ..lora.formats.families import FAMILIES
from ..lora.io.sidecar import sidecar_path
from .header_cache import HeaderCache, LoraInfo, header_cache
from .json_store import data_folder
from .prompts import suggested_prompt


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
        ranks: the distinct ranks, ascending.
        family: ``lora``, another family, or several joined with ``+``; "" for an unreadable file.
        size: of the file, bytes.
        activation: what the user's card says to write into prompts, or "".
        pending: its file has not been read yet; what is said of it is a guess.
        merged: it is a merge, with its coefficients beside it.
        remark: which of several files of its name it is, as a sentence, or "".
    """

    name: str
    path: Path
    base: str
    rank: int
    layers: int
    prompt: str
    usable: bool
    reason: str
    ranks: tuple[int, ...] = ()
    family: str = ""
    size: int = 0
    activation: str = ""
    pending: bool = False
    merged: bool = False
    remark: str = ""

    @property
    def base_name(self) -> str:
        """What people call its base model; "" for an unreadable file."""
        return BASE_NAMES.get(self.base, self.base)

    @property
    def family_name(self) -> str:
        """What people call its family; "" for an unreadable file."""
        return " + ".join(FAMILIES[one].label if one in FAMILIES else one for one in self.family.split("+"))


def catalog(host: Host) -> list[CatalogEntry]:
    """Every LoRA that the host lists, in its order; unusable ones with the reason."""
    return entries_of(host.loras(), host)


def entries_of(loras: Sequence[InstalledLora], host: Host, patience: float = math.inf) -> list[CatalogEntry]:
    """LoRAs with what their files' headers say, in their order.

    Args:
        loras: that the host has listed.
        host: that has listed them.
        patience: seconds in which files may be read; those that are left are ``pending``.
    """
    cache = header_cache(data_folder(host))
    end = time.monotonic() + patience
    entries = [_entry(lora, cache, time.monotonic() < end) for lora in loras]
    cache.save()
    return entries


def prompt_for(host: Host, name: str) -> str:
    """A prompt for an installed LoRA (or a file) from its card or its training metadata, or ""."""
    path = host.resolve(name)
    found = header_cache(data_folder(host)).inspect(path)
    card = next((lora.user_metadata for lora in host.loras() if lora.path == path), {})
    return suggested_prompt(card, {}) or found.prompt


def _entry(lora: InstalledLora, cache: HeaderCache, may_read: bool) -> CatalogEntry:
    try:
        if lora.problem:
            raise LoraFileError(lora.problem)
        found = cache.inspect(lora.path) if may_read else cache.cached(lora.path)
        size = lora.path.stat().st_size
    except (LoraFileError, OSError) as error:
        return CatalogEntry(lora.name, lora.path, "", 0, 0, "", False, str(error))
    known = found or LoraInfo()
    return CatalogEntry(
        name=lora.name,
        path=lora.path,
        base=known.base,
        rank=max(known.ranks, default=0),
        layers=known.layers,
        prompt=suggested_prompt(lora.user_metadata, {}) or known.prompt,
        usable=not known.reason,
        reason=known.reason,
        ranks=known.ranks,
        family=known.family,
        size=size,
        activation=suggested_prompt({"activation text": lora.user_metadata.get("activation text")}, {}),
        pending=found is None,
        merged=sidecar_path(lora.path).is_file(),
        remark=lora.remark,
    )
