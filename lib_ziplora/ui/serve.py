"""The tab as a page of its own, on this machine, without a request to any other."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Collection
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI

from ..jobs.service import Service
from ..origins import ServedNames
from . import tab
from .compat import accepted, queued
from .guard import Guard

FIRST_PORT = 7860
PORTS = 100
ENDING_SECONDS = 2


def serve(
    service: Service,
    *,
    address: str = "127.0.0.1",
    port: int | None = None,
    names: Collection[str] = (),
    open_browser: bool = False,
    on_ready: Callable[[str], None] | None = None,
    extend: Callable[[FastAPI], object] | None = None,
    merges_folder: str = "",
) -> None:
    """Serve the tab until the process is interrupted.

    Args:
        service: the jobs, usually of a ``StandaloneHost`` that takes names only (``strict``).
        address: the network interface; the default can be reached from this machine alone.
        port: None takes the first free one from 7860 on.
        names: what the server is called besides, in a network or by a proxy in front of it.
        open_browser: open the page in the default browser.
        on_ready: told the page's address.
        extend: told the FastAPI application, to put routes for programs on it.
        merges_folder: as ``folder`` of ``tab.build``.

    Raises:
        OSError: the port is taken.
    """
    with (
        tempfile.TemporaryDirectory(prefix="ziplora-serve-", ignore_cleanup_errors=True) as folder,
        _listener(address, port) as listener,
    ):
        os.environ["GRADIO_TEMP_DIR"] = folder
        _skip_proxies_for(address)
        page = tab.build(service, folder=merges_folder)
        queued(page)
        page.show_api = False
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url="/openapi.json" if extend else None)
        if extend is not None:
            extend(app)
        taken = listener.getsockname()[1]
        url = f"http://{f'[{address}]' if ':' in address else address}:{taken}/"
        guard = Guard(
            app, names=ServedNames(address, names), folder=Path(folder), port=taken, programs=[*app.routes]
        )
        _mount(app, page, f"{url.rstrip('/')}{guard.inner}/")
        _run(
            uvicorn.Server(uvicorn.Config(guard, log_level="warning")), listener, url, open_browser, on_ready
        )


def _mount(app: FastAPI, page: gr.Blocks, own_url: str) -> None:
    wanted = accepted(
        gr.mount_gradio_app,
        gradio_api_url=own_url,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
    )
    gr.mount_gradio_app(app, page, path="/", **wanted, **tab.looks(gr.mount_gradio_app))


def _listener(address: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    tried = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else (port,)
    for one in tried:
        try:
            return socket.create_server((address, one), family=family)
        except OSError:
            if one == tried[-1]:
                raise
    raise AssertionError("there is a port to try")


def _run(
    server: uvicorn.Server,
    listener: socket.socket,
    url: str,
    open_browser: bool,
    on_ready: Callable[[str], None] | None,
) -> None:
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True, name="ziplora-serve")
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            thread.join(0.05)
        if server.started and on_ready is not None:
            on_ready(url)
        if server.started and open_browser:
            webbrowser.open(url)
        while thread.is_alive():
            thread.join(0.5)
    except KeyboardInterrupt:
        server.should_exit = True
        thread.join(ENDING_SECONDS)


def _skip_proxies_for(address: str) -> None:
    """gradio's queue asks its own server; a proxy would not find it."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost", address]))
