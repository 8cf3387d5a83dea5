"""The tab clicked through: main path, interrupt, finish now, reload, wrong input, looks, requests."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from lib_ziplora.lora.io.inspect import inspect_header

from .pages import STYLE, SUBJECT, Tab
from .serving import Server

pytestmark = pytest.mark.browser


def test_merge_from_pick_to_tag(tab: Tab, server: Server, requests: list[str]) -> None:
    tab.pick("subject", SUBJECT)
    tab.pick("style", STYLE)
    expect(tab.text("subject_prompt")).to_have_value("a sks icon")
    expect(tab.text("output")).to_have_value(f"{SUBJECT}_x_{STYLE}")
    tab.prepare("rocket in cyber", updates=12)
    tab.press("generate")
    seen = tab.bar_values(enough=3)
    assert len(seen) >= 3 and seen == sorted(seen), f"the bar showed {seen}"
    tab.outcome("done", "rocket in cyber.safetensors")
    expect(tab.text("tag")).to_have_value("<lora:rocket in cyber:1> a sks icon in szn style")
    table = tab.page.locator("#ziplora_result table").first.inner_text()
    for row in ("Mean travel", "Similarity", "Held-out loss", "Rank"):
        assert re.search(rf"{row}.*\d", table), table
    tab.idle()
    written = inspect_header(server.loras / "rocket in cyber.safetensors")
    sources = [inspect_header(server.loras / f"{name}.safetensors") for name in (SUBJECT, STYLE)]
    assert written.rank == sum(source.rank for source in sources)
    for name in ("send", "send_img2img"):
        expect(tab.page.locator(f"#ziplora_{name}")).to_be_hidden()  # there is no txt2img here
    assert {urlsplit(url).hostname for url in requests if url.startswith(("http", "ws"))} == {"127.0.0.1"}


def test_the_merged_lora_can_be_picked_at_once(tab: Tab, server: Server) -> None:
    tab.prepare("picked again", updates=1)
    tab.press("generate")
    tab.outcome("done")
    tab.idle()
    tab.pick("subject", "picked again")


def test_interrupt_writes_nothing(tab: Tab, server: Server) -> None:
    before = server.files()
    tab.prepare("interrupted", updates=1000)
    tab.press("generate")
    assert len(tab.bar_values(enough=2)) == 2
    tab.press("interrupt")
    tab.outcome("interrupted", "othing was written")
    tab.idle()
    assert server.files() == before
    expect(tab.page.locator("#ziplora_tag")).to_be_hidden()


def test_finish_now_writes_what_there_is_even_after_a_reload(tab: Tab, server: Server) -> None:
    tab.prepare("finished early", updates=1000)
    tab.press("generate")
    tab.bar("Update 2")
    tab.page.reload()
    tab.bar("Update")
    tab.press("skip")
    tab.outcome("done", "finished early.safetensors")
    expect(tab.text("tag")).to_have_value("<lora:finished early:1> a sks icon in szn style")
    tab.idle()
    assert "finished early.safetensors" in server.files()


def test_same_lora_twice_is_refused_at_once(tab: Tab, server: Server) -> None:
    before = server.files()
    tab.prepare("twice", updates=1, style=SUBJECT)
    tab.press("generate")
    tab.outcome("error", "same file")
    tab.idle()
    assert server.files() == before


@pytest.mark.parametrize("name", ["../outside", SUBJECT, "con", ""])
def test_bad_output_names_are_refused_at_once(tab: Tab, server: Server, name: str) -> None:
    before = server.files()
    tab.prepare(name, updates=1)
    tab.press("generate")
    tab.outcome("error")
    tab.idle()
    assert server.files() == before


def test_swap_exchanges_everything(tab: Tab) -> None:
    tab.pick("subject", SUBJECT)
    tab.pick("style", STYLE)
    expect(tab.text("style_prompt")).not_to_have_value("")
    tab.text("subject_prompt").fill("my own words")
    style_prompt = tab.text("style_prompt").input_value()
    tab.press("swap")
    expect(tab.page.locator("#ziplora_subject input")).to_have_value(STYLE)
    expect(tab.text("style_prompt")).to_have_value("my own words")
    expect(tab.text("subject_prompt")).to_have_value(style_prompt)
    expect(tab.text("output")).to_have_value(f"{STYLE}_x_{SUBJECT}")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(tab: Tab, server: Server, width: int, theme: str) -> None:
    tab.page.set_viewport_size({"width": width, "height": 900})
    tab.page.goto(f"{server.url}?__theme={theme}")
    tab.idle()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
    expect(tab.page.locator("#ziplora_generate")).to_be_visible()
