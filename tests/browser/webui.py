"""A real WebUI as a process of its own, with its own settings and LoRA folder, and its txt2img tab.

``ZIPLORA_WEBUI`` is the WebUI's folder, in whose ``extensions`` this repository is linked, and
``ZIPLORA_WEBUI_PYTHON`` the Python that it runs under. Its configured checkpoint is loaded on the
CPU. ``ZIPLORA_WEBUI_ARGS`` adds arguments. Nothing is written into the WebUI's folder.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from .conftest import MINIXL, free_port

ROOT = Path(os.environ.get("ZIPLORA_WEBUI", "")).absolute()
PYTHON = Path(os.environ.get("ZIPLORA_WEBUI_PYTHON", "")).absolute()
PRESENT = (ROOT / "webui.py").is_file() and PYTHON.is_file()
REASON = "needs ZIPLORA_WEBUI=<folder of a WebUI> and ZIPLORA_WEBUI_PYTHON=<its Python>"
START_SECONDS = 300
PICTURE_MS = 120_000
STARTED = "Startup time"

ARGUMENTS = (
    "--skip-prepare-environment --skip-torch-cuda-test --skip-python-version-check --skip-version-check "
    "--use-cpu all --no-half --no-half-vae --precision full --no-download-sd-model --do-not-download-clip "
    "--disable-console-progressbars --no-prompt-history --loglevel DEBUG"
)
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "SD_WEBUI_RESTARTING": "1",  # opens no browser
    "no_proxy": "127.0.0.1,localhost",
    "NO_PROXY": "127.0.0.1,localhost",
}
SETTINGS = {
    "auto_launch_browser": "Disable",
    "live_previews_enable": False,
    "lora_show_all": False,
    "samples_format": "png",
    "samples_save": True,
    "save_to_dirs": False,
    "grid_save": False,
    "clean_temp_dir_at_start": False,
}
DEFAULTS = {
    "txt2img/Width/value": 128,
    "txt2img/Height/value": 128,
    "txt2img/CFG Scale/value": 5.0,
    "customscript/sampler.py/txt2img/Sampling method/value": "Euler",
    "customscript/sampler.py/txt2img/Sampling steps/value": 8,
    "customscript/seed.py/txt2img/Seed/value": 42,
}
"""What the txt2img tab shows at first: small, quick and the same each time."""


@dataclass(frozen=True)
class Webui:
    """A running WebUI."""

    url: str
    loras: Path
    pictures: Path
    log_file: Path
    process: subprocess.Popen[bytes]

    def files(self) -> set[str]:
        return {path.name for path in self.loras.iterdir()}

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def wait_for_start(self, times: int) -> None:
        """Wait until it has started that often. No request is sent: one that comes too early kills it."""
        for _ in range(START_SECONDS * 4):
            if self.log().count(STARTED) >= times:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.25)
        raise AssertionError(f"The WebUI did not come up:\n{self.log()[-4000:]}")

    def wait_for_log(self, pattern: str, seconds: float = 60) -> None:
        for _ in range(int(seconds * 10)):
            if re.search(pattern, self.log()):
                return
            time.sleep(0.1)
        raise AssertionError(f"No {pattern!r} in the WebUI's log:\n{self.log()[-4000:]}")


@contextmanager
def running(folder: Path) -> Iterator[Webui]:
    """The WebUI with copies of MiniXL's LoRAs, stopped in the end; all it writes goes into ``folder``."""
    loras, pictures = folder / "Lora", folder / "pictures"
    shutil.copytree(MINIXL / "loras", loras)
    pictures.mkdir()
    port = free_port()
    own = {"outdir_txt2img_samples": str(pictures), "temp_dir": str(folder)}
    options = ["--port", str(port), "--lora-dir", str(loras)]
    options += ["--ui-settings-file", _json(folder / "config.json", {**_settings(), **SETTINGS, **own})]
    options += ["--ui-config-file", _json(folder / "ui-config.json", DEFAULTS)]
    options += shlex.split(os.environ.get("ZIPLORA_WEBUI_ARGS", ""))
    log = folder / "webui.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(PYTHON), "launch.py", *ARGUMENTS.split(), *options],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, "SD_WEBUI_CACHE_DIR": str(folder / "cache")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    webui = Webui(f"http://127.0.0.1:{port}/", loras, pictures, log, process)
    try:
        webui.wait_for_start(1)
        webui.wait_for_log("Model loaded in", START_SECONDS)
        yield webui
    finally:
        _stop(process)


