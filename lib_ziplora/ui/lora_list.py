"""The installed LoRAs as the tab lists them: read when asked to, their headers inspected bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from ..hosts import Host, InstalledLora
from ..library.catalog import CatalogEntry, entries_of
from .card import card, listing, pictures
from .thumbnail import SMALL_SIDE, thumbnail

MOST_PICTURES = 32
"""Pictures that one request may have made."""
PATIENCE = 1.0
"""Seconds that one request may spend on files whose headers are not known yet."""

Inspect = Callable[[Sequence[InstalledLora], Host, float], Sequence[CatalogEntry]]


class LoraList:
    """The installed LoRAs of a host, as they were when the list was read last.

    Args:
        host: that lists them.
        inspect: tells what their files are, within so many seconds.
    """

    def __init__(self, host: Host, inspect: Inspect = entries_of) -> None:
        self._host = host
        self._inspect = inspect
        self._loras: dict[str, InstalledLora] | None = None

    def names(self) -> list[str]:
        """The names of all LoRAs; no file is read."""
        return list(self._listed())

    def forget(self) -> None:
        """Have the list read anew when it is needed next."""
        self._loras = None

    def refresh(self) -> str:
        """Read the list anew, and inspect what is new on it, for a while; for the pickers."""
        self.forget()
        return self.inspect_more()

    def inspect_more(self) -> str:
        """Inspect what hasn't been inspected yet, for a while; for the pickers."""
        return listing(self._inspect(list(self._listed().values()), self._host, PATIENCE))

    def entry(self, name: str | None) -> CatalogEntry | None:
        """A LoRA by its name, with its file as it is now; None when it is not installed."""
        if name and name not in self._listed():
            self.forget()
        lora = self._listed().get(name or "")
        return self._inspect([lora], self._host, float("inf"))[0] if lora else None

    def card(self, name: str | None) -> str:
        """What stands under a picker."""
        entry = self.entry(name)
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
        entry = self.entry(name)
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
