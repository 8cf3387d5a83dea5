"""What a user does on the pages of a real WebUI."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from .pages import SUBJECT, Tab
from .webui import STARTED, Webui

PICTURE_MS = 120_000
PROMPT = "a sks icon in szn style"
OTHER_LORA = f"{PROMPT} <lora:{SUBJECT}:1>"
BAR = "#ziplora_bar .ziplora-bar-text"
LONG = 1000
"""Updates that no test waits for."""


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
    words = re.compile(rf"^\s*{re.escape(name)}\s*$", re.IGNORECASE)  # Forge says Txt2img
    page.locator(tabs_of("tabs")).get_by_text(words).first.click()


def tabs_of(element: str) -> str:
    """The buttons of a group of tabs, in gradio 3 and 4."""
    return f"#{element} > .tab-nav button, #{element} > * > [role=tab]"


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


@contextmanager
def visit(page: Page, webui: Webui) -> Iterator[Page]:
    """The tab on a page; in the end nothing on it is under way, and the WebUI has told of no error."""
    open_page(page, webui)
    show_tab(page, "ZipLoRA")
    yield page
    settle(page)
    log = webui.log()
    assert "Error completing request" not in log, log[-4000:]
    assert not re.search(r'File ".*(lib_ziplora|gradio.routes)', log), log[-4000:]


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


def open_settings(page: Page, section: str) -> None:
    """Show a section of the settings page."""
    show_tab(page, "Settings")
    page.locator(tabs_of("settings")).get_by_text(section, exact=True).click()


def apply_settings(page: Page) -> set[str]:
    """Press Apply settings on a page where it was not pressed yet; the keys that the WebUI calls changed.

    The WebUI also counts those of its own settings that its file does not hold yet.
    """
    page.locator("#settings_submit").click()
    result = page.locator("#settings_result").last
    expect(result).to_contain_text("settings changed")
    return set(re.findall(r"\w+", result.inner_text().partition(":")[2]))


def merge(tab: Tab, output: str, updates: int = 3) -> None:
    """Merge the two LoRAs, and wait for the end."""
    show_tab(tab.page, "ZipLoRA")
    tab.prepare(output, updates)
    tab.press("generate")
    tab.outcome("done", f"{output}.safetensors")
    tab.idle()


def start_long(tab: Tab, output: str) -> None:
    """A merge that is in the middle of its updates."""
    show_tab(tab.page, "ZipLoRA")
    tab.prepare(output, LONG)
    tab.press("generate")
    updating(tab)


def updating(tab: Tab) -> None:
    """Wait until the bar shows that the coefficients are learnt."""
    tab.bar(re.compile(r"Update [2-9]"))
