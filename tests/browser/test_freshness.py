"""What the page shows is of now: the verdict follows the settings, and a new page shows what runs."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from .pages import MERGE_MS, STYLE, SUBJECT, Tab
from .serving import Server

pytestmark = pytest.mark.browser


def test_the_verdict_follows_the_settings(tab: Tab) -> None:
    verdict = tab.page.locator("#ziplora_verdict [data-check]")
    tab.pick("subject", SUBJECT)
    tab.pick("style", STYLE)
    expect(verdict).to_contain_text("unknown until a merge of this sample size")
    expect(verdict).to_contain_text("beside the checkpoint")
    tab.page.locator("#ziplora_method").get_by_text("direct", exact=True).click()
    expect(verdict).to_contain_text("nothing is learnt")
    expect(verdict).not_to_contain_text("beside the checkpoint")
    size = verdict.locator("tr", has_text="File size")
    before = size.inner_text()
    tab.page.locator("#ziplora_precision").get_by_text("fp32", exact=True).click()
    expect(size).not_to_have_text(before)
    tab.text("output").fill(SUBJECT)
    expect(verdict).to_have_attribute("data-check", "problems")
    expect(tab.page.locator(".ziplora-outdated")).to_have_count(0)


def test_a_verdict_that_is_outdated_looks_it_until_it_is_told_anew(tab: Tab) -> None:
    tab.pick("subject", SUBJECT)
    tab.pick("style", STYLE)
    expect(tab.page.locator("#ziplora_verdict [data-check]")).to_have_count(1)
    tab.page.evaluate("ziplora.outdated()")
    assert tab.page.locator("#ziplora_verdict.ziplora-outdated[aria-busy=true]").count() == 1
    expect(tab.page.locator(".ziplora-outdated")).to_have_count(0)
    expect(tab.page.locator("#ziplora_verdict [data-check=fine]")).to_have_count(1)


def test_no_verdict_is_told_once_a_merge_has_begun(tab: Tab) -> None:
    tab.prepare("begun at once", updates=1000)
    expect(tab.page.locator("#ziplora_verdict [data-check]")).to_have_count(1)
    tab.set_number("steps", 999)
    tab.press("generate")
    expect(tab.page.locator("#ziplora_bar").first).to_contain_text("Update", timeout=MERGE_MS)
    tab.page.wait_for_timeout(1000)
    expect(tab.page.locator("#ziplora_verdict [data-check]")).to_have_count(0)
    tab.press("interrupt")
    tab.outcome("interrupted")
    tab.idle()


def test_a_page_in_another_browser_shows_the_merge_that_runs(
    tab: Tab, server: Server, browser: Browser
) -> None:
    before = server.files()
    tab.prepare("begun elsewhere", updates=1000)
    tab.press("generate")
    expect(tab.page.locator("#ziplora_bar").first).to_contain_text("Update", timeout=MERGE_MS)
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    other = Tab(context.new_page())
    other.page.goto(server.url)
    expect(other.page.locator("#ziplora_interrupt")).to_be_visible()
    expect(other.page.locator("#ziplora_bar").first).to_contain_text("Update")
    other.press("interrupt")
    expect(other.outcome("interrupted")).to_contain_text("nothing was written", ignore_case=True)
    other.idle()
    tab.outcome("interrupted")
    tab.idle()
    context.close()
    assert server.files() == before


def test_a_page_without_anything_that_runs_is_idle(tab: Tab) -> None:
    expect(tab.page.locator("#ziplora_running [data-ticket='']")).to_have_count(1)
    tab.idle()
