"""The tab served over MiniXL by its own command, and a page in headless Chromium."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MINIXL = ROOT / "benchmarks" / "minixl"
START_SECONDS = 120
EXPECT_MS = 20_000
"""How long the page may take for what takes a moment on a machine that has nothing else to do."""
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Server:
    url: str
    loras: Path

    def files(self) -> set[str]:
        return {path.name for path in self.loras.iterdir()}


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
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    loras = tmp_path_factory.mktemp("loras")
    shutil.copytree(MINIXL / "loras", loras, dirs_exist_ok=True)
    log = tmp_path_factory.mktemp("log") / "serve.log"
    url = f"http://127.0.0.1:{free_port()}/"
    port = url.rstrip("/").rpartition(":")[2]
    command = [sys.executable, "-m", "lib_ziplora", "serve", "--port", port, "--device", "cpu"]
    command += ["--checkpoint", str(MINIXL / "model"), "--lora-dir", str(loras)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until_up(url, process, log)
        yield Server(url, loras)
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(START_SECONDS * 4):
        if process.poll() is not None:
            break
        try:
            direct.open(url, timeout=5).close()
        except OSError:
            time.sleep(0.25)
        else:
            return
    pytest.fail(f"serve did not come up:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}")


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[object]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=EXPECT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()
