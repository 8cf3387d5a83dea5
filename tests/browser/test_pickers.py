"""Choosing LoRAs: the list to search in, what is shown of a pick, recent merges, shortcuts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Locator, Page, expect
from safetensors.torch import save_file

from . import serving
from .pages import STYLE, SUBJECT, Tab
from .serving import Server

pytestmark = pytest.mark.browser

MANY = 2000
OLD = "made for sd15"
TITLES = {"generate": "Ctrl+Enter", "skip": "Alt+Enter", "interrupt": "Esc"}


@pytest.fixture(scope="module")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server over 2,000 LoRAs: links to one file, so that they cost no room."""
    with serving.running(tmp_path_factory.mktemp("many")) as server:
        source = server.loras / f"{SUBJECT}.safetensors"
        for number in range(MANY):
            (server.loras / f"{COLOURS[number % 5]} {THINGS[number % 7]} {number:04}.safetensors").symlink_to(
                source
            )
        old = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
        tensors = {
            f"{old}.lora_down.weight": torch.zeros(4, 768),
            f"{old}.lora_up.weight": torch.zeros(320, 4),
        }
        save_file(tensors, server.loras / f"{OLD}.safetensors")
        draw_preview(server.loras / f"{SUBJECT}.preview.png")
        yield server


COLOURS = ("red", "green", "blue", "grey", "Amber")
THINGS = ("dog", "cat", "castle", "knight", "robot", "flower", "ship")


def draw_preview(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (512, 768), "teal").save(path)


@pytest.fixture
def box(page: Page) -> Locator:
    """The subject's search box, once the LoRAs are known and judged."""
    catalog = page.locator("#ziplora_catalog [data-known='1'][data-pending='0']")
    catalog.wait_for(state="attached", timeout=180_000)
    return page.locator("#ziplora_subject input")


def options(page: Page, side: str = "subject") -> Locator:
    return page.locator(f"#ziplora_{side} li .ziplora-option-name")


def test_every_word_is_searched_for_in_any_order_and_case(page: Page, box: Locator) -> None:
    box.click()
    expect(options(page).first).to_be_visible()
    box.fill("CAT amber 99")
    found = options(page).all_inner_texts()
    wanted = [f"Amber cat {n:04}" for n in range(MANY) if n % 5 == 4 and n % 7 == 1 and "99" in f"{n:04}"]
    assert found == wanted and wanted
    box.fill("no such words")
    expect(options(page)).to_have_text(["No LoRA has all these words in its name."])


def test_a_long_list_is_filled_as_it_is_scrolled(page: Page, box: Locator) -> None:
    box.click()
    before = options(page).count()
    assert 0 < before < 200
    box.press("PageDown")
    for _ in range(3):
        page.locator("#ziplora_subject_options").evaluate("list => list.scrollTop = list.scrollHeight")
    expect(options(page).nth(before)).to_be_attached()


def test_keys_choose_and_what_is_half_typed_is_taken_back(page: Page, box: Locator) -> None:
    facts = page.locator("#ziplora_subject_facts").first
    box.click()
    box.fill("minixl subject rocket")
    box.press("Enter")
    expect(box).to_have_value(SUBJECT)
    expect(facts).to_contain_text("rank 8")
    box.click()
    box.fill("minixl")
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "Escape"):
        box.press(key)
    expect(box).to_have_value(SUBJECT)
    expect(page.locator("#ziplora_subject ul")).to_be_hidden()
    box.fill("nothing like it")
    box.press("Tab")
    expect(box).to_have_value(SUBJECT)
    expect(facts).to_contain_text("rank 8")
    box.fill(STYLE.upper())
    box.press("Tab")
    expect(box).to_have_value(STYLE)
    expect(facts).to_contain_text("szn style")


def test_what_is_picked_is_shown(page: Page, box: Locator) -> None:
    tab = Tab(page)
    tab.pick("subject", SUBJECT)
    facts = page.locator("#ziplora_subject_facts").first
    for words in ("Stable Diffusion XL", "LoRA", "rank 8", "layers", "MB", "a sks icon"):
        expect(facts).to_contain_text(words)
    picture = facts.locator("img")
    assert (picture.get_attribute("src") or "").startswith("data:image/jpeg;base64,")
    assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
    assert not page.evaluate("document.querySelector('#ziplora_catalog').offsetParent")


def test_wrong_bases_are_grey_and_last_and_say_why(page: Page, box: Locator) -> None:
    box.click()
    box.fill("made sd15")
    row = page.locator("#ziplora_subject li").first
    expect(row).to_have_class("ziplora-unusable")
    expect(row).to_contain_text("for Stable Diffusion 1.x")
    colours = [
        one.evaluate("item => getComputedStyle(item.querySelector('.ziplora-option-name')).color")
        for one in (row,)
    ]
    box.fill("minixl")
    usable = page.locator("#ziplora_subject li").first
    colours.append(usable.evaluate("item => getComputedStyle(item.firstChild).color"))
    assert colours[0] != colours[1]
    box.fill("made sd15")
    box.press("Enter")
    expect(page.locator("#ziplora_subject_facts .ziplora-bad")).to_contain_text("not for Stable Diffusion XL")


