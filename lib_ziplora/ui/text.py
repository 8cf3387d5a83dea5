"""Pieces of HTML that the tab is made of: boxes, tables, lists.

Names and metadata of LoRA files are written by strangers; every string that reaches a page
goes through ``html.escape`` where its HTML is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape


def duration(seconds: float) -> str:
    """Seconds in words: ``40 s``, ``3 min``, ``1 h 20 min`` (with no-break spaces)."""
    minutes = round(seconds / 60)
    if seconds < 90:
        words = f"{max(1, round(seconds))} s"
    else:
        words = f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
    return words.replace(" ", "\u00a0")


def error(message: str) -> str:
    """A red box with the sentences of an error."""
    return f'<div class="ziplora-box ziplora-error" role="alert" data-outcome="error">{escape(message)}</div>'


def unexpected(problem: Exception) -> str:
    """A red box for an exception that nobody foresaw; its traceback is in the log."""
    return error(
        f"An unexpected error occurred ({type(problem).__name__}). Nothing was written. "
        "The console shows the details; please report them."
    )


def notice(message: str, outcome: str = "notice") -> str:
    """A neutral box."""
    return f'<div class="ziplora-box" role="status" data-outcome="{escape(outcome)}">{escape(message)}</div>'


def gone(message: str, name: str, now: str = "") -> str:
    """A neutral box about a merge that is gone, or has another name now; the page's script reads both names."""
    names = f'data-gone="{escape(name)}" data-now="{escape(now)}"'
    return f'<div class="ziplora-box" role="status" {names}>{escape(message)}</div>'


def facts(words: str) -> str:
    """A line in small letters below a picker."""
    return f'<div class="ziplora-facts">{escape(words)}</div>'


def table(rows: Iterable[tuple[str, str]], explained: Mapping[str, str] | None = None) -> str:
    """Names and values; what a name means shows when the pointer rests on it."""
    titles = {name: f' title="{escape(words)}"' for name, words in (explained or {}).items()}
    cells = "".join(
        f"<tr{titles.get(name, '')}><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def listed(sentences: Iterable[str], style: str) -> str:
    """Sentences as a list of a style; nothing when there is none."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{style}">{items}</ul>' if items else ""
