"""What the tab shows of a LoRA: its line in a picker's list, and its card once it is picked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

from ..library.catalog import CatalogEntry
from ..plots import counted
from . import text

CHOOSE = "Choose a LoRA."
LIST_STATES = ("unusable", "usable", "pending")
"""What the script knows an entry's state by: its place here."""


def card(entry: CatalogEntry | None, chosen: str, picture: str = "") -> str:
    """A picked LoRA: picture, base, family, ranks, layers, size and activation text, or why it can't be used.

    Args:
        entry: of the LoRA; None when it is not installed.
        chosen: the name that was picked; "" when none was.
        picture: a URL of its preview picture, or "".
    """
    if not chosen:
        return text.facts(CHOOSE)
    if entry is None:
        gone = f"{chosen} is not installed any more. Refresh the list."
        return f'<div class="ziplora-facts ziplora-bad">{escape(gone)}</div>'
    image = f'<img src="{escape(picture)}" alt="">' if picture else ""
    refused = f"<p><b>Not usable:</b> <span>{escape(entry.reason)}</span></p>" if entry.reason else ""
    words = (
        f"<p><b>activation text:</b> <span>{escape(entry.activation)}</span></p>" if entry.activation else ""
    )
    words += f"<p>{escape(entry.remark)}</p>" if entry.remark else ""
    style = "ziplora-facts" if entry.usable else "ziplora-facts ziplora-bad"
    return (
        f'<div class="{style}" data-usable="{int(entry.usable)}">{image}'
        f'<div class="ziplora-told">{refused}<p class="ziplora-chips">{_chips(entry)}</p>{words}</div></div>'
    )


def _chips(entry: CatalogEntry) -> str:
    """Facts as (word, figure) pairs, each text of its own, so that the words can be translated."""
    facts = [(entry.base_name, ""), (entry.family_name, "")]
    if entry.ranks:
        facts.append(("rank" if len(entry.ranks) == 1 else "ranks", ranks(entry.ranks)))
    elif entry.rank:
        facts.append(("rank", str(entry.rank)))
    if entry.layers:
        facts.append(("", counted(entry.layers, "layer")))
    if entry.size:
        facts.append(("", f"{entry.size / 1e6:.1f} MB"))
    return "".join(
        f"<span><i>{escape(word)}</i> {escape(figure)}</span> " for word, figure in facts if word or figure
    )


def ranks(found: Sequence[int]) -> str:
    """Ranks in words: ``16``, ``4 and 8``, ``4 to 64``."""
    if len(found) > 2:
        return f"{min(found)} to {max(found)}"
    return " and ".join(map(str, found))


def note(entry: CatalogEntry) -> str:
    """What a picker's list says beside a LoRA's name."""
    if entry.pending:
        return ""
    if not entry.usable:
        if not entry.base:
            return "can't be read"
        return f"for {entry.base_name}" if entry.base != "sdxl" else f"{entry.family_name}, can't be merged"
    parts = ("merge" if entry.merged else entry.family_name, f"rank {entry.rank}" if entry.rank else "")
    return " · ".join(filter(None, parts))


def listing(entries: Sequence[CatalogEntry], known: bool = True) -> str:
    """The LoRAs that the pickers offer, for the page's script: usable ones first, merges after what they are made of.

    Args:
        entries: of every installed LoRA.
        known: the LoRA folders have been looked at.
    """
    ordered = sorted(entries, key=lambda entry: (not entry.usable, entry.merged))
    rows = [[entry.name, note(entry), _state(entry)] for entry in ordered]
    pending = sum(entry.pending for entry in entries)
    loras = escape(json.dumps(rows, ensure_ascii=False, separators=(",", ":")))
    return f'<div data-loras="{loras}" data-pending="{pending}" data-known="{int(known)}"></div>'


def pictures(found: Mapping[str, str]) -> str:
    """Name -> URL of a small picture, or "", for the page's script."""
    return f'<div data-pictures="{escape(json.dumps(found, ensure_ascii=False))}"></div>'


def _state(entry: CatalogEntry) -> int:
    state = "pending" if entry.pending else "usable" if entry.usable else "unusable"
    return LIST_STATES.index(state)
