"""Compare in a real WebUI: the pictures are the txt2img tab's own, the card looks finished, others wait their turn."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.library.card import with_card
from lib_ziplora.pipeline.merge import run

from .pages import MERGE_MS, STYLE, SUBJECT, Tab
from .webui import DEFAULTS, PRESENT, REASON, Webui
from .webui_pages import BAR, PROMPT, Txt2img, show_tab, visit

pytestmark = [
    pytest.mark.webui,
    pytest.mark.browser,
    pytest.mark.skipif(not PRESENT, reason=REASON),
]
MERGED = "compared in a webui"
PICTURES = 4


@pytest.fixture
def page(blank_page: Page, webui: Webui) -> Iterator[Page]:
    """The tab with a merge in its list."""
    loras = LoraInput(SUBJECT, "a sks icon"), LoraInput(STYLE, "a bell icon in szn style", role="style")
    request = MergeRequest(loras, MERGED, True, MergeSettings(method="direct"))
    report = run(request, StandaloneHost(None, [webui.loras]))
    with_card(report, StandaloneHost(None, [webui.loras]))
    with visit(blank_page, webui) as page:
        yield page


def open_panel(tab: Tab) -> None:
    tab.idle()
    tab.page.locator("#ziplora_comparison").get_by_text("Compare", exact=True).first.click()
    tab.page.locator("#ziplora_compare_how").get_by_text("How the pictures are drawn").click()
    box = tab.page.locator("#ziplora_compare_source input")
    box.click()
    box.fill(MERGED)
    tab.page.locator("ul.options li").filter(has_text=MERGED).first.click()
    expect(tab.text("compare_prompts")).to_have_value(f"a sks icon\na bell icon in szn style\n{PROMPT}")
    tab.text("compare_prompts").fill(PROMPT)


def number(tab: Tab, name: str) -> float:
    return float(tab.page.locator(f"#ziplora_{name} input[type=number]").input_value())


def test_the_sheet_shows_what_the_txt2img_tab_draws(
    tab: Tab, txt2img: Txt2img, webui: Webui, shoot: Callable[[str], None]
) -> None:
    expected = txt2img.draw(f"{PROMPT} <lora:{MERGED}:1>")
    show_tab(tab.page, "ZipLoRA")
    open_panel(tab)
    assert number(tab, "compare_steps") == DEFAULTS["customscript/sampler.py/txt2img/Sampling steps/value"]
    assert number(tab, "compare_guidance_scale") == DEFAULTS["txt2img/CFG Scale/value"]
    seed = tab.page.locator("#ziplora_compare_seed input")
    seed.fill(str(DEFAULTS["customscript/seed.py/txt2img/Seed/value"]))
    seed.press("Tab")
    before = set(webui.pictures.glob("*.png"))
    tab.press("compare")
    expect(tab.page.locator(BAR).first).to_be_visible()
    done = tab.page.locator("#ziplora_compare_result [data-outcome=done]").first
    expect(done).to_contain_text(f"Drew {PICTURES} of {PICTURES}", timeout=MERGE_MS)
    expect(tab.page.locator("#ziplora_compare_gallery .thumbnail-item")).to_have_count(PICTURES + 1)
    tab.idle()
    shoot("webui-compare")
    new = sorted(set(webui.pictures.glob("*.png")) - before)
    with Image.open(new[-1]) as merged:
        assert merged.info["parameters"].startswith(f"{PROMPT} <lora:{MERGED}:1>")
        assert np.array_equal(np.asarray(merged.convert("RGB")), expected)
    assert len(new) == PICTURES
    assert np.array_equal(txt2img.draw(f"{PROMPT} <lora:{MERGED}:1>"), expected)


def test_the_card_has_the_preview_and_the_activation_text(
    tab: Tab, txt2img: Txt2img, shoot: Callable[[str], None]
) -> None:
    open_panel(tab)
    tab.press("compare")
    expect(tab.page.locator("#ziplora_compare_result").first).to_contain_text(
        f"{MERGED}.preview.png", timeout=MERGE_MS
    )
    tab.idle()
    assert MERGED in txt2img.cards()
    card = tab.page.locator(f"#txt2img_lora_cards .card[data-name='{MERGED}']")
    expect(card.locator("img.preview")).to_have_attribute("src", re.compile(r"preview\.png"))
    shoot("webui-compare-card")
    txt2img.prompt.fill("")
    card.click()
    expect(txt2img.prompt).to_have_value(re.compile(rf"<lora:{MERGED}:1>.*{PROMPT}"))


def prompts(webui: Webui) -> list[str]:
    """Of every picture that was saved, tags included."""
    found = []
    for file in webui.pictures.glob("*.png"):
        with Image.open(file) as image:
            found.append(image.info["parameters"].partition("\n")[0])
    return found


def wait_for(tab: Tab, webui: Webui, prompt: str, count: int) -> None:
    """Wait until there are so many pictures of a prompt."""
    for _ in range(MERGE_MS // 200):
        if prompts(webui).count(prompt) >= count:
            return
        tab.page.wait_for_timeout(200)
    raise AssertionError(f"No picture of {prompt!r}: {prompts(webui)}")


def test_generate_waits_its_turn_and_interrupt_keeps_the_finished_pictures(
    tab: Tab, txt2img: Txt2img, webui: Webui
) -> None:
    open_panel(tab)
    tab.set_number("compare_steps", 40)
    waiting, first = "a queued icon", f"{PROMPT} <lora:{SUBJECT}:1>"
    before = prompts(webui).count(first)
    tab.press("compare")
    expect(tab.page.locator("#ziplora_compare")).to_be_disabled()
    txt2img.start(waiting)
    wait_for(tab, webui, first, before + 1)
    assert waiting not in prompts(webui)
    show_tab(tab.page, "ZipLoRA")
    tab.press("interrupt")
    stopped = tab.page.locator("#ziplora_compare_result [data-outcome=interrupted]").first
    expect(stopped).to_contain_text("The comparison was interrupted", timeout=MERGE_MS)
    tab.idle()
    assert 2 <= tab.page.locator("#ziplora_compare_gallery .thumbnail-item").count() <= PICTURES
    wait_for(tab, webui, waiting, 1)
