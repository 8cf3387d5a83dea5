"""The page of its own: who may use its server, and for what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from lib_ziplora.origins import ServedNames
from lib_ziplora.ui.guard import Guard

HERE = "http://127.0.0.1:7860"
EVIL = {"origin": "https://evil.example"}
STRANGERS: list[dict[str, str]] = [
    EVIL,
    {"origin": "null"},
    {"origin": "http://127.0.0.1:7861", "sec-fetch-site": "same-site"},
    {"origin": "https://evil.example", "x-forwarded-host": "evil.example"},
    {"referer": "https://evil.example/page"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
    {"host": "evil.example:7860", "origin": "http://evil.example:7860", "sec-fetch-site": "same-origin"},
    {"host": "evil.example:7860"},
]
FUNCTIONS = [
    *(("GET", path) for path in ("/config", "/info", "/queue/status", "/gradio_api/queue/data")),
    ("POST", "/gradio_api/run/predict"),
    ("GET", "/gradio_api/heartbeat/x1"),
    *(("POST", path) for path in ("/run/predict", "/run/predict/", "/reset", "/queue/join")),
]

NOT_NEEDED = """
    /file=README.md /file=/etc/passwd /file=http://10.0.0.1/ /file=https:/x /file= /file/x /gradio_api/file=README.md
    /proxy=http://10.0.0.1/ /gradio_api/proxy=http://10.0.0.1/ /upload /gradio_api/upload /token /login /user /app_id
    /startup-events /stream/a/1/2 /robots.txt /run/predict2 /run/merge /api/merge /api/predict /docs //config /v1/other
    /gradio_api/runs /gradio_api/run-history/buckets /gradio_api/vibe-edit /gradio_api/component_server /monitoring
    /gradio_api/dev/reload /gradio_api/call/merge /gradio_api/heartbeat/a/b /custom_component/a/b/c/d /manifest.json
