"""Merges in a subfolder, renamed and deleted; which LoRAs go together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from .pages import STYLE, SUBJECT, Tab
from .serving import Server

pytestmark = pytest.mark.browser


def test_a_merge_in_a_subfolder_is_renamed_and_deleted_once_that_is_confirmed(
    tab: Tab, server: Server, shoot: Callable[[str], None]
) -> None:
    tab.prepare("merges/to rename", updates=1)
    tab.method("direct")
    tab.press("generate")
    tab.outcome("done", "to rename.safetensors")
    tab.idle()
    folder = server.loras / "merges"
    assert {path.name for path in folder.iterdir()} == {
        f"to rename.{end}" for end in ("safetensors", "ziplora", "json")
    }
    expect(tab.text("tag")).to_have_value("<lora:to rename:1> a sks icon in szn style")
    expect(tab.text("output")).to_have_value("merges/to rename_2")
    tab.text("adjust_output").fill("merges/renamed")
    tab.press("rename")
    about = tab.page.locator("#ziplora_adjust_about [data-gone]")
    expect(about).to_contain_text("to rename is renamed now")
    expect(tab.page.locator("#ziplora_explained [data-explained=renamed]")).to_be_visible()
    shoot("rename")
    asked: list[str] = []
    for answer in ("dismiss", "accept"):
        tab.page.once(
            "dialog", lambda dialog, answer=answer: (asked.append(dialog.message), getattr(dialog, answer)())
        )
        tab.press("remove")
        expect(about).to_contain_text("renamed now" if answer == "dismiss" else "Deleted")
    assert len(asked) == 2 and all("Delete renamed" in question for question in asked)
    assert not list(folder.iterdir())
    expect(tab.page.locator("#ziplora_explained").first).to_contain_text("Choose a merged LoRA")
    tab.page.set_viewport_size({"width": 390, "height": 900})
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    shoot("deleted-390")


def test_pairs_are_ranked_by_how_well_they_go_together(tab: Tab, shoot: Callable[[str], None]) -> None:
    tab.pick("subject", SUBJECT)
    tab.page.locator("#ziplora_matrix").get_by_text("Matrix", exact=True).click()
    tab.press("matrix_add_subject")
    tab.press("matrix_scan")
    rows = tab.page.locator("#ziplora_matrix_plan [data-matrix=scan] tbody tr")
    expect(rows.filter(has_text=STYLE)).to_contain_text("× chance")
    assert SUBJECT not in [row.locator("td").nth(1).inner_text() for row in rows.all()]
    shoot("scan")
    tab.page.set_viewport_size({"width": 390, "height": 900})
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    shoot("scan-390")


def test_a_recipe_is_read_from_one_page_and_pasted_into_another(
    tab: Tab, shoot: Callable[[str], None]
) -> None:
    tab.prepare("recipe", updates=3)
    tab.method("direct")
    tab.text("subject_prompt").fill("a sks icon of mine")
    tab.page.locator("#ziplora_more").get_by_text("More LoRAs and blocks").click()
    tab.text("style_blocks").fill("OUT09=0")
    tab.press("generate")
    tab.outcome("error", "blocks can't be 'OUT09=0'")
    tab.text("style_blocks").fill("BASE=0 OUT01=0.5")
    shoot("blocks")
    tab.press("generate")
    tab.outcome("done", "recipe.safetensors")
    tab.idle()
    box = tab.page.locator("#ziplora_explained [data-explained=recipe]").first
    box.get_by_text("Recipe", exact=True).click()
    recipe = box.locator("[data-recipe]").inner_text()
    shoot("recipe")
    tab.page.reload()
    tab.idle()
    tab.page.locator("#ziplora_explaining").get_by_text("Explain", exact=True).click()
    tab.text("recipe").fill(recipe)
    tab.press("recipe_fill")
    expect(tab.page.locator("#ziplora_subject input")).to_have_value(SUBJECT)
    expect(tab.text("subject_prompt")).to_have_value("a sks icon of mine")
    expect(tab.page.locator("#ziplora_style input")).to_have_value(STYLE)
    expect(tab.text("style_blocks")).to_have_value("BASE=0 OUT01=0.5")
    expect(tab.page.locator("#ziplora_steps input[type=number]")).to_have_value("3")
    expect(tab.page.locator("#ziplora_subject_facts .ziplora-facts").first).to_contain_text("rank")
    expect(tab.text("output")).to_have_value(f"{SUBJECT}_x_{STYLE}")
    shoot("recipe-pasted")
    tab.page.set_viewport_size({"width": 390, "height": 900})
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
