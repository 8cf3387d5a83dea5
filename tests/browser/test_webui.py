"""The tab clicked through in a real WebUI: merges, pictures before and after, interrupts, Reload UI, refusals."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page, expect
from safetensors.torch import save_file

from lib_ziplora.lora.file import inspect_header

from . import webui as real
from .pages import MERGE_MS, STYLE, SUBJECT, Tab
from .webui import Txt2img, Webui

pytestmark = [
    pytest.mark.webui,
    pytest.mark.browser,
    pytest.mark.skipif(not real.PRESENT, reason=real.REASON),
]
PROMPT = "a sks emoji in szn style"
OTHER_LORA = f"{PROMPT} <lora:{SUBJECT}:1>"
BAR = "#ziplora_progress .progressDiv"
LONG = 1000


@pytest.fixture(scope="module")
def webui(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webui]:
    with real.running(tmp_path_factory.mktemp("webui")) as webui:
        save_file(
            {
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.ones(
                    4, 768
                ),
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": torch.ones(
                    320, 4
                ),
                "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 768),
                "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(3072, 4),
            },
            str(webui.loras / "made for sd15.safetensors"),
        )
        yield webui


@pytest.fixture
def page(browser: Browser, webui: Webui) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    real.open_page(page, webui)
    real.show_tab(page, "ZipLoRA")
    yield page
    real.settle(page)
    context.close()
    assert not problems
    log = webui.log()
    assert "Error completing request" not in log and not re.search(r'File ".*lib_ziplora', log), log[-4000:]


@pytest.fixture
def tab(page: Page) -> Tab:
    return Tab(page)


@pytest.fixture
def txt2img(page: Page, webui: Webui) -> Txt2img:
    return Txt2img(page, webui)


@pytest.fixture
def shoot(page: Page, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Take a picture of the page for people, if ``ZIPLORA_SCREENSHOTS`` names a folder."""
    folder = os.environ.get("ZIPLORA_SCREENSHOTS", "")

    def shoot(name: str) -> None:
        if folder:
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    return shoot


def merge(tab: Tab, output: str, updates: int = 3) -> None:
    real.show_tab(tab.page, "ZipLoRA")
    tab.prepare(output, updates)
    tab.press("generate")
    expect(tab.page.locator("#ziplora_interrupt")).to_be_visible()  # so the outcome below is this merge's
    tab.outcome("done")
    tab.idle()


def start_long(tab: Tab, output: str) -> None:
    """A merge that is in the middle of its updates."""
    real.show_tab(tab.page, "ZipLoRA")
    tab.prepare(output, LONG)
    tab.press("generate")
    updating(tab)


def updating(tab: Tab) -> None:
    expect(tab.page.locator(BAR)).to_contain_text(re.compile(r"Update [2-9]"), timeout=MERGE_MS)


def bar_texts(tab: Tab) -> list[str]:
    """Every text that the WebUI's own bar shows until the merge has ended."""
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
    real.show_tab(tab.page, "ZipLoRA")
    tab.pick("subject", SUBJECT)
    tab.pick("style", STYLE)
    expect(tab.page.locator("#ziplora_subject_facts").first).to_contain_text(
        re.compile(r"sdxl.*rank \d+.*layers")
    )
    expect(tab.text("subject_prompt")).to_have_value("a sks emoji")
    expect(tab.text("style_prompt")).not_to_have_value("")
    expect(tab.text("output")).to_have_value(f"{SUBJECT}_x_{STYLE}")
    expect(tab.page.locator("#ziplora_steps input[type=number]")).to_have_value("100")
    shoot("tab")
    tab.prepare("turtle in fluent", updates=25)
    tab.press("generate")
    expect(tab.page.locator("#ziplora_interrupt")).to_be_visible()
    texts = bar_texts(tab)
    percents = [int(found) for text in texts for found in re.findall(r"(\d+)%", text)]
    assert len(set(percents)) >= 4 and percents == sorted(percents), texts
    assert any("ETA" in text for text in texts), texts
    expect(tab.outcome("done")).to_contain_text("turtle in fluent.safetensors")
    expect(tab.text("tag")).to_have_value("<lora:turtle in fluent:1>")
    tab.idle()
    expect(tab.page.locator(BAR)).to_have_count(0)
    shoot("result")
    tab.press("send")
    expect(txt2img.prompt).to_be_visible()
    expect(txt2img.prompt).to_have_value(re.compile(r"<lora:turtle in fluent:1>$"))
    assert "turtle in fluent" in txt2img.cards()
    shoot("cards")
    merged = txt2img.draw(f"{PROMPT} <lora:turtle in fluent:1>")
    txt2img.page.locator("#txt2img_extra_tabs").get_by_text("Generation", exact=True).first.click()
    shoot("picture")
    assert all((merged != other).any() for other in others.values())
    assert "Networks" not in txt2img.remarks() and "didn't match" not in webui.log()
    sources = [inspect_header(webui.loras / f"{name}.safetensors") for name in (SUBJECT, STYLE)]
    written = inspect_header(webui.loras / "turtle in fluent.safetensors")
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


