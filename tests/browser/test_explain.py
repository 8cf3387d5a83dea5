"""What a merge did: the panel that explains it, and the report beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect

from .pages import MERGE_MS, STYLE, SUBJECT, Tab
from .serving import Server

pytestmark = pytest.mark.browser


def box_of(tab: Tab, name: str) -> Locator:
    box = tab.page.locator(f'#ziplora_explained [data-explained="{name}"]').first
    expect(box).to_be_visible(timeout=MERGE_MS)
    return box


def test_a_merge_is_explained_and_its_report_stands_alone(
    tab: Tab, server: Server, browser: Browser, tmp_path: Path, shoot: Callable[[str], None]
) -> None:
    tab.prepare("to explain", updates=3)
    tab.page.locator("#ziplora_report input").check()
    tab.press("generate")
    tab.outcome("done", "to explain.report.html")
    tab.idle()
    box = box_of(tab, "to explain")
    expect(box).to_contain_text(SUBJECT)
    expect(box.locator(".ziplora-histogram svg")).to_have_count(2)
    tables = box.locator(".ziplora-heat")
    expect(tables).to_have_count(5)
    tables.first.locator("summary").click()
    expect(tables.first.locator("tbody tr").first).to_contain_text("input")
    shoot("explain")
    tab.page.set_viewport_size({"width": 390, "height": 900})
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    with tab.page.expect_download() as download:
        box.locator("a[download]").click()
    assert download.value.suggested_filename == "to explain.report.html"
    page = tmp_path / "report.html"
    download.value.save_as(page)
    assert {"to explain.report.html", "to explain.report.json"} <= server.files()
    told = json.loads((server.loras / "to explain.report.json").read_text(encoding="utf-8"))
    assert len(told["history"]) == 3 and told["report"]["name"] == "to explain"
    opened = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme="dark")
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(page.as_uri())
    for words in (SUBJECT, STYLE, "What the merge did", "Block by block", "Mean travel"):
        expect(opened.locator("body")).to_contain_text(words)
    assert asked == [page.as_uri()]
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    opened.close()


def test_an_earlier_merge_is_picked_and_a_plain_sum_is_told_as_one(tab: Tab, server: Server) -> None:
    tab.prepare("plain", updates=1)
    tab.method("direct")
    tab.press("generate")
    tab.outcome("done")
    tab.idle()
    tab.page.reload()
    tab.idle()
    tab.page.locator("#ziplora_explaining").get_by_text("Explain", exact=True).click()
    tab.page.locator("#ziplora_explain input").click()
    tab.page.locator("#ziplora_explain li, ul.options li").filter(has_text="plain").first.click()
    expect(box_of(tab, "plain")).to_contain_text("plain sum: nothing was learnt")
    assert not [name for name in server.files() if name.startswith("plain.report")]