def _settings() -> dict[str, object]:
    """The WebUI's own settings: the checkpoint is the one that it has configured."""
    file = ROOT / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _json(path: Path, content: dict[str, object]) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sign)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue


class Txt2img:
    """The WebUI's txt2img tab."""

    def __init__(self, page: Page, webui: Webui) -> None:
        self.page, self.webui = page, webui

    def open(self) -> None:
        show_tab(self.page, "txt2img")

    @property
    def prompt(self) -> Locator:
        return self.page.locator("#txt2img_prompt textarea")

    def start(self, prompt: str | None = None) -> set[str]:
        """Press Generate; gives the pictures that there were before."""
        self.open()
        if prompt is not None:
            self.prompt.fill(prompt)
        before = self._files()
        self.page.locator("#txt2img_generate").click()
        return before

    def wait(self, before: set[str]) -> np.ndarray:
        """The pixels of the picture that was drawn since, once the gallery shows it."""
        for _ in range(PICTURE_MS // 100):
            if new := self._files() - before:
                break
            self.page.wait_for_timeout(100)
        else:
            raise AssertionError(f"No picture was drawn:\n{self.webui.log()[-4000:]}")
        (name,) = new
        expect(self.page.locator(f"#txt2img_gallery img[src*='{name}']").first).to_be_attached()
        expect(self.page.locator("#txt2img_interrupt")).to_be_hidden()
        return np.asarray(Image.open(self.webui.pictures / name).convert("RGB"))

    def draw(self, prompt: str | None = None) -> np.ndarray:
        """The picture of a prompt, or of the one that is there; always with the same seed."""
        return self.wait(self.start(prompt))

    def remarks(self) -> str:
        """What the WebUI says below the last picture."""
        return self.page.locator("#html_log_txt2img").first.inner_text()

    def cards(self) -> list[str]:
        """The names on the cards of the LoRA pane."""
        self.open()
        pane = self.page.locator("#txt2img_extra_tabs")
        pane.get_by_role("tab", name="Lora", exact=True).or_(
            pane.get_by_text("Lora", exact=True)
        ).first.click()
        cards = self.page.locator("#txt2img_lora_cards .card")
        expect(cards.first).to_be_visible()
        return [card.get_attribute("data-name") or "" for card in cards.all() if card.is_visible()]

    def _files(self) -> set[str]:
        return {path.name for path in self.webui.pictures.glob("*.png")}


def show_tab(page: Page, name: str) -> None:
    """Click one of the WebUI's tabs."""
    page.locator("#tabs > .tab-nav button").get_by_text(name, exact=True).click()


COUNT_SOCKETS = """
window.openSockets = 0;
window.WebSocket = class extends window.WebSocket {
    constructor(...parts) {
        super(...parts);
        window.openSockets++;
        this.addEventListener("close", () => window.openSockets--);
    }
};
"""


def settle(page: Page) -> None:
    """Wait until no event of the page is under way.

    gradio 3.41.2 never ends the task of an event whose page is closed while it waits in gradio's
    queue, and Reload UI waits for all tasks: a page that is left too early makes it hang.
    """
    page.wait_for_timeout(700)
    page.wait_for_function("window.openSockets === 0", timeout=PICTURE_MS)


def open_page(page: Page, webui: Webui) -> None:
    """Open the WebUI in a new page, or load it anew, until everything on it has settled."""
    if page.url == "about:blank":
        page.add_init_script(COUNT_SOCKETS)
    page.goto(webui.url)
    wait_until_ready(page)


def wait_until_ready(page: Page) -> None:
    """Both the WebUI's scripts and the tab's have found their buttons."""
    page.locator("#txt2img_prompt textarea").wait_for(timeout=60_000)
    page.wait_for_function("document.querySelector('#ziplora_skip')?.style.display")
    settle(page)


def reload_ui(page: Page, webui: Webui) -> None:
    """Press Reload UI at the foot of the page, and wait until the page has come back.

    The page asks again and again whether the WebUI is up; such a request can come while the
    WebUI builds its routes and kill it, so the page's questions are held back meanwhile.
    """
    times = webui.log().count(STARTED)
    page.route("**/internal/ping", lambda route: route.abort())
    page.get_by_text("Reload UI", exact=True).last.click()
    webui.wait_for_start(times + 1)
    with page.expect_navigation():
        page.unroute("**/internal/ping")
    wait_until_ready(page)
