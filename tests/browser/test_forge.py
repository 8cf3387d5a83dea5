"""The tab clicked through in a real Forge (gradio 4.40): merge, pictures, interrupt, reload, Compare, self-test."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from .pages import MERGE_MS, Tab
from .webui import KIND, PRESENT, Webui
from .webui_pages import (
    BAR,
    OTHER_LORA,
    PROMPT,
    Txt2img,
    merge,
    open_page,
    show_tab,
    start_long,
    updating,
    visit,
)

pytestmark = [
    pytest.mark.webui,
    pytest.mark.browser,
    pytest.mark.skipif(not PRESENT or KIND == "a1111", reason="needs ZIPLORA_WEBUI=<folder of a Forge>"),
]


@pytest.fixture
def page(blank_page: Page, webui: Webui) -> Iterator[Page]:
    with visit(blank_page, webui) as page:
        yield page


def test_before_any_picture_the_self_test_loads_the_model_and_passes(tab: Tab) -> None:
    tab.page.locator("#ziplora_self_testing").get_by_text("Self-test", exact=True).first.click()
    tab.press("self_test")
    expect(tab.text("self_tested")).to_have_value(re.compile("self-test passed"), timeout=MERGE_MS)
    assert "attention_pytorch for a merge" in tab.text("self_tested").input_value()


def test_a_merge_from_pick_to_picture(
    tab: Tab, txt2img: Txt2img, webui: Webui, shoot: Callable[[str], None]
) -> None:
    before = [txt2img.draw(PROMPT), txt2img.draw(OTHER_LORA)]
    show_tab(tab.page, "ZipLoRA")
    tab.prepare("rocket in cyber", updates=12)
    shoot("forge-tab")
    tab.press("generate")
    expect(tab.page.locator(BAR).first).to_contain_text("%", timeout=MERGE_MS)
    tab.outcome("done", "rocket in cyber.safetensors")
    expect(tab.text("tag")).to_have_value(f"<lora:rocket in cyber:1> {PROMPT}")
    tab.idle()
    shoot("forge-result")
    tab.press("send")
    expect(txt2img.prompt).to_have_value(re.compile(rf"^{PROMPT}.*<lora:rocket in cyber:1>$"))
    after = [txt2img.draw(PROMPT), txt2img.draw(OTHER_LORA)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    merged = txt2img.draw(f"{PROMPT} <lora:rocket in cyber:1>")
    assert all((merged != other).any() for other in before)
    assert "rocket in cyber" in txt2img.cards()
    assert "unmatched" not in webui.log()


def test_escape_interrupts_and_nothing_is_written(tab: Tab, txt2img: Txt2img, webui: Webui) -> None:
    picture, files = txt2img.draw(OTHER_LORA), webui.files()
    start_long(tab, "interrupted")
    tab.page.keyboard.press("Escape")
    tab.outcome("interrupted", "othing was written")
    tab.idle()
    assert webui.files() == files
    assert np.array_equal(txt2img.draw(OTHER_LORA), picture)


def test_finish_now_after_the_page_was_loaded_anew(tab: Tab, webui: Webui) -> None:
    start_long(tab, "finished after a reload")
    open_page(tab.page, webui)
    show_tab(tab.page, "ZipLoRA")
    updating(tab)
    tab.press("skip")
    tab.outcome("done")
    tab.idle()
    assert "finished after a reload.safetensors" in webui.files()


def test_a_picture_of_compare_becomes_the_preview(
    tab: Tab, webui: Webui, shoot: Callable[[str], None]
) -> None:
    merge(tab, "compared")
    tab.page.locator("#ziplora_comparison").get_by_text("Compare", exact=True).first.click()
    tab.text("compare_prompts").fill(PROMPT)
    tab.press("compare")
    done = tab.page.locator("#ziplora_compare_result [data-outcome=done]").first
    expect(done).to_contain_text("Drew 4 of 4", timeout=MERGE_MS)
    tab.idle()
    thumbnails = tab.page.locator("#ziplora_compare_gallery .thumbnail-item")
    expect(thumbnails).to_have_count(5)
    shoot("forge-compare")
    thumbnails.nth(2).click()
    tab.page.locator("#ziplora_compare_replace input").check()
    tab.press("compare_use")
    expect(tab.page.locator("#ziplora_compare_note").first).to_contain_text("is now the preview of compared")
    assert "compared.preview.png" in webui.files()
