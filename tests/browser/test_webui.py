"""The tab clicked through in a real WebUI: merges, pictures before and after, interrupts, Reload UI, refusals."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from lib_ziplora.config import MergeSettings
from lib_ziplora.lora.io.inspect import inspect_header

from .pages import STYLE, SUBJECT, Tab
from .webui import FOR_SD15, PRESENT, REASON, Webui
from .webui_pages import (
    BAR,
    LONG,
    OTHER_LORA,
    PROMPT,
    Txt2img,
    merge,
    open_page,
    reload_ui,
    settle,
    show_tab,
    start_long,
    updating,
    visit,
)

pytestmark = [
    pytest.mark.webui,
    pytest.mark.browser,
    pytest.mark.skipif(not PRESENT, reason=REASON),
]


@pytest.fixture
def page(blank_page: Page, webui: Webui) -> Iterator[Page]:
    with visit(blank_page, webui) as page:
        yield page


def bar_texts(tab: Tab) -> list[str]:
    """Every text that the bar shows until the merge has ended."""
    texts: list[str] = []
    while not tab.page.locator("#ziplora_result [data-outcome]").count():
        text = tab.page.evaluate(f"document.querySelector('{BAR}')?.innerText ?? ''")
        if text and text not in texts:
            texts.append(text)
        tab.page.wait_for_timeout(50)
    return texts


def test_a_merge_from_pick_to_picture(
    tab: Tab, txt2img: Txt2img, webui: Webui, shoot: Callable[[str], None]
) -> None:
    others = {n: txt2img.draw(f"{PROMPT}{n}") for n in ("", f" <lora:{SUBJECT}:1>", f" <lora:{STYLE}:1>")}
    show_tab(tab.page, "ZipLoRA")
    tab.pick("subject", SUBJECT)
    tab.pick("style", STYLE)
    expect(tab.page.locator("#ziplora_subject_facts").first).to_contain_text(
        re.compile(r"Stable Diffusion XL.*rank \d+.*layers")
    )
    expect(tab.text("subject_prompt")).to_have_value("a sks icon")
    expect(tab.text("style_prompt")).not_to_have_value("")
    expect(tab.text("output")).to_have_value(f"{SUBJECT}_x_{STYLE}")
    expect(tab.page.locator("#ziplora_steps input[type=number]")).to_have_value(str(MergeSettings().steps))
    shoot("tab")
    tab.prepare("rocket in cyber", updates=25)
    tab.press("generate")
    expect(tab.page.locator("#ziplora_interrupt")).to_be_visible()
    texts = bar_texts(tab)
    percents = [int(found) for text in texts for found in re.findall(r"(\d+) %", text)]
    assert len(set(percents)) >= 4 and percents == sorted(percents), texts
    assert any("left" in text for text in texts), texts
    tab.outcome("done", "rocket in cyber.safetensors")
    expect(tab.text("tag")).to_have_value(f"<lora:rocket in cyber:1> {PROMPT}")
    tab.idle()
    expect(tab.page.locator(BAR)).to_be_hidden()
    shoot("result")
    tab.press("send")
    expect(txt2img.prompt).to_be_visible()
    expect(txt2img.prompt).to_have_value(re.compile(rf"^{PROMPT}.*<lora:rocket in cyber:1>$"))
    show_tab(tab.page, "ZipLoRA")
    tab.press("send_img2img")
    expect(tab.page.locator("#img2img_prompt textarea")).to_have_value(f"<lora:rocket in cyber:1> {PROMPT}")
    assert "rocket in cyber" in txt2img.cards()
    shoot("cards")
    merged = txt2img.draw(f"{PROMPT} <lora:rocket in cyber:1>")
    txt2img.page.locator("#txt2img_extra_tabs").get_by_text("Generation", exact=True).first.click()
    shoot("picture")
    assert all((merged != other).any() for other in others.values())
    assert "Networks" not in txt2img.remarks() and "didn't match" not in webui.log()
    sources = [inspect_header(webui.loras / f"{name}.safetensors") for name in (SUBJECT, STYLE)]
    written = inspect_header(webui.loras / "rocket in cyber.safetensors")
    assert written.rank == sum(source.rank for source in sources)


def test_pictures_before_and_after_merges_are_the_same(tab: Tab, txt2img: Txt2img) -> None:
    """Each merge begins right after a picture that has baked a LoRA into the model."""
    before = [txt2img.draw(PROMPT), txt2img.draw(OTHER_LORA)]
    for name in ("first of two", "second of two"):
        merge(tab, name)
        after = [txt2img.draw(PROMPT), txt2img.draw(OTHER_LORA)]
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    drawn = [txt2img.draw(f"{PROMPT} <lora:{name}:1>") for name in ("first of two", "second of two")]
    assert np.array_equal(*drawn)


def test_the_webuis_list_of_loras_never_shrinks(tab: Tab, webui: Webui) -> None:
    tab.prepare("listed", updates=1)
    tab.method("direct")
    with webui.listed_counts() as counts:
        for number in range(10):
            tab.text("output").fill(f"listed {number}")
            tab.press("generate")
            tab.outcome("done", f"listed {number}.safetensors")
            tab.idle()
    assert counts == sorted(counts) and counts[-1] == counts[0] + 10
    tab.method("ziplora")


def test_an_overwritten_lora_is_drawn_anew(tab: Tab, txt2img: Txt2img) -> None:
    merge(tab, "written twice", updates=1)
    first = txt2img.draw(f"{PROMPT} <lora:written twice:1>")
    show_tab(tab.page, "ZipLoRA")
    tab.page.locator("#ziplora_overwrite input").check()
    merge(tab, "written twice", updates=20)
    assert (txt2img.draw(f"{PROMPT} <lora:written twice:1>") != first).any()


def test_escape_interrupts_and_nothing_is_written(
    tab: Tab, txt2img: Txt2img, webui: Webui, shoot: Callable[[str], None]
) -> None:
    picture, files = txt2img.draw(OTHER_LORA), webui.files()
    start_long(tab, "interrupted")
    shoot("running")
    tab.page.keyboard.press("Escape")
    tab.outcome("interrupted", "othing was written")
    tab.idle()
    expect(tab.page.locator("#ziplora_tag")).to_be_hidden()
    assert webui.files() == files
    assert np.array_equal(txt2img.draw(OTHER_LORA), picture)
    merge(tab, "after an interrupt")


def test_control_enter_merges_and_alt_enter_finishes(tab: Tab, webui: Webui) -> None:
    tab.prepare("finished early", LONG)
    tab.text("output").press("Control+Enter")
    updating(tab)
    tab.text("output").press("Alt+Enter")
    tab.outcome("done", "stopped early")
    tab.idle()
    assert "finished early.safetensors" in webui.files()


def test_finish_now_after_the_page_was_loaded_anew(tab: Tab, webui: Webui) -> None:
    start_long(tab, "finished after a reload")
    open_page(tab.page, webui)
    show_tab(tab.page, "ZipLoRA")
    updating(tab)
    tab.press("skip")
    tab.outcome("done")
    expect(tab.text("tag")).to_have_value(f"<lora:finished after a reload:1> {PROMPT}")
    tab.idle()
    assert "finished after a reload.safetensors" in webui.files()


def test_a_picture_waits_for_the_merge(tab: Tab, txt2img: Txt2img) -> None:
    picture = txt2img.draw(OTHER_LORA)
    start_long(tab, "in front of a picture")
    before = txt2img.start(OTHER_LORA)
    expect(
        tab.page.locator("#txt2img_gallery_container .progressDiv, #txt2img_results .progressDiv").first
    ).to_contain_text("In queue")
    show_tab(tab.page, "ZipLoRA")
    tab.press("skip")
    assert np.array_equal(txt2img.wait(before), picture)
    show_tab(tab.page, "ZipLoRA")
    tab.outcome("done")


def test_a_merge_waits_for_a_picture_and_can_leave_the_queue(
    tab: Tab, txt2img: Txt2img, webui: Webui
) -> None:
    files = webui.files()
    show_tab(tab.page, "ZipLoRA")
    tab.prepare("never begun", updates=1)
    txt2img.open()
    steps = tab.page.locator("#txt2img_steps input[type=number]")
    steps.fill("150")
    steps.press("Tab")
    before = txt2img.start(PROMPT)
    show_tab(tab.page, "ZipLoRA")
    tab.press("generate")
    tab.press("interrupt")
    tab.outcome("interrupted", "off the queue")
    tab.idle()
    txt2img.wait(before)
    assert webui.files() == files


def test_reload_ui_and_merge_again(tab: Tab, txt2img: Txt2img, webui: Webui) -> None:
    picture = txt2img.draw(OTHER_LORA)
    merge(tab, "before reload")
    settle(tab.page)
    reload_ui(tab.page, webui)
    show_tab(tab.page, "ZipLoRA")
    tab.idle()
    merge(tab, "after reload")
    assert {"before reload", "after reload"} <= set(txt2img.cards())
    assert np.array_equal(txt2img.draw(OTHER_LORA), picture)


def test_reload_ui_in_the_middle_of_a_merge(tab: Tab, txt2img: Txt2img, webui: Webui) -> None:
    picture, files = txt2img.draw(OTHER_LORA), webui.files()
    start_long(tab, "lost by reload")
    reload_ui(tab.page, webui)
    show_tab(tab.page, "ZipLoRA")
    tab.outcome("forgotten", "merge again")
    tab.idle()
    assert webui.files() == files
    assert np.array_equal(txt2img.draw(OTHER_LORA), picture)
    merge(tab, "after a lost one")


def test_same_lora_twice_is_refused_at_once(tab: Tab, webui: Webui) -> None:
    files = webui.files()
    tab.prepare("twice", updates=1, style=SUBJECT)
    tab.press("generate")
    tab.outcome("error", "same file")
    tab.idle()
    assert webui.files() == files


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside", "../outside"),
        ("folder/name", "folder/name"),
        (SUBJECT, f"{SUBJECT}.safetensors"),
        ("a:b", "a:b"),
        ("", "Output name"),
    ],
)
def test_bad_output_names_are_refused_at_once(tab: Tab, webui: Webui, name: str, words: str) -> None:
    files = webui.files()
    tab.prepare(name, updates=1)
    tab.press("generate")
    expect(tab.outcome("error")).to_contain_text(words)
    tab.idle()
    assert webui.files() == files


def test_a_lora_for_sd15_is_listed_with_the_reason(tab: Tab, shoot: Callable[[str], None]) -> None:
    tab.idle()
    tab.page.locator("#ziplora_subject input").click()
    listed = tab.page.locator("#ziplora_subject li, ul.options li").all_inner_texts()
    assert FOR_SD15 in listed[-1]  # after those that can be used
    tab.pick("subject", FOR_SD15)
    expect(tab.page.locator("#ziplora_subject_facts").first).to_contain_text(
        re.compile("Not usable:.*Stable Diffusion 1")
    )
    shoot("sd15")
    tab.pick("style", STYLE)
    tab.text("subject_prompt").fill("a cat")
    tab.text("output").fill("of two bases")
    tab.press("generate")
    expect(tab.outcome("error")).to_contain_text(FOR_SD15)
    tab.idle()