def test_an_overwritten_lora_is_drawn_anew(tab: Tab, txt2img: Txt2img) -> None:
    merge(tab, "written twice", updates=1)
    first = txt2img.draw(f"{PROMPT} <lora:written twice:1>")
    real.show_tab(tab.page, "ZipLoRA")
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
    expect(tab.outcome("interrupted")).to_contain_text("nothing was written", ignore_case=True)
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
    expect(tab.outcome("done")).to_contain_text("stopped optimising early")
    tab.idle()
    assert "finished early.safetensors" in webui.files()


def test_finish_now_after_the_page_was_loaded_anew(tab: Tab, webui: Webui) -> None:
    start_long(tab, "finished after a reload")
    real.open_page(tab.page, webui)
    real.show_tab(tab.page, "ZipLoRA")
    updating(tab)
    tab.press("skip")
    tab.outcome("done")
    expect(tab.text("tag")).to_have_value("<lora:finished after a reload:1>")
    tab.idle()
    assert "finished after a reload.safetensors" in webui.files()


def test_a_picture_waits_for_the_merge(tab: Tab, txt2img: Txt2img) -> None:
    picture = txt2img.draw(OTHER_LORA)
    start_long(tab, "in front of a picture")
    before = txt2img.start(OTHER_LORA)
    expect(
        tab.page.locator("#txt2img_gallery_container .progressDiv, #txt2img_results .progressDiv").first
    ).to_contain_text("In queue")
    real.show_tab(tab.page, "ZipLoRA")
    tab.press("skip")
    assert np.array_equal(txt2img.wait(before), picture)
    real.show_tab(tab.page, "ZipLoRA")
    tab.outcome("done")


def test_a_merge_waits_for_a_picture_and_can_leave_the_queue(
    tab: Tab, txt2img: Txt2img, webui: Webui
) -> None:
    files = webui.files()
    real.show_tab(tab.page, "ZipLoRA")
    tab.prepare("never begun", updates=1)
    txt2img.open()
    steps = tab.page.locator("#txt2img_steps input[type=number]")
    steps.fill("150")
    steps.press("Tab")
    before = txt2img.start(PROMPT)
    real.show_tab(tab.page, "ZipLoRA")
    tab.press("generate")
    tab.press("interrupt")
    expect(tab.outcome("interrupted")).to_contain_text("off the queue")
    tab.idle()
    txt2img.wait(before)
    assert webui.files() == files


def test_reload_ui_and_merge_again(tab: Tab, txt2img: Txt2img, webui: Webui) -> None:
    picture = txt2img.draw(OTHER_LORA)
    merge(tab, "before reload")
    real.settle(tab.page)
    real.reload_ui(tab.page, webui)
    real.show_tab(tab.page, "ZipLoRA")
    tab.idle()
    merge(tab, "after reload")
    assert {"before reload", "after reload"} <= set(txt2img.cards())
    assert np.array_equal(txt2img.draw(OTHER_LORA), picture)


def test_reload_ui_in_the_middle_of_a_merge(tab: Tab, txt2img: Txt2img, webui: Webui) -> None:
    picture, files = txt2img.draw(OTHER_LORA), webui.files()
    start_long(tab, "lost by reload")
    real.reload_ui(tab.page, webui)
    real.show_tab(tab.page, "ZipLoRA")
    expect(tab.outcome("forgotten")).to_contain_text("merge again")
    tab.idle()
    assert webui.files() == files
    assert np.array_equal(txt2img.draw(OTHER_LORA), picture)
    merge(tab, "after a lost one")


def test_same_lora_twice_is_refused_at_once(tab: Tab, webui: Webui) -> None:
    files = webui.files()
    tab.prepare("twice", updates=1, style=SUBJECT)
    tab.press("generate")
    expect(tab.outcome("error")).to_contain_text("same file")
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
    tab.page.locator("#ziplora_subject input").click()
    listed = tab.page.locator("#ziplora_subject li, ul.options li").all_inner_texts()
    assert "made for sd15" in listed[-1]  # after those that can be used
    tab.pick("subject", "made for sd15")
    expect(tab.page.locator("#ziplora_subject_facts").first).to_contain_text(
        re.compile("Not usable:.*Stable Diffusion 1")
    )
    shoot("sd15")
    tab.pick("style", STYLE)
    tab.text("subject_prompt").fill("a cat")
    tab.text("output").fill("of two bases")
    tab.press("generate")
    expect(tab.outcome("error")).to_contain_text("made for sd15")
    tab.idle()
