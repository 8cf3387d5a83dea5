"""A page of another site, in a real browser, against a running ``serve``: it can read nothing and do nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from . import serving
from .conftest import ELSEWHERE
from .serving import Server

pytestmark = pytest.mark.browser
ATTACK = """async ([url, ping]) => {
    const got = {};
    const forged = {"X-Forwarded-Host": location.host};
    const json = {...forged, "Content-Type": "application/json"};
    const merge = JSON.stringify({output: "stolen", overwrite: true, settings: {steps: 1},
        subject: {lora: "minixl_subject_rocket"}, style: {lora: "minixl_style_streamline-cyber-color"}});
    const call = JSON.stringify({fn_index: 1, data: [], session_hash: "x"});
    const files = new FormData();
    files.append("files", new Blob(["x"]), "x.txt");
    const reads = ["", "config", "info", "theme.css", "ziplora/v1/loras", "ziplora/v1/jobs", "openapi.json",
                   "file=README.md", "file=" + ping];
    const writes = [["ziplora/v1/merge", merge], ["run/predict", call], ["api/predict", call], ["reset", call],
                    ["upload", files], ["", "x"]];
    const tried = async (name, promise) => { try { got[name] = await promise; } catch (error) { got[name] = 0; } };
    for (const path of reads) {
        await tried("read " + path, fetch(url + path).then(answer => answer.status));
        await tried("forged " + path, fetch(url + path, {headers: forged}).then(answer => answer.status));
        await tried("opaque " + path, fetch(url + path, {mode: "no-cors", credentials: "include"}).then(() => 0));
    }
    for (const [path, body] of writes) {
        const headers = typeof body === "string" ? json : forged;
        await tried("write " + path, fetch(url + path, {method: "POST", headers, body}).then(a => a.status));
        const blind = {method: "POST", mode: "no-cors", credentials: "include", body, referrerPolicy: "no-referrer"};
        await tried("blind " + path, fetch(url + path, blind).then(() => 0));
    }
    const loads = (tag, attributes) => new Promise(done => {
        const element = Object.assign(document.createElement(tag), attributes);
        element.onload = () => done(tag === "iframe" ? 0 : 200);
        element.onerror = () => done(0);
        document.body.append(element);
        setTimeout(() => done(0), 3000);
    });
    for (const path of ["file=README.md", "file=" + ping, "proxy=" + ping, "static/img/logo.svg"])
        got["img " + path] = await loads("img", {src: url + path, referrerPolicy: "no-referrer"});
    got.script = await loads("script", {src: url + "ziplora/v1/loras"});
    got.link = await loads("link", {rel: "stylesheet", href: url + "theme.css"});
    got.frame = await loads("iframe", {src: url, name: "frame"});
    for (const [path, body] of writes) {
        const form = Object.assign(document.createElement("form"),
            {action: url + path, method: "post", target: "frame", enctype: "text/plain"});
        form.append(Object.assign(document.createElement("input"), {name: String(body)}));
        document.body.append(form);
        form.submit();
        await new Promise(done => setTimeout(done, 200));
    }
    got.socket = await new Promise(done => {
        const socket = new WebSocket(url.replace("http", "ws") + "queue/join");
        socket.onopen = () => done(200);
        socket.onerror = () => done(0);
    });
    return got;
}"""


class Handler(BaseHTTPRequestHandler):
    """Another site: an empty page, and a count of who asked for ``/ping``."""

    def __init__(self, pings: list[str], *arguments: Any) -> None:
        self.pings = pings
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if self.path == "/ping":
            self.pings.append(self.headers.get("User-Agent", ""))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>elsewhere</title><body></body>")

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def pings() -> list[str]:
    return []


@pytest.fixture(scope="module")
def elsewhere(pings: list[str]) -> Iterator[int]:
    """The port of another site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, pings)) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield site.server_port
        site.shutdown()


@pytest.fixture(scope="module", params=[(), ("--api",)], ids=["page", "api"])
def served(
    request: pytest.FixtureRequest, chromium: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with serving.running(tmp_path_factory.mktemp("strangers"), *request.param) as server:
        yield server


@pytest.fixture
def visitor(browser: Browser, served: Server) -> Iterator[Page]:
    """A browser in which the server's own page is open too, so that it has the page's token."""
    context = browser.new_context()
    own = context.new_page()
    own.goto(served.url)
    own.locator("#ziplora_subject input").wait_for()
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("name", [ELSEWHERE, "localhost", "127.0.0.1"])
def test_it_can_do_nothing(
    visitor: Page, served: Server, elsewhere: int, pings: list[str], name: str
) -> None:
    before, statuses = served.files(), answers_to(visitor, served.url)
    visitor.goto(f"http://{name}:{elsewhere}/")
    got = visitor.evaluate(ATTACK, [served.url, f"http://127.0.0.1:{elsewhere}/ping"])
    visitor.wait_for_timeout(1500)
    assert not {what: status for what, status in got.items() if status}
    assert len(statuses) > 40 and set(statuses) <= {403, 404, 405}, statuses
    assert served.files() == before and not pings


def answers_to(page: Page, url: str) -> list[int]:
    """The status of every answer below an address to a page, also of preflights and what it may not read."""
    asked: set[str] = set()
    statuses: list[int] = []
    wire = page.context.new_cdp_session(page)
    wire.on(
        "Network.requestWillBeSent",
        lambda sent: asked.add(sent["requestId"]) if sent["request"]["url"].startswith(url) else None,
    )
    wire.on(
        "Network.responseReceivedExtraInfo",
        lambda answer: statuses.append(answer["statusCode"]) if answer["requestId"] in asked else None,
    )
    wire.send("Network.enable")
    return statuses


def test_a_name_that_leads_here_is_another_site(visitor: Page, served: Server) -> None:
    answer = visitor.goto(served.url.replace("127.0.0.1", ELSEWHERE))
    assert answer is not None and answer.status == 403 and "--allow-host" in visitor.content()


def test_its_links_open_the_page(visitor: Page, served: Server, elsewhere: int) -> None:
    visitor.goto(f"http://{ELSEWHERE}:{elsewhere}/")
    visitor.evaluate("url => { location.href = url; }", served.url)
    visitor.locator("#ziplora_subject input").wait_for()


def test_the_servers_own_page_gets_what_is_refused_elsewhere(visitor: Page, served: Server) -> None:
    visitor.goto(served.url)
    got = visitor.evaluate(ATTACK, [served.url, "http://127.0.0.1:1/ping"])
    for what in ("read ", "read config", "forged config", "link", "img static/img/logo.svg"):
        assert got[what] == 200, what
    for what in ("read file=README.md", "img file=README.md", "img proxy=http://127.0.0.1:1/ping", "frame"):
        assert got[what] != 200, what
