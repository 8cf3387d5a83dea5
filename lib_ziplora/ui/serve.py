"""The tab as a page of its own, on this machine, without a request to any other."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..hosts import Host
from ..origins import AllowedOrigins, foreign_page, is_local, rebound_name
from . import tab
from .compat import accepted

REMOTE_ELEMENTS = re.compile(
    rb"<script\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>\s*</script>|<link\b[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>",
    re.IGNORECASE,
)
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: wss: data: blob:; "
    "object-src 'none'; base-uri 'self'"
)


class OwnOriginOnly:
    """ASGI middleware: pages lose their scripts and links from other servers and may load none,
    and pages of other servers can't use this one.

    gradio's page names a font server and a script of a content network; neither is needed. Its
    server answers every page's requests and accepts every page's web sockets.

    Args:
        app: the application behind it.
        address: the name or number that the server listens on.
    """

    def __init__(self, app: ASGIApp, address: str = "127.0.0.1") -> None:
        self.app = app
        self.address = address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            rebound = is_local(self.address) and rebound_name(headers)
            if rebound or foreign_page(headers, AllowedOrigins()):
                await _refuse(scope, receive, send)
                return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        body = bytearray()

        async def filtered(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_html(message):
                start = message
            elif start is None:
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    await _send_page(start, REMOTE_ELEMENTS.sub(b"", bytes(body)), send)

        await self.app(scope, receive, filtered)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    refusal = JSONResponse({"detail": "Pages of other servers may not use this one."}, status_code=403)
    await refusal(scope, receive, send)


def _is_html(message: Message) -> bool:
    return MutableHeaders(raw=message["headers"]).get("content-type", "").startswith("text/html")


async def _send_page(start: Message, page: bytes, send: Send) -> None:
    headers = MutableHeaders(raw=start["headers"])
    headers["content-length"] = str(len(page))
    headers["content-security-policy"] = POLICY
    await send({**start, "headers": headers.raw})
    await send({"type": "http.response.body", "body": page})


def serve(
    host: Host,
    *,
    address: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
    on_ready: Callable[[str], None] | None = None,
    extend: Callable[[Any], None] | None = None,
) -> None:
    """Serve the tab until the process is interrupted.

    Args:
        host: usually a ``StandaloneHost`` that takes names only (``strict``).
        address: the network interface; the default can be reached from this machine alone.
        port: None takes the first free one from 7860 on.
        open_browser: open the page in the default browser.
        on_ready: told the page's address; without it gradio prints its own lines.
        extend: told the FastAPI application, to put more routes on it.

    Raises:
        OSError: the port is taken.
    """
    _skip_proxies_for(address)
    page = tab.build(host)
    page.queue(**accepted(page.queue, concurrency_count=8, default_concurrency_limit=8, api_open=False))
    app, url, _ = page.launch(
        server_name=address,
        server_port=port,
        inbrowser=open_browser,
        share=False,
        quiet=on_ready is not None,
        prevent_thread_lock=True,
        show_api=False,
        app_kwargs={"middleware": [Middleware(OwnOriginOnly, address=address)]},
        **accepted(gr.Blocks.launch, ssr_mode=False, enable_monitoring=False),
    )
    if extend is not None:
        extend(app)
    if on_ready is not None:
        on_ready(url)
    page.block_thread()


def _skip_proxies_for(address: str) -> None:
    """gradio asks its own page before it starts; a proxy would not find it."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost", address]))
