"""The tab in headless Chromium: served over MiniXL by its own command, and in a real WebUI.

``page`` and ``tab`` show the served tab; a module about the WebUI has a ``page`` of its own.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from . import serving
from . import webui as real
from .pages import Tab
from .serving import Server
from .webui import Webui
from .webui_pages import Txt2img

EXPECT_MS = 90_000
"""How long the page may take for what takes a moment: a machine that does other things too is slow."""
ELSEWHERE = "evil.test"
"""The name of another site, which leads to this machine all the same."""
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
]
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def unavailable(reason: str) -> None:
    """Skip, but fail where a browser is demanded."""
    if os.environ.get("CI_REQUIRE_BROWSER") == "1":
        pytest.fail(f"CI_REQUIRE_BROWSER=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> str:
    path = next((found for name in CHROMIUM_NAMES if (found := shutil.which(name))), None)
    if path is None:
        unavailable("there is no chromium on PATH; install it to run the browser tests")
    return str(path)


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    expect.set_options(timeout=EXPECT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving.running(tmp_path_factory.mktemp("serve")) as server:
        yield server


@pytest.fixture(scope="session")
def webui(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webui]:
    with real.running(tmp_path_factory.mktemp("webui")) as webui:
        yield webui


@pytest.fixture
def requests() -> list[str]:
    """Every address that the page has asked for."""
    return []


@pytest.fixture
def blank_page(browser: Browser, requests: list[str]) -> Iterator[Page]:
    """A page that reaches nothing but this machine, and on which no script may fail."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
    page = context.new_page()
    page.set_default_timeout(EXPECT_MS)
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    context.close()
    assert not problems


@pytest.fixture
def page(blank_page: Page, server: Server) -> Page:
    blank_page.goto(server.url)
    blank_page.locator("#ziplora_subject input").wait_for()
    Tab(blank_page).idle()
    return blank_page


@pytest.fixture
def tab(page: Page) -> Tab:
    return Tab(page)


@pytest.fixture
def txt2img(page: Page, webui: Webui) -> Txt2img:
    return Txt2img(page, webui)


@pytest.fixture
def shoot(page: Page) -> Callable[[str], None]:
    """Take a picture of the page for people, if ``ZIPLORA_SCREENSHOTS`` names a folder."""
    folder = os.environ.get("ZIPLORA_SCREENSHOTS", "")

    def shoot(name: str) -> None:
        if folder:
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    return shoot
