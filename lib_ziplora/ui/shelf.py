"""What the tab knows of the installed LoRAs: listed when asked to, judged bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from ..hosts import Host, InstalledLora
from ..library.catalog import CatalogEntry
from .card import card, listing, pictures
from .thumbnail import SMALL_SIDE, thumbnail

MOST_PICTURES = 32
"""Pictures that one request may have made."""
PATIENCE = 1.0
"""Seconds that one request may spend on files that nobody has judged yet."""

Judged = Callable[[Sequence[InstalledLora], Host, float], Sequence[CatalogEntry]]


class Shelf:
    """The installed LoRAs of a host, as they were when the list was read last.

    Args:
        host: that lists them.
        judged: judges them by their files, within so many seconds.
    """

    def __init__(self, host: Host, judged: Judged) -> None:
        self._host = host
        self._judged = judged
        self._loras: dict[str, InstalledLora] | None = None

    def names(self) -> list[str]:
        """The names of all LoRAs; no file is read."""
        return list(self._listed())

    def forget(self) -> None:
        """Have the list read anew when it is needed next."""
        self._loras = None

    def refresh(self) -> str:
        """Read the list anew, and judge what is new on it, for a while; for the pickers."""
        self.forget()
        return self.judge_more()

    def judge_more(self) -> str:
        """Judge what hasn't been judged yet, for a while; for the pickers."""
        return listing(self._judged(list(self._listed().values()), self._host, PATIENCE))

    def entry(self, name: str) -> CatalogEntry | None:
        """A LoRA by its name, judged by its file as it is now; None when it is not installed."""
        if name not in self._listed():
            self.forget()
        lora = self._listed().get(name)
        return self._judged([lora], self._host, float("inf"))[0] if lora else None

    def card(self, name: str | None) -> str:
        """What stands under a picker."""
        entry = self.entry(name) if name else None
        return card(entry, name or "", thumbnail(entry.path) if entry else "")

    def pictures(self, names: str) -> str:
        """Small pictures of some LoRAs for the pickers' lists.

        Args:
            names: a list of them as JSON; only the first ``MOST_PICTURES`` count.
        """
        try:
            wanted = json.loads(names or "[]")
        except (ValueError, RecursionError):
            wanted = None
        listed = self._listed()
        known = [name for name in wanted if isinstance(name, str)] if isinstance(wanted, list) else []
        return pictures(
            {
                name: thumbnail(listed[name].path, SMALL_SIDE) if name in listed else ""
                for name in known[:MOST_PICTURES]
            }
        )

    def prompt(self, name: str | None) -> str:
        """The prompt that a LoRA's card or metadata suggests, or an empty string."""
        entry = self.entry(name) if name else None
        return entry.prompt if entry and entry.usable else ""

    def trigger(self, name: str | None) -> str:
        """A LoRA's activation text, or an empty string."""
        lora = self._listed().get(name or "")
        return str(lora.user_metadata.get("activation text") or "") if lora else ""

    def _listed(self) -> dict[str, InstalledLora]:
        listed = self._loras
        if listed is None:
            listed = self._loras = {lora.name: lora for lora in self._host.loras()}
        return listed
