"""What the page shows is of now: pre-flight follows the settings, and every page shows what runs."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from .pages import STYLE, SUBJECT, Tab
from .serving import Server

pytestmark = pytest.mark.browser


def test_preflight_follows_the_settings(tab: Tab) -> None:
    preflight = tab.page.locator("#ziplora_preflight [data-check]")
    tab.pick("subject", SUBJECT)
    tab.pick("style", STYLE)
    expect(preflight).to_contain_text("unknown until a merge of this sample size")
    expect(preflight).to_contain_text("beside the checkpoint")
    tab.method("direct")
    expect(preflight).to_contain_text("nothing is learnt")
    expect(preflight).not_to_contain_text("beside the checkpoint")
    size = preflight.locator("tr", has_text="File size")
    before = size.inner_text()
    tab.page.locator("#ziplora_precision").get_by_text("fp32", exact=True).click()
    expect(size).not_to_have_text(before)
    tab.text("output").fill(SUBJECT)
    expect(preflight).to_have_attribute("data-check", "problems")
    expect(tab.page.locator(".ziplora-outdated")).to_have_count(0)


def test_an_outdated_preflight_looks_it_until_it_is_repeated(tab: Tab) -> None:
    tab.pick("subject", SUBJECT)
    tab.pick("style", STYLE)
    expect(tab.page.locator("#ziplora_preflight [data-check]")).to_have_count(1)
    tab.page.evaluate("ziplora.outdated()")
    assert tab.page.locator("#ziplora_preflight.ziplora-outdated[aria-busy=true]").count() == 1
    expect(tab.page.locator(".ziplora-outdated")).to_have_count(0)
    expect(tab.page.locator("#ziplora_preflight [data-check=fine]")).to_have_count(1)


def test_no_preflight_is_shown_once_a_merge_has_begun(tab: Tab) -> None:
    tab.prepare("begun at once", updates=1000)
    expect(tab.page.locator("#ziplora_preflight [data-check]")).to_have_count(1)
    tab.set_number("steps", 999)
    tab.press("generate")
    tab.bar("Update 4")  # by now every answer that was under way has come
    expect(tab.page.locator("#ziplora_preflight [data-check]")).to_have_count(0)
    tab.press("interrupt")
    tab.outcome("interrupted")
    tab.idle()


def test_a_page_in_another_browser_shows_the_merge_that_runs(
    tab: Tab, server: Server, browser: Browser
) -> None:
    before = server.files()
    tab.prepare("begun elsewhere", updates=1000)
    tab.press("generate")
    tab.bar("Update")
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    other = Tab(context.new_page())
    other.page.goto(server.url)
    expect(other.page.locator("#ziplora_interrupt")).to_be_visible()
    other.bar("Update")
    other.press("interrupt")
    other.outcome("interrupted", "othing was written")
    other.idle()
    tab.outcome("interrupted")
    tab.idle()
    context.close()
    assert server.files() == before


def test_a_page_without_anything_that_runs_is_idle(tab: Tab) -> None:
    expect(tab.page.locator("#ziplora_bar [data-state=idle]")).to_have_count(1)
    tab.idle()
