"""The page of its own: who may use its server."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio")
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from lib_ziplora.ui.serve import OwnOriginOnly

EVIL = {"origin": "https://evil.example"}


def client(address: str, base: str) -> TestClient:
    def page(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("open")
        await socket.close()

    routes = [Route("/", page, methods=["GET", "POST"]), WebSocketRoute("/queue", echo)]
    return TestClient(
        Starlette(routes=routes, middleware=[Middleware(OwnOriginOnly, address=address)]), base_url=base
    )


@pytest.mark.parametrize("base", ["http://127.0.0.1:7860", "http://localhost:7860"])
def test_its_own_page_and_programs_may_use_it(base: str) -> None:
    server = client("127.0.0.1", base)
    for headers in ({}, {"origin": base}):
        assert server.get("/", headers=headers).text == server.post("/", headers=headers).text == "page"
        with server.websocket_connect("/queue", headers={**headers, "host": base[7:]}) as socket:
            assert socket.receive_text() == "open"


def test_pages_elsewhere_can_neither_ask_nor_connect() -> None:
    server = client("127.0.0.1", "http://127.0.0.1:7860")
    assert server.get("/", headers=EVIL).status_code == server.post("/", headers=EVIL).status_code == 403
    with (
        pytest.raises(WebSocketDisconnect),
        server.websocket_connect("/queue", headers={**EVIL, "host": "127.0.0.1:7860"}),
    ):
        pass


def test_a_name_that_was_pointed_at_this_machine_is_refused() -> None:
    rebound = {"origin": "http://evil.example:7860", "host": "evil.example:7860"}
    server = client("127.0.0.1", "http://127.0.0.1:7860")
    assert server.get("/", headers=rebound).status_code == 403
    with pytest.raises(WebSocketDisconnect), server.websocket_connect("/queue", headers=rebound):
        pass


def test_a_server_for_other_machines_goes_by_any_name() -> None:
    server = client("0.0.0.0", "http://studio.example:7860")
    assert server.get("/", headers={"origin": "http://studio.example:7860"}).text == "page"
    assert server.get("/", headers=EVIL).status_code == 403
