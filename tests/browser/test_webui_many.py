"""Matrix, Explain and the pickers in a real WebUI, and a second browser that looks on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from lib_ziplora.lora.io.inspect import inspect_header

from .pages import MERGE_MS, STYLE, SUBJECT, Tab
from .webui import FOR_SD15, PRESENT, REASON, Webui
from .webui_pages import (
    COUNT_SOCKETS,
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
    visit,
)

pytestmark = [
    pytest.mark.webui,
    pytest.mark.browser,
    pytest.mark.skipif(not PRESENT, reason=REASON),
]
OTHER_SUBJECT, OTHER_STYLE = "minixl_subject_crown", "minixl_style_picon"
NARROW, WIDE = {"width": 390, "height": 844}, {"width": 1280, "height": 1000}
PANELS = ("matrix", "explaining", "comparison", "adjusting")
Shoot = Callable[[str], None]


@pytest.fixture
def page(blank_page: Page, webui: Webui) -> Iterator[Page]:
    with visit(blank_page, webui) as page:
        yield page


@pytest.fixture
def matrix(tab: Tab) -> Tab:
    """The panel with two subjects and two styles that were picked."""
    tab.pick("subject", SUBJECT)
    tab.pick("style", STYLE)
    expect(tab.text("style_prompt")).not_to_have_value("")
    tab.page.locator("#ziplora_matrix").get_by_text("Matrix", exact=True).click()
    tab.press("matrix_add_subject")
    tab.press("matrix_add_style")
    for role, name in (("subject", SUBJECT), ("style", STYLE)):
        expect(tab.text(f"matrix_{role}s")).to_have_value(re.compile(rf"{name} \| "))
    for role, name in (("subject", OTHER_SUBJECT), ("style", OTHER_STYLE)):
        tab.pick(role, name)
        expect(tab.page.locator(f"#ziplora_{role} input").first).to_have_value(name)
    tab.press("matrix_add_subject")
    tab.press("matrix_add_style")
    expect(tab.text("matrix_subjects")).to_have_value(re.compile(rf"{SUBJECT} \| .*\n{OTHER_SUBJECT} \| "))
    expect(tab.text("matrix_styles")).to_have_value(re.compile(rf"{STYLE} \| .*\n{OTHER_STYLE} \| "))
    return tab


def states(tab: Tab, place: str = "result") -> list[str | None]:
    rows = tab.page.locator(f"#ziplora_{place} tr[data-state]")
    return [row.get_attribute("data-state") for row in rows.all()]


def narrow(tab: Tab, shoot: Shoot, name: str) -> None:
    """Take a picture at the width of a phone, where nothing of the tab stands out at its sides."""
    tab.page.set_viewport_size(NARROW)  # type: ignore[arg-type]
    tab.page.wait_for_timeout(300)
    shoot(name)
    root = tab.page.locator("#ziplora_root")
    assert root.evaluate("root => root.scrollWidth - root.clientWidth") <= 0
    box = root.bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= NARROW["width"]
    tab.page.set_viewport_size(WIDE)  # type: ignore[arg-type]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of two pictures, in grey levels of 255."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def test_every_pair_is_merged_drawn_and_one_that_fails_is_named(
    matrix: Tab, txt2img: Txt2img, webui: Webui, shoot: Shoot
) -> None:
    before = txt2img.draw(OTHER_LORA)
    show_tab(matrix.page, "ZipLoRA")
    matrix.method("direct")
    styles = matrix.text("matrix_styles").input_value()
    matrix.text("matrix_styles").fill(f"{styles}\n{FOR_SD15}")
    matrix.text("matrix_names").fill("w1 {subject} {style}")
    matrix.press("matrix_check")
    plan = matrix.page.locator("#ziplora_matrix_plan [data-matrix=plan]")
    expect(plan).to_contain_text("4 of 6 pairs can be merged")
    matrix.page.locator("#ziplora_matrix_sheet input").check()
    matrix.press("matrix_run")
    expect(matrix.page.locator("#ziplora_matrix_run")).to_be_disabled()
    box = matrix.outcome("done")
    expect(box).to_contain_text("4 of 6 pairs merged")
    matrix.idle()
    assert states(matrix) == ["done", "done", "refused"] * 2
    sheet = box.locator("img.ziplora-sheet")
    assert sheet.evaluate("image => image.complete && image.naturalWidth > 3 * 64")
    shoot("webui-matrix")
    narrow(matrix, shoot, "webui-matrix-390")
    names = [
        f"w1 {subject} {style}" for subject in (SUBJECT, OTHER_SUBJECT) for style in (STYLE, OTHER_STYLE)
    ]
    assert {f"{name}.safetensors" for name in names} <= webui.files()
    assert set(names) <= set(txt2img.cards())
    merged = txt2img.draw(f"{PROMPT} <lora:{names[3]}:1>")
    both = txt2img.draw(f"{PROMPT} <lora:{OTHER_SUBJECT}:1> <lora:{OTHER_STYLE}:1>")
    other = txt2img.draw(f"{PROMPT} <lora:{names[0]}:1>")
    assert distance(merged, both) < 1 < distance(merged, other)
    assert np.array_equal(txt2img.draw(OTHER_LORA), before)


def test_interrupt_keeps_what_is_finished_and_generate_works_afterwards(
    matrix: Tab, txt2img: Txt2img, webui: Webui
) -> None:
    picture = txt2img.draw(OTHER_LORA)
    show_tab(matrix.page, "ZipLoRA")
    for name, value in (("steps", 1), ("width", 64), ("height", 64)):
        matrix.set_number(name, value)
    matrix.page.locator("#ziplora_advanced").get_by_text("Advanced settings").click()
    for name, value in (("sampling_steps", 2), ("trajectories", 1)):
        matrix.set_number(name, value)
    matrix.text("matrix_styles").fill(f"{STYLE} | a bell icon in szn style")
    matrix.text("matrix_names").fill("w2 {subject}")
    matrix.press("matrix_run")
    matrix.bar("2 of 2")
    matrix.press("interrupt")
    matrix.outcome("done", "1 of 2 pairs merged")
    matrix.idle()
    assert states(matrix) == ["done", "interrupted"]
    assert f"w2 {SUBJECT}.safetensors" in webui.files()
    assert f"w2 {OTHER_SUBJECT}.safetensors" not in webui.files()
    recent = matrix.page.locator("#ziplora_recent button")
    matrix.press("subject_refresh")
    expect(recent.first).to_have_text(f"{SUBJECT} × {STYLE}")
    assert np.array_equal(txt2img.draw(OTHER_LORA), picture)


def explained(tab: Tab, name: str) -> Locator:
    box = tab.page.locator(f'#ziplora_explained [data-explained="{name}"]').first
    expect(box).to_be_visible(timeout=MERGE_MS)
    return box


def test_a_merge_explains_itself_and_again_after_reload_ui(tab: Tab, webui: Webui, shoot: Shoot) -> None:
    tab.page.locator("#ziplora_report input").check()
    merge(tab, "to explain", updates=5)
    box = explained(tab, "to explain")
    expect(box).to_contain_text(SUBJECT)
    words = box.inner_text()
    expect(box.locator(".ziplora-histogram svg")).to_have_count(2)
    tables = box.locator(".ziplora-heat")
    expect(tables).to_have_count(5)
    tables.first.locator("summary").click()
    expect(tables.first.locator("tbody tr").first).to_contain_text("input")
    shoot("webui-explain")
    narrow(tab, shoot, "webui-explain-390")
    told = json.loads((webui.loras / "to explain.report.json").read_text(encoding="utf-8"))
    assert len(told["history"]) == 5
    settle(tab.page)
    reload_ui(tab.page, webui)
    show_tab(tab.page, "ZipLoRA")
    tab.page.locator("#ziplora_explaining").get_by_text("Explain", exact=True).click()
    tab.page.locator("#ziplora_explain input").click()
    tab.page.locator("#ziplora_explain li, ul.options li").filter(has_text="to explain").first.click()
    again = explained(tab, "to explain").inner_text()
    assert again.splitlines()[:3] == words.splitlines()[:3]


def options(tab: Tab) -> list[str]:
    return tab.page.locator("#ziplora_subject li .ziplora-option-name").all_inner_texts()


def test_the_pickers_search_grey_out_and_show_what_is_picked(tab: Tab, webui: Webui, shoot: Shoot) -> None:
    Image.new("RGB", (512, 768), "teal").save(webui.loras / f"{SUBJECT}.preview.png")
    known = tab.page.locator("#ziplora_catalog [data-known='1'][data-pending='0']")
    known.wait_for(state="attached", timeout=MERGE_MS)
    box = tab.page.locator("#ziplora_subject input")
    box.click()
    expect(tab.page.locator("#ziplora_subject li").first).to_be_visible()
    usable, last = options(tab), tab.page.locator("#ziplora_subject li").last
    assert {SUBJECT, STYLE} <= set(usable) and usable[-1] == FOR_SD15
    expect(last).to_have_class("ziplora-unusable")
    expect(last).to_contain_text("for Stable Diffusion 1.x")
    box.fill("ROCKET minixl")
    assert options(tab)[0] == SUBJECT
    expect(tab.page.locator("#ziplora_subject li", has_text=SUBJECT).first.locator("img")).to_have_count(1)
    shoot("webui-pickers")
    box.press("Enter")
    facts = tab.page.locator("#ziplora_subject_facts").first
    expect(facts).to_contain_text(f"rank {inspect_header(webui.loras / f'{SUBJECT}.safetensors').rank}")
    picture = facts.locator("img")
    assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
    box.click()
    box.fill("made sd15")
    box.press("Enter")
    expect(tab.page.locator("#ziplora_subject_facts .ziplora-bad")).to_contain_text(
        "not for Stable Diffusion XL"
    )
    narrow(tab, shoot, "webui-pickers-390")


def test_swap_and_a_recent_pair_after_reload_ui(tab: Tab, webui: Webui) -> None:
    tab.prepare("recent pair", updates=1)
    tab.method("direct")
    tab.text("style_prompt").fill("a dog icon in szn style")
    tab.press("generate")
    tab.outcome("done")
    tab.idle()
    tab.press("swap")
    expect(tab.page.locator("#ziplora_subject input").first).to_have_value(STYLE)
    expect(tab.text("subject_prompt")).to_have_value("a dog icon in szn style")
    settle(tab.page)
    reload_ui(tab.page, webui)
    show_tab(tab.page, "ZipLoRA")
    button = tab.page.locator("#ziplora_recent button").first
    expect(button).to_have_text(f"{SUBJECT} × {STYLE}")
    button.click()
    expect(tab.page.locator("#ziplora_subject input").first).to_have_value(SUBJECT)
    expect(tab.text("style_prompt")).to_have_value("a dog icon in szn style")


def test_preflight_follows_the_settings(tab: Tab) -> None:
    preflight = tab.page.locator("#ziplora_preflight [data-check]")
    tab.pick("subject", SUBJECT)
    tab.pick("style", STYLE)
    expect(preflight).to_contain_text("beside the checkpoint")
    tab.method("direct")
    expect(preflight).to_contain_text("nothing is learnt")
    expect(preflight).not_to_contain_text("beside the checkpoint")


def test_another_browser_shows_the_merge_that_runs_and_can_stop_it(
    tab: Tab, webui: Webui, browser: Browser
) -> None:
    before = webui.files()
    start_long(tab, f"begun elsewhere {LONG}")
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.add_init_script(COUNT_SOCKETS)
    page.goto(webui.url)
    page.locator("#txt2img_prompt textarea").wait_for(timeout=60_000)
    show_tab(page, "ZipLoRA")
    other = Tab(page)
    expect(page.locator("#ziplora_interrupt")).to_be_visible()
    other.press("interrupt")
    other.outcome("interrupted", "othing was written")
    other.idle()
    tab.outcome("interrupted")
    tab.idle()
    settle(page)
    context.close()
    assert webui.files() == before


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_panel_fits_a_phone(tab: Tab, webui: Webui, shoot: Shoot, theme: str) -> None:
    tab.page.goto(f"{webui.url}?__theme={theme}")
    tab.page.locator("#txt2img_prompt textarea").wait_for(timeout=60_000)
    show_tab(tab.page, "ZipLoRA")
    expect(tab.page.locator("#ziplora_generate")).to_be_visible()
    for panel in PANELS:
        tab.page.locator(f"#ziplora_{panel} > .label-wrap, #ziplora_{panel} .label-wrap").first.click()
    assert tab.page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
    narrow(tab, shoot, f"webui-panels-390-{theme}")
    open_page(tab.page, webui)