"""


class Everything:
    """An application that answers whatever it is asked, grants every page everything, and remembers it."""

    def __init__(self, folder: Path, *, address: str = "127.0.0.1", names: tuple[str, ...] = ()) -> None:
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        app = Starlette(
            routes=[
                WebSocketRoute("/{path:path}", self._socket),
                Route("/{path:path}", self._answer, methods=["GET", "POST", "PUT", "DELETE"]),
            ]
        )
        app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
        programs = [Route("/v1/jobs", self._answer, methods=["GET", "POST"])]
        served = ServedNames(address, names)
        self.guard = Guard(app, names=served, folder=folder, port=7860, programs=programs)

    def client(self, base: str = HERE, *, token: bool = False) -> TestClient:
        client = TestClient(self.guard, base_url=base)
        if token:
            assert client.get("/").status_code == 200 and "ziplora_7860" in client.cookies
            self.asked.clear()
        return client

    async def _answer(self, request: Request) -> Any:
        self.asked.append((request.method, str(request.url).removeprefix(str(request.base_url))))
        self.headers.append(dict(request.headers))
        if request.url.path == "/":
            return HTMLResponse('<script src="https://cdn.example/x.js"></script>page')
        return JSONResponse("answer")

    async def _socket(self, socket: WebSocket) -> None:
        self.asked.append(("websocket", socket.url.path))
        await socket.accept()
        await socket.send_text("open")
        await socket.close()


@pytest.fixture
def server(tmp_path: Path) -> Everything:
    return Everything(tmp_path)


def connects(client: TestClient, path: str, headers: dict[str, str]) -> bool:
    try:
        with client.websocket_connect(path, headers={"host": "127.0.0.1:7860", **headers}) as socket:
            return bool(socket.receive_text() == "open")
    except WebSocketDisconnect:
        return False


@pytest.mark.parametrize("base", [HERE, "http://localhost:7860"])
def test_the_page_may_use_what_it_needs(server: Everything, base: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"picture")
    client = server.client(base, token=True)
    for own in ({"origin": base, "sec-fetch-site": "same-origin"}, {"referer": f"{base}/"}):
        for method, path in (*FUNCTIONS, ("GET", f"/file={picture}"), ("GET", "/theme.css"), ("HEAD", "/")):
            assert client.request(method, path, headers=own).status_code == 200, path
    cookie = {"cookie": f"ziplora_7860={client.cookies['ziplora_7860']}"}
    assert connects(client, "/queue/join", {"host": base[7:], "origin": base, **cookie})


def test_without_its_token_nothing_runs_and_nothing_is_told(server: Everything, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"picture")
    client = server.client()
    for token in ("", "ziplora_7860=", "ziplora_7860=x", "ziplora_7860=é", "other=1; ziplora_7861=x", "=;[]"):
        headers = {"cookie": token.encode("latin-1")} if token else {}
        for method, path in (*FUNCTIONS, ("GET", f"/file={tmp_path / 'picture.png'}")):
            assert client.request(method, path, headers=headers).status_code == 403
    assert not connects(client, "/queue/join", {})
    assert not server.asked


@pytest.mark.parametrize("headers", STRANGERS)
def test_pages_elsewhere_get_nothing_even_with_the_token(server: Everything, headers: dict[str, str]) -> None:
    client = server.client(token=True)
    everything = [
        *FUNCTIONS,
        ("GET", "/theme.css"),
        ("GET", "/static/x"),
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
    ]
    for method, path in (*everything, ("POST", "/"), *(("OPTIONS", path) for _, path in everything)):
        asks = {"access-control-request-method": "POST", **headers} if method == "OPTIONS" else headers
        answer = client.request(method, path, headers=asks)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    cookie = {"cookie": f"ziplora_7860={client.cookies['ziplora_7860']}"}
    assert not connects(client, "/queue/join", {**headers, **cookie})
    assert not server.asked


@pytest.mark.parametrize("path", NOT_NEEDED.split())
def test_what_the_page_does_not_need_is_not_there(server: Everything, path: str) -> None:
    client = server.client(token=True)
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
        assert client.request(method, f"{HERE}{path}").status_code == 404
    assert not connects(client, path, {"cookie": f"ziplora_7860={client.cookies['ziplora_7860']}"})
    assert not server.asked


def test_files_come_out_of_the_pages_folder_alone(tmp_path: Path) -> None:
    folder, secret = tmp_path / "shown", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("secret")
    (folder / "link").symlink_to(secret)
    (folder / "ring").symlink_to(folder / "ring")
    (tmp_path / "shown2").write_text("secret")
    server = Everything(folder)
    client = server.client(token=True)
    names = [
        folder / "../secret",
        folder / "link",
        folder / "ring",
        tmp_path / "shown2",
        folder,
        folder / "none",
    ]
    for name in (*names, f"{folder}/%00", f"{folder}/{'x' * 5000}", f"{folder}/%2e%2e/secret"):
        assert client.get(f"/file={name}").status_code == 404
    assert not server.asked


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_reading_is_all_that_can_be_done_to_what_is_read(server: Everything, method: str) -> None:
    client = server.client(token=True)
    for path in ("/", "/theme.css", "/config", "/queue/data"):
        assert client.request(method, path).status_code in (404, 405)
    assert not server.asked


def test_a_link_elsewhere_opens_the_page_and_nothing_more(server: Everything) -> None:
    client = server.client()
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    for headers in (link, {"referer": "https://evil.example/"}):
        assert client.get("/?x=y", headers=headers).status_code == 200
        assert client.get("/v1/jobs", headers=headers).status_code == 403
        assert client.post("/", headers=headers).status_code == 403
    for changed in ({"sec-fetch-dest": "iframe"}, {"sec-fetch-mode": "no-cors"}, EVIL):
        assert client.get("/", headers={**link, **changed}).status_code == 403
    assert server.asked == [("GET", "")] * 2


def test_programs_need_no_token(server: Everything) -> None:
    client = server.client()
    assert client.get("/v1/jobs").status_code == client.post("/v1/jobs").status_code == 200
    assert client.options("/v1/jobs").status_code == 405


def test_what_goes_out_with_the_page(server: Everything) -> None:
    page = server.client().get("/", headers={"accept-encoding": "br"})
    assert page.text == "page" and "accept-encoding" not in server.headers[-1]
    assert re.fullmatch(
        r"ziplora_7860=[\w-]{40,}; Path=/; HttpOnly; SameSite=Strict", page.headers["set-cookie"]
    )
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "connect-src 'self' ws://127.0.0.1:7860 wss://127.0.0.1:7860 data: blob:;" in policy
    assert page.headers["cross-origin-resource-policy"] == "same-origin"
    assert server.client().get("/").headers["set-cookie"] == page.headers["set-cookie"]


def test_a_proxy_is_believed_once_it_is_named(tmp_path: Path) -> None:
    server = Everything(tmp_path, names=("art.example",))
    client = server.client(token=True)
    proxied = {"origin": "https://art.example", "x-forwarded-host": "art.example"}
    assert client.get("/config", headers=proxied).status_code == 200
    assert server.headers[-1]["host"] == "art.example"
    for headers in ({**proxied, **EVIL}, {**proxied, "x-forwarded-host": "evil.example"}):
        assert client.get("/config", headers=headers).status_code == 403
    client.get("/config", headers={"x-forwarded-host": "evil.example"})
    assert server.headers[-1]["host"] == "127.0.0.1:7860" and "x-forwarded-host" not in server.headers[-1]


def test_a_server_for_other_machines_goes_by_its_numbers_and_the_names_it_was_given(tmp_path: Path) -> None:
    server = Everything(tmp_path, address="0.0.0.0", names=("studio.example",))
    for base in ("http://studio.example:7860", "http://10.0.0.1:7860"):
        assert server.client(base).get("/", headers={"origin": base}).text == "page"
        assert server.client(base).get("/v1/jobs", headers=EVIL).status_code == 403
    refused = server.client("http://box:7860").get("/")
    assert refused.status_code == 403 and "--allow-host" in refused.json()["detail"]


def test_gradios_queue_asks_by_a_path_that_nobody_else_knows(server: Everything) -> None:
    client = server.client("http://anything")
    assert client.post(f"{server.guard.inner}/api/predict").status_code == 200
    assert server.asked == [("POST", "api/predict")]
    assert client.post(f"{server.guard.inner}x/api/predict").status_code == 403
    assert len(server.guard.inner) > 40 and server.guard.inner[1:] != server.guard.token
