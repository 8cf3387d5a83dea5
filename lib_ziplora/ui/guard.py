"""What ``serve`` answers: the requests of its own page and, with the API, of programs."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..origins import AllowedOrigins, ServedNames, foreign_page

READ = ("GET", "HEAD")
PAGE = "/"
INNER = "/gradio_api"
"""What newer releases of gradio put before the routes below."""
FILE = "/file="
LOOKS = re.compile(r"/(?:theme\.css|favicon\.ico|(?:static|assets|svelte)/.+)")
LIFE = re.compile(r"/heartbeat/\w+")
FUNCTIONS = {
    "/config": READ,
    "/info": READ,
    "/queue/status": READ,
    "/queue/data": READ,
    "/queue/join": ("websocket", "POST"),
    "/run/predict": ("POST",),
    "/run/predict/": ("POST",),
    "/reset": ("POST",),
    "/reset/": ("POST",),
}
"""The routes of gradio's that run something or tell something, and how the page asks them."""
FORWARDED = (b"x-forwarded-host", b"x-forwarded-server", b"forwarded")

REMOTE_ELEMENTS = re.compile(
    rb"<script\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>\s*</script>|<link\b[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>",
    re.IGNORECASE,
)
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self' ws://{host} wss://{host} data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
EVERYWHERE = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Refusal(NamedTuple):
    """Why a request isn't answered."""

    status: int
    sentence: str


class Guard:
    """ASGI middleware, outside everything else, that lets only the server's own page and programs in.

    gradio's server answers every page's requests, runs functions for anybody, hands out files and
    fetches addresses. Here a request must go to a name of this server, not come from a page elsewhere,
    and ask for what the page needs; what runs or tells anything also needs the token that came, as a
    cookie, with the page. Pages lose their scripts and links from other servers and may load none.

    Args:
        app: the application behind it.
        names: the names that the server goes by.
        folder: where gradio keeps the files that it shows; no others are given away.
        port: the server's; the cookie is called after it.
        programs: routes that programs may use without the page's token.
    """

    def __init__(
        self, app: ASGIApp, *, names: ServedNames, folder: Path, port: int, programs: Sequence[BaseRoute] = ()
    ) -> None:
        self.app = app
        self.names = names
        self.folder = folder.resolve()
        self.programs = programs
        self.cookie = f"ziplora_{port}"
        self.token = secrets.token_urlsafe(32)
        self.inner = f"/{secrets.token_urlsafe(32)}"
        """A path that nobody else knows, under which gradio's queue asks its own server."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if scope["path"].startswith(f"{self.inner}/"):
            path = scope["path"].removeprefix(self.inner)
            await self.app({**scope, "path": path, "raw_path": path.encode()}, receive, send)
            return
        scope = self._believed(scope)
        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, self._closed(scope, send))

    def _believed(self, scope: Scope) -> Scope:
        """The request by the name that the browser sees, which a proxy forwards if the user has named it."""
        headers = Headers(scope=scope)
        forwarded = headers.get("x-forwarded-host", "")
        raw = [(name, value) for name, value in scope["headers"] if name not in FORWARDED]
        if self.names.named(forwarded):
            raw = [(name, value) for name, value in raw if name != b"host"]
            raw.append((b"host", forwarded.encode("latin-1")))
        if scope["path"] == PAGE:  # what a link elsewhere says after the ? is nothing to the server
            raw = [(name, value) for name, value in raw if name != b"accept-encoding"]
            return {**scope, "headers": raw, "query_string": b""}
        return {**scope, "headers": raw}

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        host, path = headers.get("host", ""), scope["path"]
        method = scope.get("method", "websocket")
        if host not in self.names:
            return Refusal(
                403, f"This server isn't called {host!r:.80}. If it is, start it with --allow-host."
            )
        if foreign_page(headers, AllowedOrigins()) and not _is_link(method, path, headers):
            return Refusal(403, "Pages of other servers may not use this one.")
        if any(route.matches(scope)[0] is not Match.NONE for route in self.programs):
            return Refusal(405, "Pages of other servers may not ask.") if method == "OPTIONS" else None
        if method in READ and (path == PAGE or LOOKS.fullmatch(path)):
            return None
        path = path.removeprefix(INNER)
        shown = path.startswith(FILE) and self._is_shown(path.removeprefix(FILE))
        methods = READ if shown or LIFE.fullmatch(path) else FUNCTIONS.get(path)
        if methods is None:
            return Refusal(404, "The page needs nothing at this address.")
        if method not in methods:
            return Refusal(405, f"The page doesn't ask this with {method:.20}.")
        if not self._has_token(headers):
            return Refusal(403, "Only the server's own page may do that. Reload the page.")
        return None

    def _is_shown(self, name: str) -> bool:
        try:
            file = Path(name).resolve()
            return Path(name).is_absolute() and file.is_relative_to(self.folder) and file.is_file()
        except (OSError, ValueError, RuntimeError):  # too long; a null byte; a ring of links
            return False

    def _has_token(self, headers: Headers) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return cookie is not None and secrets.compare_digest(cookie.value.encode(), self.token.encode())

    def _closed(self, scope: Scope, send: Send) -> Send:
        """``send`` for an answer that no page elsewhere can read, frame or open."""
        start: Message | None = None
        body = bytearray()

        async def closed(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message["headers"]))
                for name in {name for name in headers if name.startswith("access-control-")}:
                    del headers[name]
                headers.update(EVERYWHERE)
                message = {**message, "headers": headers.raw}
                if scope["path"] == PAGE and headers.get("content-type", "").startswith("text/html"):
                    start = message
                    return
            if start is None:
                await send(message)
                return
            body.extend(message.get("body", b""))
            if not message.get("more_body", False):
                await self._send_page(start, REMOTE_ELEMENTS.sub(b"", bytes(body)), scope, send)

        return closed

    async def _send_page(self, start: Message, page: bytes, scope: Scope, send: Send) -> None:
        headers = MutableHeaders(raw=start["headers"])
        headers["content-length"] = str(len(page))
        headers["content-security-policy"] = POLICY.format(host=Headers(scope=scope).get("host"))
        headers["cache-control"] = "no-store"
        headers.append("set-cookie", f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict")
        await send({**start, "headers": headers.raw})
        await send({"type": "http.response.body", "body": page})


def _is_link(method: str, path: str, headers: Headers) -> bool:
    """Whether somebody follows a link of another page to this one, in a tab of its own."""
    opened = headers.get("sec-fetch-mode", "navigate"), headers.get("sec-fetch-dest", "document")
    return method in READ and path == PAGE and opened == ("navigate", "document") and "origin" not in headers


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    answer = JSONResponse({"detail": refusal.sentence}, refusal.status, EVERYWHERE)
    await answer(scope, receive, send)
