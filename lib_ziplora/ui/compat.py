"""The few places where gradio 3.41 (the WebUI's) and later ones differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gradio as gr


def _javascript_keyword() -> str:
    method = getattr(gr.events, "EventListenerMethod", None)
    call = vars(method).get("__call__") if method is not None else None
    return "_js" if call is not None and "_js" in inspect.signature(call).parameters else "js"


AT_ONCE = 8
JAVASCRIPT = _javascript_keyword()


def javascript(code: str) -> dict[str, str]:
    """The keyword argument that makes an event run ``code`` in the browser first."""
    return {JAVASCRIPT: code}


def quiet(**more: Any) -> dict[str, Any]:
    """Arguments of a small event: at once, without a spinner, not in the API's list."""
    return {"queue": False, "show_progress": "hidden", "api_name": False, **more}


def accepted(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Those of ``arguments`` that this gradio's ``function`` knows."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}


def queued(page: gr.Blocks) -> None:
    """Let the page's queue run several functions at once, and nobody skip it."""
    named = accepted(page.queue, default_concurrency_limit=AT_ONCE) or {"concurrency_count": AT_ONCE}
    page.queue(api_open=False, **named)
