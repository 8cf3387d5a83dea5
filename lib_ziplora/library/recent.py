"""Recent merges, so that one of them can be begun again."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import LoraInput, MergeRequest
from ..errors import ZipLoraError
from .json_store import read_json, write_json

log = logging.getLogger(__name__)

REMEMBERED_MERGES = 8


@dataclass(frozen=True)
class RecentMerge:
    """What was merged: the LoRAs with their prompts and weights, and the prompt for all of them."""

    loras: tuple[LoraInput, ...]
    combined_prompt: str = ""

    @property
    def key(self) -> str:
        """Tells it from every merge of other LoRAs; prompts and weights don't count."""
        names = json.dumps([[lora.lora, lora.role] for lora in self.loras])
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    def missing(self, installed: Sequence[str]) -> tuple[str, ...]:
        """The names of its LoRAs that are not among those installed."""
        there = set(installed)
        return tuple(lora.lora for lora in self.loras if lora.lora not in there)


class RecentMerges:
    """The last merges, the newest first, each set of LoRAs once. Any thread may ask.

    The file is read anew each time: other programs that merge into the same folder write it too.

    Args:
        folder: where they are kept, or None to forget them at the end of the program.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = folder / "recent.json" if folder else None
        self._lock = threading.Lock()
        self._merges: list[RecentMerge] = []

    def merges(self) -> list[RecentMerge]:
        """All of them."""
        return (_read(self._file) if self._file else []) or list(self._merges)

    def find(self, key: str) -> RecentMerge | None:
        """The one of a key, if it is still remembered."""
        return next((merge for merge in self.merges() if merge.key == key), None)

    def note(self, request: MergeRequest) -> None:
        """Remember a merge that has just been made."""
        made = RecentMerge(request.loras, request.settings.combined_prompt)
        with self._lock:
            others = [merge for merge in self.merges() if merge.key != made.key]
            self._merges = [made, *others][:REMEMBERED_MERGES]
            if self._file:
                write_json(self._file, [asdict(merge) for merge in self._merges])


def _read(file: Path) -> list[RecentMerge]:
    content = read_json(file)
    merges = []
    for row in content[:REMEMBERED_MERGES] if isinstance(content, list) else ():
        try:
            merges.append(_merge(row))
        except (KeyError, TypeError, ValueError, AttributeError, ZipLoraError) as error:
            log.warning("A merge in %s is damaged (%s) and is left out.", file, error)
    return merges


def _merge(row: Mapping[str, Any]) -> RecentMerge:
    loras = tuple(
        LoraInput(
            str(one["lora"]),
            str(one["prompt"]),
            float(one["weight"]),
            blocks=str(one.get("blocks", "")),
            role=one["role"],
        )
        for one in row["loras"]
    )
    if len(loras) < 2:
        raise ValueError("fewer than two LoRAs")
    return RecentMerge(loras, str(row["combined_prompt"]))
