"""Compare clicked through: from a merge to the sheet, after a merge by itself, interrupt, the preview."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, expect

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.pipeline.merge import run

from . import serving
from .pages import STYLE, SUBJECT, Tab
from .serving import Server

pytestmark = pytest.mark.browser

MERGED = "ready to compare"
PICTURES = 4


@pytest.fixture(scope="module")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a merge in its folder."""
    with serving.running(tmp_path_factory.mktemp("compare")) as server:
        loras = LoraInput(SUBJECT, "a sks icon"), LoraInput(STYLE, "a bell icon in szn style", role="style")
        request = MergeRequest(loras, MERGED, settings=MergeSettings(method="direct"))
        run(request, StandaloneHost(None, [server.loras]))
        yield server


def open_panel(tab: Tab, steps: int) -> None:
    tab.page.locator("#ziplora_comparison").get_by_text("Compare", exact=True).first.click()
    tab.page.locator("#ziplora_compare_how").get_by_text("How the pictures are drawn").click()
    tab.set_number("compare_steps", steps)
    for side in ("width", "height"):
        tab.set_number(f"compare_{side}", 64)


def choose(tab: Tab) -> None:
    box = tab.page.locator("#ziplora_compare_source input")
    box.click()
    box.fill(MERGED)
    tab.page.locator("ul.options li").filter(has_text=MERGED).first.click()
    expect(tab.text("compare_prompts")).to_have_value(
        "a sks icon\na bell icon in szn style\na sks icon in szn style"
    )
    tab.text("compare_prompts").fill("a sks icon in szn style")


def ended(tab: Tab, kind: str, words: str) -> None:
    tab.outcome(kind, words, "compare_result")


def thumbnails(tab: Tab) -> Locator:
    return tab.page.locator("#ziplora_compare_gallery .thumbnail-item")


def test_one_click_draws_the_sheet_and_a_chosen_picture_becomes_the_preview(tab: Tab, server: Server) -> None:
    open_panel(tab, steps=2)
    choose(tab)
    tab.press("compare")
    expect(tab.page.locator("#ziplora_compare")).to_be_disabled()
    ended(tab, "done", f"Drew {PICTURES} of {PICTURES} pictures of {MERGED}")
    expect(thumbnails(tab)).to_have_count(PICTURES + 1)
    tab.idle()
    expect(tab.page.locator("#ziplora_compare")).to_be_enabled()
    preview = server.loras / f"{MERGED}.preview.png"
    assert infotext(preview).startswith(f"a sks icon in szn style <lora:{MERGED}:1>")
    saved = sorted((server.loras / "ziplora-pictures").glob("*.png"))
    assert len(saved) == PICTURES + 1 and "ZipLoRA rows" in infotext(saved[-1])
    thumbnails(tab).nth(1).click()
    tab.press("compare_use")
    expect(tab.page.locator("#ziplora_compare_note").first).to_contain_text(preview.name)
    assert infotext(preview).startswith(f"a sks icon in szn style <lora:{SUBJECT}:1>")
    assert tab.page.evaluate("localStorage.getItem('ziplora_job')") is None


def infotext(file: Path) -> str:
    with Image.open(file) as image:
        return str(image.info["parameters"])


def test_interrupt_after_a_reload_keeps_the_finished_pictures(tab: Tab, server: Server) -> None:
    open_panel(tab, steps=60)
    choose(tab)
    tab.press("compare")
    tab.bar("picture 2")
    tab.page.reload()
    tab.bar("picture")
    tab.press("interrupt")
    ended(tab, "interrupted", "The comparison was interrupted")
    tab.idle()
    expect(thumbnails(tab).first).to_be_visible()
    assert 2 <= thumbnails(tab).count() <= PICTURES
    tab.page.set_viewport_size({"width": 390, "height": 900})
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_comparison_without_a_merge_says_so(tab: Tab) -> None:
    open_panel(tab, steps=2)
    tab.press("compare")
    ended(tab, "error", "No merged LoRA is chosen")
    tab.idle()


def test_a_merge_is_compared_by_itself_when_asked(tab: Tab, server: Server) -> None:
    open_panel(tab, steps=1)
    tab.prepare("compared", updates=1)
    tab.after_merge("a comparison")
    tab.method("direct")
    tab.text("compare_prompts").fill("a sks icon in szn style")
    tab.press("generate")
    tab.outcome("done", "compared.safetensors")
    ended(tab, "done", f"Drew {PICTURES} of {PICTURES} pictures of compared")
    expect(thumbnails(tab)).to_have_count(PICTURES + 1)
    tab.outcome("done", "compared.safetensors")
    tab.idle()
    assert {"compared.json", "compared.preview.png"} <= server.files()


def test_a_merge_ends_in_its_picture_beside_the_plain_sums(tab: Tab, server: Server) -> None:
    open_panel(tab, steps=1)
    tab.prepare("pictured", updates=1)
    tab.method("instant")
    tab.after_merge("two pictures")
    tab.press("generate")
    tab.outcome("done", "pictured.safetensors")
    expect(tab.page.locator("#ziplora_result .ziplora-verdict")).to_contain_text(
        re.compile(r"\d+ % of the subject's")
    )
    expect(tab.page.locator("#ziplora_result tr", has_text="Held-out loss")).to_have_attribute(
        "title", re.compile("alone")
    )
    tab.outcome("done", "Drew 2 of 2 pictures of pictured", place="drawn_note")
    expect(tab.page.locator("#ziplora_drawn img").first).to_be_visible()
    assert {"pictured.json", "pictured.preview.png"} <= server.files()
    tab.idle()
    tab.text("output").fill("another")
    tab.method("direct")
    tab.after_merge("nothing")
    tab.press("generate")
    tab.outcome("done", "another.safetensors")
    expect(tab.page.locator("#ziplora_drawn")).to_be_hidden()
