"""The panels around a merge in a real WebUI: the check, curves, strengths, more LoRAs, the settings page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from lib_ziplora.config import setting_defaults, setting_fields
from lib_ziplora.lora.io.inspect import inspect_header
from lib_ziplora.lora.io.metadata import read_recipe
from lib_ziplora.ui.defaults import option_key

from .pages import MERGE_MS, STYLE, SUBJECT, Tab
from .webui import FOR_SD15, PRESENT, REASON, Webui
from .webui_pages import (
    OTHER_LORA,
    PROMPT,
    Txt2img,
    apply_settings,
    merge,
    open_page,
    open_settings,
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
THIRD = "minixl_subject_crown"
Shoot = Callable[[str], None]


@pytest.fixture
def page(blank_page: Page, webui: Webui) -> Iterator[Page]:
    with visit(blank_page, webui) as page:
        yield page


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of two pictures, in grey levels of 255."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def tags(*strengths: tuple[str, float]) -> str:
    return " ".join([PROMPT, *(f"<lora:{name}:{strength:g}>" for name, strength in strengths)])


def test_a_pair_is_looked_at_while_a_lora_is_baked_in(
    tab: Tab, txt2img: Txt2img, webui: Webui, shoot: Shoot
) -> None:
    picture, files = txt2img.draw(OTHER_LORA), webui.files()
    show_tab(tab.page, "ZipLoRA")
    preflight = tab.page.locator("#ziplora_preflight [data-check]")
    tab.pick("subject", SUBJECT)
    expect(preflight).to_have_count(0)
    tab.pick("style", STYLE)
    expect(preflight).to_have_attribute("data-check", "fine")
    expect(preflight).to_contain_text(f"{SUBJECT} + {STYLE}")
    layers = inspect_header(webui.loras / f"{SUBJECT}.safetensors").layers
    expect(preflight).to_contain_text(f"{layers} common")
    preflight.locator(".ziplora-heat summary").click()
    cells = preflight.locator(".ziplora-heat tbody td").all_inner_texts()
    overlaps = [float(cell) for cell in cells if cell.strip()]
    assert overlaps and all(0 <= overlap <= 1 for overlap in overlaps), cells
    colours = preflight.locator(".ziplora-heat tbody td").evaluate_all(
        "cells => cells.map(cell => getComputedStyle(cell).backgroundColor)"
    )
    assert len(set(colours)) > 2, colours
    assert within(preflight, tab.page.locator("#ziplora_body"))
    shoot("preflight")
    tab.text("output").fill(SUBJECT)
    tab.press("check")
    expect(preflight).to_have_attribute("data-check", "problems")
    expect(preflight.locator(".ziplora-problems")).to_contain_text(SUBJECT)
    tab.pick("style", FOR_SD15)
    expect(preflight.locator(".ziplora-problems")).to_contain_text(FOR_SD15)
    shoot("problems")
    assert webui.files() == files
    assert np.array_equal(txt2img.draw(OTHER_LORA), picture)


def within(inner: Locator, outer: Locator) -> bool:
    """Whether nothing of one box stands out of another at its sides."""
    a, b = inner.bounding_box(), outer.bounding_box()
    assert a and b
    overflow = inner.evaluate("box => box.scrollWidth - box.clientWidth")
    return overflow <= 0 and a["x"] >= b["x"] and a["x"] + a["width"] <= b["x"] + b["width"]


def test_check_says_what_is_missing(tab: Tab) -> None:
    tab.press("check")
    expect(tab.page.locator("#ziplora_preflight [data-outcome=error]")).to_contain_text(
        "No subject is chosen"
    )


def test_curves_grow_come_back_with_the_page_and_stay(tab: Tab, webui: Webui, shoot: Shoot) -> None:
    start_long(tab, "with curves")
    curves = grown_curves(tab)
    expect(curves).to_contain_text("subject")
    expect(tab.page.locator("#ziplora_preflight [data-check]")).to_have_count(0)
    expect(tab.page.locator("#ziplora_reexport")).to_be_disabled()
    shoot("curves")
    open_page(tab.page, webui)
    show_tab(tab.page, "ZipLoRA")
    grown_curves(tab)
    tab.press("skip")
    tab.outcome("done")
    tab.idle()
    expect(tab.page.locator("#ziplora_reexport")).to_be_enabled()
    expect(curves.locator("svg")).to_have_count(3)


def grown_curves(tab: Tab) -> Locator:
    """The curves, once they have been seen to change."""
    curves = tab.page.locator("#ziplora_curves").first
    expect(curves.locator("svg")).to_have_count(3, timeout=MERGE_MS)
    line = curves.locator("polyline").first
    before = line.get_attribute("points") or ""
    expect(line).not_to_have_attribute("points", before, timeout=MERGE_MS)
    return curves


def test_a_merge_is_adjusted_and_draws_what_its_parts_draw(
    tab: Tab, txt2img: Txt2img, webui: Webui, shoot: Shoot
) -> None:
    merge(tab, "to adjust", updates=20)
    expect(tab.page.locator("#ziplora_adjust_strength_2")).to_contain_text(f"Strength of {STYLE} (style)")
    expect(tab.page.locator("#ziplora_adjust_strength_3")).to_be_hidden()
    shoot("adjusting")
    export(tab, "to adjust_adjusted")  # the name that is filled in
    tab.set_number("adjust_strength_2", 0.4)
    tab.page.locator("#ziplora_adjust_split input").check()
    tab.text("adjust_output").fill("with less style")
    export(tab, "with less style")
    recipe = read_recipe(inspect_header(webui.loras / "with less style.safetensors").metadata)
    assert recipe["re_export"]["weights"] == [1.0, 0.4]
    assert {"to adjust_adjusted", "with less style"} <= set(txt2img.cards())
    whole = txt2img.draw(tags(("to adjust", 1)))
    assert np.array_equal(txt2img.draw(tags(("to adjust_adjusted", 1))), whole)
    steered = txt2img.draw(tags(("with less style", 1)))
    parts = txt2img.draw(tags(("with less style_subject", 1), ("with less style_style", 1)))
    assert distance(steered, parts) < 1 < distance(steered, whole)
    assert "Networks" not in txt2img.remarks() and "didn't match" not in webui.log()


def export(tab: Tab, name: str) -> None:
    """Press Re-export, and wait for the file."""
    tab.press("reexport")
    tab.outcome("done", f"{name}.safetensors")
    expect(tab.text("tag")).to_have_value(f"<lora:{name}:1> {PROMPT}")
    tab.idle()


def test_a_merge_is_adjusted_from_the_list_after_reload_ui(tab: Tab, webui: Webui) -> None:
    merge(tab, "adjusted later")
    settle(tab.page)
    reload_ui(tab.page, webui)
    show_tab(tab.page, "ZipLoRA")
    tab.page.locator("#ziplora_adjusting").get_by_text("Adjust strengths").click()
    tab.page.locator("#ziplora_adjust_source input").click()
    tab.page.locator("#ziplora_adjust_source li, ul.options li").filter(
        has_text="adjusted later"
    ).first.click()
    expect(tab.page.locator("#ziplora_adjust_strength_1")).to_contain_text(f"Strength of {SUBJECT} (subject)")
    expect(tab.text("adjust_output")).to_have_value("adjusted later_adjusted")
    files = webui.files()
    tab.text("adjust_output").fill("adjusted later")
    tab.press("reexport")
    tab.outcome("error", "adjusted later")
    tab.idle()
    assert webui.files() == files


def test_a_third_lora_is_merged_and_draws_what_three_tags_draw(
    tab: Tab, txt2img: Txt2img, webui: Webui, shoot: Shoot
) -> None:
    tab.prepare("three", updates=1)
    tab.method("direct")
    tab.page.locator("#ziplora_more").get_by_text("More LoRAs").click()
    tab.pick("third", THIRD)
    expect(tab.text("third_prompt")).not_to_have_value("")
    expect(tab.page.locator("#ziplora_preflight [data-check=fine]")).to_contain_text(THIRD)
    tab.set_number("third_weight", 0.4)
    shoot("three")
    tab.press("generate")
    tab.outcome("done", "three.safetensors")
    tab.idle()
    expect(tab.page.locator("#ziplora_adjust_strength_3")).to_contain_text(f"{THIRD} (subject 2)")
    ranks = [inspect_header(webui.loras / f"{name}.safetensors").rank for name in (SUBJECT, STYLE, THIRD)]
    assert inspect_header(webui.loras / "three.safetensors").rank == sum(ranks)
    merged = txt2img.draw(tags(("three", 1)))
    three = txt2img.draw(tags((SUBJECT, 1), (STYLE, 1), (THIRD, 0.4)))
    two = txt2img.draw(tags((SUBJECT, 1), (STYLE, 1)))
    assert distance(merged, three) < 1 < distance(merged, two)


def test_three_are_learnt_and_the_third_can_be_taken_out_again(
    tab: Tab, txt2img: Txt2img, webui: Webui
) -> None:
    tab.prepare("three learnt", updates=3)
    tab.page.locator("#ziplora_more").get_by_text("More LoRAs").click()
    tab.pick("third", THIRD)
    picture = txt2img.draw(OTHER_LORA)
    show_tab(tab.page, "ZipLoRA")
    tab.press("generate")
    tab.outcome("done", "three learnt.safetensors")
    tab.idle()
    loss = tab.page.locator("#ziplora_curves figure").first
    expect(loss).to_contain_text(re.compile(r"subject 1 .*style .*subject 2 "))
    tab.press("third_clear")
    expect(tab.text("third_prompt")).to_have_value("")
    merge(tab, "two again")
    sources = [inspect_header(webui.loras / f"{name}.safetensors").rank for name in (SUBJECT, STYLE)]
    assert inspect_header(webui.loras / "two again.safetensors").rank == sum(sources)
    assert np.array_equal(txt2img.draw(OTHER_LORA), picture)


def test_defaults_of_the_settings_page_take_effect_after_reload_ui(
    tab: Tab, webui: Webui, shoot: Shoot
) -> None:
    own, chosen = setting_defaults(), {"steps": 7, "precision": "bf16", "rank": "0.9"}
    before = {name: own[name] for name in chosen}
    assert shown(tab) == before
    store_defaults(tab, chosen)
    shoot("settings")
    show_tab(tab.page, "ZipLoRA")
    assert shown(tab) == before
    settle(tab.page)
    reload_ui(tab.page, webui)
    show_tab(tab.page, "ZipLoRA")
    assert shown(tab) == chosen
    tab.prepare("with other defaults", updates=7)
    tab.press("generate")
    tab.outcome("done", "with other defaults.safetensors")
    tab.idle()
    recipe = read_recipe(inspect_header(webui.loras / "with other defaults.safetensors").metadata)
    assert {name: recipe["settings"][name] for name in chosen} == chosen
    store_defaults(tab, before)
    settle(tab.page)
    reload_ui(tab.page, webui)
    show_tab(tab.page, "ZipLoRA")
    assert shown(tab) == before


def store_defaults(tab: Tab, values: dict[str, Any]) -> None:
    """Set defaults on the settings page, which has one for every setting of the tab."""
    open_settings(tab.page, "ZipLoRA")
    for name in setting_fields():
        expect(tab.page.locator(f"#setting_{option_key(name)}")).to_be_visible()
    place = {name: tab.page.locator(f"#setting_{option_key(name)}") for name in values}
    number = place["steps"].locator("input[type=number]")
    number.fill(str(values["steps"]))
    number.press("Tab")
    place["precision"].get_by_text(values["precision"], exact=True).click()
    place["rank"].locator("textarea, input").fill(values["rank"])
    changed = apply_settings(tab.page) & {option_key(name) for name in setting_fields()}
    assert changed == {option_key(name) for name in values}


def shown(tab: Tab) -> dict[str, Any]:
    """What the tab's controls hold."""
    return {
        "steps": int(tab.page.locator("#ziplora_steps input[type=number]").input_value()),
        "precision": tab.page.locator("#ziplora_precision input:checked").input_value(),
        "rank": tab.text("rank").input_value(),
    }
