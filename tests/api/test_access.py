"""Who may use the API."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from starlette.testclient import TestClient

from lib_ziplora import api, cli
from lib_ziplora.hosts import ApiAccess
from lib_ziplora.hosts._webui.api import access, credentials, password_check
from lib_ziplora.jobs.service import Service
from lib_ziplora.origins import AllowedOrigins, ServedNames, foreign_page, is_local

from .support import V1, LockedHost, body


def every_route(client: TestClient) -> list[Callable[..., Any]]:
    return [
        *(
            lambda path=path, **more: client.get(f"{V1}/{path}", **more)
            for path in ("jobs", "jobs/x", "loras", "settings")
        ),
        *(
            lambda path=path, **more: client.post(f"{V1}/{path}", json=body(), **more)
            for path in ("merge", "check", "explain", "inspect", "scan", "jobs/x/interrupt", "jobs/x/finish")
        ),
    ]


class WebHost(LockedHost):
    """A host with a web application of its own."""

    access: ApiAccess | None = None

    def api_access(self) -> ApiAccess | None:
        return self.access


def test_the_webui_gives_access_as_it_does_to_its_own(host: LockedHost) -> None:
    web = WebHost(host.folder)
    app = FastAPI()
    for closed in (web, host):
        api.add_webui_routes(app, Service(closed))
    client = TestClient(app)
    assert {ask().status_code for ask in every_route(client)} == {404}
    check = Depends(password_check(credentials("ann:secret,bob:pä:ss")))
    web.access = ApiAccess((check,), AllowedOrigins(("https://studio.example",)))
    api.add_webui_routes(app, Service(web))
    client = TestClient(app)
    for ask in every_route(client):
        refused = ask()
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic")
        for wrong in (("ann", "wrong"), ("eve", ""), ("eve", "secret"), ("ann", ""), ("", "")):
            assert ask(auth=wrong).status_code == 401
        assert ask(auth=("ann", "secret")).status_code not in (401, 403)
        foreign = {"origin": "https://evil.example"}
        assert ask(auth=("ann", "secret"), headers=foreign).status_code == 403
        assert ask(auth=("ann", "secret"), headers={"origin": "https://studio.example"}).status_code != 403


def test_the_webuis_flags_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_flags(**flags: Any) -> ApiAccess | None:
        options = types.SimpleNamespace(**{"api": False, "api_auth": None, **flags})
        package, shared = types.ModuleType("modules"), types.ModuleType("modules.shared")
        package.shared, shared.cmd_opts = shared, options  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "modules", package)
        monkeypatch.setitem(sys.modules, "modules.shared", shared)
        return access()

    assert with_flags() is None and with_flags(api_auth="ann:secret") is None
    for flags in ({"api": True}, {"nowebui": True}):
        opened, closed = with_flags(**flags), with_flags(**flags, api_auth="ann:secret")
        assert (
            opened is not None and not opened.dependencies and "https://studio.example" not in opened.origins
        )
        assert closed is not None and len(closed.dependencies) == 1
    named = with_flags(api=True, cors_allow_origins="https://a.example,https://studio.example")
    matched = with_flags(api=True, cors_allow_origins_regex=r"https://.*\.example")
    for found in (named, matched):
        assert found is not None and "https://studio.example" in found.origins and "null" not in found.origins


@pytest.mark.parametrize("flag", [(), ("--api",)])
def test_serve_answers_the_api_when_asked_to(flag: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    page = pytest.importorskip("lib_ziplora.ui.serve")
    app = FastAPI()

    def serve(_host: Any, *, address: str, extend: Callable[[FastAPI], None] | None, **_more: Any) -> None:
        assert address == "127.0.0.1"
        if extend is not None:
            extend(app)

    monkeypatch.setattr(page, "serve", serve)
    assert cli.main(["serve", *flag]) == 0
    assert TestClient(app).get(f"{V1}/settings").status_code == (200 if flag else 404)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://testserver.evil.example", "http://localhost"]
)
def test_pages_elsewhere_are_refused_everywhere(client: TestClient, host: LockedHost, origin: str) -> None:
    for ask in every_route(client):
        answer = ask(headers={"origin": origin})
        assert answer.status_code == 403 and origin in answer.json()["detail"]
    assert client.get(f"{V1}/jobs").json() == []


def test_the_servers_own_page_may_ask(client: TestClient) -> None:
    own = {"origin": "http://testserver", "sec-fetch-site": "same-origin"}
    assert client.get(f"{V1}/settings", headers=own).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://art.example", "x-forwarded-host": "art.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"referer": "https://art.example/page"},
    ],
)
def test_no_header_that_a_page_can_set_makes_it_the_servers_own(
    client: TestClient, headers: dict[str, str]
) -> None:
    for ask in every_route(client):
        assert ask(headers=headers).status_code == 403


def test_origins() -> None:
    nobody = AllowedOrigins()
    assert foreign_page({"host": "a:1"}, nobody) == ""
    assert foreign_page({"host": "A:1", "origin": "http://a:1"}, nobody) == ""
    assert foreign_page({"host": "a:1", "origin": "http://a:2"}, nobody) == "http://a:2"
    assert foreign_page({"host": "a:1", "referer": "http://a:1/x?y"}, nobody) == ""
    assert foreign_page({"host": "a:1", "referer": "http://a:2/a:1"}, nobody) == "http://a:2"
    assert foreign_page({"host": "a", "referer": "http://[a"}, nobody)
    assert foreign_page({"host": "", "origin": "null"}, nobody) == "null"
    assert foreign_page({"host": "a", "origin": "x"}, AllowedOrigins(("*",))) == ""
    assert foreign_page({"host": "a", "sec-fetch-site": "cross-site"}, AllowedOrigins(("*",))) == ""
    assert foreign_page({"host": "a:1", "origin": "http://a:1", "sec-fetch-site": "same-site"}, nobody)
    pattern = AllowedOrigins(pattern=r"https://.*\.studio\.example")
    assert foreign_page({"host": "a", "origin": "https://b.studio.example"}, pattern) == ""
    assert foreign_page({"host": "a", "origin": "https://b.studio.example.evil"}, pattern)
    assert is_local("127.0.0.1") and is_local("::1") and is_local("localhost") and not is_local("0.0.0.0")


def test_the_names_of_a_server() -> None:
    alone, anywhere = ServedNames(), ServedNames("0.0.0.0", ["Studio.example"])
    for host in ("127.0.0.1:7860", "127.0.0.2", "[::1]:7860", "localhost", "LOCALHOST:1"):
        assert host in alone and host in anywhere
    for host in (
        "",
        "evil.example:7860",
        "[::1",
        "10.0.0.1",
        "localhost.evil.example",
        "a@127.0.0.1",
        "127.0.0.1/",
    ):
        assert host not in alone
    assert "studio.example:7860" in anywhere and "10.0.0.1:7860" in anywhere
    assert "evil.example" not in anywhere and "studio.example.evil" not in anywhere
    assert anywhere.named("studio.example:443") and not anywhere.named("10.0.0.1") and not anywhere.named("")
    assert "10.0.0.1:80" in ServedNames("10.0.0.1") and "10.0.0.2" not in ServedNames("10.0.0.1")
    assert "box:7860" in ServedNames("Box")
