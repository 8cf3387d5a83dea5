"""Several subjects merged with several styles: looked at, merged, stopped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from .pages import STYLE, SUBJECT, Tab
from .serving import Server

pytestmark = pytest.mark.browser

OTHER_SUBJECT, OTHER_STYLE = "minixl_subject_crown", "minixl_style_picon"


@pytest.fixture
def matrix(tab: Tab) -> Tab:
    """The panel with two subjects and two styles that were picked."""
    tab.pick("subject", SUBJECT)
    tab.pick("style", STYLE)
    tab.page.locator("#ziplora_matrix").get_by_text("Matrix", exact=True).click()
    tab.press("matrix_add_subject")
    tab.press("matrix_add_style")
    expect(tab.text("matrix_styles")).to_have_value(f"{STYLE} | a bell icon in szn style")
    tab.pick("subject", OTHER_SUBJECT)
    tab.press("matrix_add_subject")
    expect(tab.text("matrix_subjects")).to_have_value(f"{SUBJECT} | a sks icon\n{OTHER_SUBJECT} | a sks icon")
    return tab


def states(tab: Tab, place: str = "result") -> list[str | None]:
    rows = tab.page.locator(f"#ziplora_{place} tr[data-state]")
    return [row.get_attribute("data-state") for row in rows.all()]


def test_pairs_are_looked_at_and_merged_and_one_that_can_not_be_is_named(
    matrix: Tab, server: Server, shoot: Callable[[str], None]
) -> None:
    matrix.method("direct")
    matrix.text("matrix_styles").fill(f"{STYLE} | a cat in szn style\nnot installed")
    matrix.text("matrix_names").fill("m1 {subject} {style}")
    matrix.press("matrix_check")
    plan = matrix.page.locator("#ziplora_matrix_plan [data-matrix=plan]")
    expect(plan).to_contain_text("2 of 4 pairs can be merged")
    expect(plan).to_contain_text("not installed")
    matrix.press("matrix_run")
    matrix.outcome("done", "2 of 4 pairs merged")
    matrix.idle()
    assert states(matrix) == ["done", "refused"] * 2
    for subject in (SUBJECT, OTHER_SUBJECT):
        assert f"m1 {subject} {STYLE}.safetensors" in server.files()
    matrix.press("matrix_check")
    expect(plan).to_contain_text("0 of 4")
    assert states(matrix, "matrix_plan") == ["exists", "refused"] * 2
    shoot("matrix")
    matrix.page.set_viewport_size({"width": 390, "height": 900})
    assert matrix.page.evaluate("document.documentElement.scrollWidth") <= 390
    matrix.page.set_viewport_size({"width": 1280, "height": 1000})
    matrix.text("matrix_styles").fill(f"{STYLE} | a cat in szn style")
    matrix.press("matrix_run")
    matrix.outcome("error", "exist already")


def test_interrupt_stops_the_rest_and_keeps_what_is_finished(matrix: Tab, server: Server) -> None:
    matrix.set_number("steps", 1)
    matrix.set_number("width", 64)
    matrix.set_number("height", 64)
    matrix.page.locator("#ziplora_advanced").get_by_text("Advanced settings").click()
    matrix.set_number("sampling_steps", 2)
    matrix.set_number("trajectories", 1)
    matrix.text("matrix_names").fill("m2_{subject}")
    matrix.press("matrix_run")
    expect(matrix.page.locator("#ziplora_matrix_run")).to_be_disabled()
    matrix.bar("2 of 2")
    matrix.press("interrupt")
    matrix.outcome("done", "1 of 2 pairs merged")
    matrix.idle()
    assert states(matrix) == ["done", "interrupted"]
    assert f"m2_{SUBJECT}.safetensors" in server.files()
    assert f"m2_{OTHER_SUBJECT}.safetensors" not in server.files()


def test_a_sheet_shows_every_merge(matrix: Tab, shoot: Callable[[str], None]) -> None:
    matrix.method("direct")
    matrix.text("matrix_names").fill("m3_{subject}")
    matrix.page.locator("#ziplora_matrix_sheet input").check()
    matrix.press("matrix_run")
    box = matrix.outcome("done")
    expect(box.locator("img.ziplora-sheet")).to_be_visible()
    assert matrix.page.evaluate("document.querySelector('.ziplora-sheet').naturalWidth") > 100
    shoot("matrix_sheet")


def test_an_empty_matrix_is_refused(tab: Tab) -> None:
    tab.page.locator("#ziplora_matrix").get_by_text("Matrix", exact=True).click()
    tab.press("matrix_run")
    tab.outcome("error", "No subject is chosen")
