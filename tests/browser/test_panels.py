"""The panels around a merge, clicked through: strengths, more LoRAs, the check, the curves."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from lib_ziplora.lora.io.inspect import inspect_header
from lib_ziplora.lora.io.metadata import read_recipe

from .pages import MERGE_MS, STYLE, SUBJECT, Tab
from .serving import Server

pytestmark = pytest.mark.browser


def test_a_merge_is_adjusted_and_written_again(tab: Tab, server: Server) -> None:
    tab.prepare("to adjust", updates=1)
    tab.press("generate")
    tab.outcome("done")
    tab.idle()
    strength = tab.page.locator("#ziplora_adjust_strength_2")
    expect(strength).to_contain_text(f"Strength of {STYLE} (style)")
    expect(tab.page.locator("#ziplora_adjust_strength_3")).to_be_hidden()
    expect(tab.text("adjust_output")).to_have_value("to adjust_adjusted")
    tab.set_number("adjust_strength_2", 0.5)
    tab.press("reexport")
    tab.outcome("done", "to adjust_adjusted.safetensors")
    expect(tab.text("tag")).to_have_value("<lora:to adjust_adjusted:1> a sks icon in szn style")
    expect(tab.text("adjust_output")).to_have_value(
        "to adjust_adjusted_adjusted"
    )  # the panel follows the new file
    tab.idle()
    header = inspect_header(server.loras / "to adjust_adjusted.safetensors")
    assert read_recipe(header.metadata)["re_export"]["weights"] == [1.0, 0.5]
    tab.page.reload()
    tab.idle()
    tab.page.locator("#ziplora_adjusting").get_by_text("Adjust strengths").click()
    box = tab.page.locator("#ziplora_adjust_source input")
    box.click()
    tab.page.locator("#ziplora_adjust_source li, ul.options li").filter(
        has_text="to adjust_adjusted"
    ).first.click()
    expect(strength).to_contain_text(f"Strength of {STYLE} (style)")
    expect(tab.text("adjust_output")).to_have_value("to adjust_adjusted_adjusted")
    tab.text("adjust_output").fill("to adjust")
    tab.press("reexport")
    tab.outcome("error", "to adjust")
    tab.idle()


def test_a_third_lora_is_merged_and_can_be_taken_out_again(tab: Tab, server: Server) -> None:
    third = "minixl_subject_crown"
    tab.prepare("three", updates=1)
    tab.method("direct")
    tab.page.locator("#ziplora_more").get_by_text("More LoRAs").click()
    tab.pick("third", third)
    expect(tab.text("third_prompt")).not_to_have_value("")
    tab.set_number("third_weight", 0.4)
    tab.press("generate")
    tab.outcome("done", "three.safetensors")
    tab.idle()
    expect(tab.page.locator("#ziplora_adjust_strength_3")).to_contain_text(f"{third} (subject 2)")
    names = (SUBJECT, STYLE, third)
    ranks = [inspect_header(server.loras / f"{name}.safetensors").rank for name in names]
    assert inspect_header(server.loras / "three.safetensors").rank == sum(ranks)
    tab.press("third_clear")
    expect(tab.text("third_prompt")).to_have_value("")
    tab.text("output").fill("two of three")
    tab.press("generate")
    tab.outcome("done", "two of three.safetensors")
    assert inspect_header(server.loras / "two of three.safetensors").rank == sum(ranks[:2])


def test_a_pair_is_looked_at_as_soon_as_it_is_chosen(tab: Tab, server: Server) -> None:
    preflight = tab.page.locator("#ziplora_preflight [data-check]")
    tab.pick("subject", SUBJECT)
    expect(preflight).to_have_count(0)
    tab.pick("style", STYLE)
    expect(preflight).to_have_attribute("data-check", "fine")
    expect(preflight).to_contain_text(f"{SUBJECT} + {STYLE}")
    layers = inspect_header(server.loras / f"{SUBJECT}.safetensors").layers
    expect(preflight).to_contain_text(f"{layers} common")
    preflight.locator(".ziplora-heat summary").click()
    expect(preflight.locator(".ziplora-heat tbody tr").first).to_contain_text("input")
    tab.page.set_viewport_size({"width": 390, "height": 900})
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.page.set_viewport_size({"width": 1280, "height": 1000})
    tab.pick("style", "minixl_style_picon")
    expect(preflight).to_contain_text("picon")
    tab.text("output").fill(SUBJECT)
    tab.press("check")
    expect(preflight).to_have_attribute("data-check", "problems")
    expect(preflight).to_contain_text(f"{SUBJECT}")


def test_check_says_what_is_missing(tab: Tab) -> None:
    tab.press("check")
    expect(tab.page.locator("#ziplora_preflight [data-outcome=error]")).to_contain_text(
        "No subject is chosen"
    )


def test_curves_grow_while_it_runs_and_stay(tab: Tab) -> None:
    tab.prepare("with curves", updates=1000)
    tab.press("generate")
    curves = tab.page.locator("#ziplora_curves").first
    expect(curves.locator("svg")).to_have_count(3, timeout=MERGE_MS)
    expect(tab.page.locator("#ziplora_preflight [data-check]")).to_have_count(0)
    expect(curves).to_contain_text("subject")
    line = curves.locator("polyline").first
    expect(tab.page.locator("#ziplora_reexport")).to_be_disabled()
    before = line.get_attribute("points") or ""
    expect(line).not_to_have_attribute("points", before, timeout=MERGE_MS)
    tab.press("skip")
    tab.outcome("done")
    tab.idle()
    expect(tab.page.locator("#ziplora_reexport")).to_be_enabled()
    expect(tab.page.locator("#ziplora_bar [role=progressbar]")).to_have_count(0)
    expect(curves.locator("svg")).to_have_count(3)