def test_the_combined_prompt_follows_until_it_is_ones_own(page: Page, box: Locator) -> None:
    tab = Tab(page)
    both = tab.text("combined_prompt")
    tab.pick("subject", SUBJECT)
    expect(both).to_have_value("")
    tab.pick("style", STYLE)
    expect(both).to_have_value("a sks icon in szn style")
    tab.text("subject_prompt").fill("a green sks icon")
    tab.text("subject_prompt").press("Tab")
    expect(both).to_have_value("a green sks icon in szn style")
    both.fill("a green sks icon, drawn in szn style")
    tab.text("subject_prompt").fill("a sks icon")
    tab.pick("style", "minixl_style_picon")
    expect(page.locator("#ziplora_output input, #ziplora_output textarea").first).to_have_value(
        f"{SUBJECT}_x_minixl_style_picon"
    )
    expect(both).to_have_value("a green sks icon, drawn in szn style")


def test_shortcuts_are_the_tabs_own_and_are_told(page: Page, box: Locator, server: Server) -> None:
    for name, title in TITLES.items():
        expect(page.locator(f"#ziplora_{name}")).to_have_attribute("title", title)
    tab = Tab(page)
    tab.prepare("by keys", updates=1000)
    tab.text("style_prompt").press("Alt+s")
    expect(box).to_have_value(STYLE)
    tab.text("style_prompt").press("Alt+s")
    expect(box).to_have_value(SUBJECT)
    tab.text("style_prompt").press("Control+Enter")
    assert len(tab.bar_values(enough=2)) == 2
    box.click()
    box.press("Escape")  # closes the list, and nothing else
    expect(page.locator("#ziplora_interrupt")).to_be_visible()
    assert len(tab.bar_values(enough=2)) == 2  # it goes on
    expect(page.locator("#ziplora_note").first).not_to_contain_text("Stopping")
    page.locator("#ziplora_style_prompt textarea").press("Escape")
    tab.outcome("interrupted")
    tab.idle()
    assert "by keys.safetensors" not in server.files()


def test_a_recent_merge_fills_the_form_also_after_a_reload(page: Page, box: Locator, server: Server) -> None:
    tab = Tab(page)
    tab.prepare("recently", updates=1)
    page.locator("#ziplora_method").get_by_text("direct", exact=True).click()
    tab.text("style_prompt").fill("a dog icon in szn style")
    tab.set_number("style_weight", 0.7)
    tab.press("generate")
    tab.outcome("done")
    button = page.locator("#ziplora_recent button").first
    expect(button).to_have_text(f"{SUBJECT} × {STYLE}")
    page.reload()
    tab.idle()
    expect(tab.text("style_prompt")).to_have_value("")
    button.click()
    expect(box).to_have_value(SUBJECT)
    expect(page.locator("#ziplora_style input").first).to_have_value(STYLE)
    expect(tab.text("style_prompt")).to_have_value("a dog icon in szn style")
    expect(page.locator("#ziplora_style_weight input[type=number]")).to_have_value("0.7")
    expect(tab.text("combined_prompt")).to_have_value("a sks icon in szn style")
    expect(page.locator("#ziplora_style_facts").first).to_contain_text("rank")
    expect(tab.text("output")).to_have_value(f"{SUBJECT}_x_{STYLE}")
    shutil.move(server.loras / f"{STYLE}.safetensors", server.loras / f"{STYLE}.away")
    page.locator("#ziplora_subject_refresh").click()
    expect(button).to_be_disabled()
    shutil.move(server.loras / f"{STYLE}.away", server.loras / f"{STYLE}.safetensors")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_list_stays_inside_the_window(page: Page, box: Locator, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    for side in ("subject", "style"):
        page.locator(f"#ziplora_{side} input").click()
        rectangle = page.locator(f"#ziplora_{side}_options").bounding_box()
        assert rectangle and rectangle["height"] > 100
        assert rectangle["x"] >= 0 and rectangle["x"] + rectangle["width"] <= width
        assert rectangle["y"] >= 0 and rectangle["y"] + rectangle["height"] <= 844
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_list_has_pictures_of_the_rows_that_are_seen(page: Page, box: Locator) -> None:
    box.click()
    page.locator("#ziplora_pictures [data-pictures]").wait_for(state="attached")
    expect(page.locator("#ziplora_subject li img")).to_have_count(0)  # the first rows have none
    box.fill("minixl subject")
    row = page.locator("#ziplora_subject li", has_text=SUBJECT).first
    expect(row.locator("img")).to_have_count(1)
    assert row.locator("img").evaluate("image => image.complete && image.naturalHeight <= 72")
    assert (row.locator("img").get_attribute("src") or "").startswith("data:image/jpeg;base64,")
    expect(row.locator(".ziplora-option-name")).to_have_text(SUBJECT)
    box.press("Escape")
    page.evaluate(
        """() => {
            window.asked = [];
            document.querySelector("#ziplora_picture").onclick = () => asked.push(...ziploraPictures.asked());
        }"""
    )
    box.click()
    box.fill("minixl subject rocket")
    expect(page.locator("#ziplora_subject li img")).to_have_count(1)  # from what is known
    assert not [names for names in page.evaluate("window.asked") if SUBJECT in names]
    row.click()
    expect(box).to_have_value(SUBJECT)
