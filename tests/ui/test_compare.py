"""Panel Compare: what it shows of a comparison, and the preview on the merge's card."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest
from PIL import Image

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.jobs.queue import WITH_PICTURES
from lib_ziplora.pipeline.merge import run

from .conftest import TabHost
from .page import Page, words

PROMPTS = "a sks dog\na cat in ink style\na sks dog in ink style"
PICTURES = 12


@pytest.fixture
def page(host: TabHost, page: Page) -> Page:
    """The tab after a merge was picked in the panel."""
    loras = LoraInput("dog", "a sks dog"), LoraInput("ink", "a cat in ink style", role="style")
    run(MergeRequest(loras, "merged", settings=MergeSettings(method="direct")), host)
    page.set(compare_source="merged", compare_preview=False)
    page.fire("compare_source", "input")
    return page


def captions(page: Page) -> list[str]:
    return [caption for _, caption in page["compare_gallery"]]


def test_the_panel_begins_with_the_hosts_own_sampler(page: Page, host: TabHost) -> None:
    assert page["compare_sampler"] == "first"
    assert page["compare_steps"] == host.default_sampler().steps
    assert isinstance(page.component("compare_gallery"), gr.Gallery)


def test_a_merge_offers_its_prompts(page: Page) -> None:
    assert page["compare_prompts"] == PROMPTS
    page.set(compare_source="gone")
    page.fire("compare_source", "input")
    assert page["compare_prompts"] == ""


def test_a_comparison_ends_in_pictures_and_words(page: Page, host: TabHost) -> None:
    page.run("compare")
    assert 'data-outcome="done"' in page["compare_result"] and page["result"] == ""
    assert f"Drew {PICTURES} of {PICTURES} pictures of merged" in words(page["compare_result"])
    assert len(captions(page)) == PICTURES + 1 and captions(page)[0] == "All pictures"
    assert captions(page)[1].startswith("subject alone · a sks dog") and len(host.drawn) == PICTURES
    assert not list(host.folder.glob("*.png"))


def test_without_a_merge_it_says_so(page: Page) -> None:
    page.set(compare_source=None)
    assert page.start("compare") == ""
    assert "No merged LoRA is chosen" in page["compare_result"] and page["result"] == ""


def test_an_interrupted_one_shows_what_there_is(page: Page, host: TabHost) -> None:
    def stop(number: int) -> None:
        if number == 3:
            page.fire("interrupt")

    host.before_picture = stop
    page.run("compare")
    assert 'data-outcome="interrupted"' in page["compare_result"]
    assert "Drew 2 of 12" in words(page["compare_result"]) and len(captions(page)) == 3
    assert "pictures that are finished stay" in page["bar"] or page["note"] == ""


def test_what_nobody_foresaw_is_logged_and_named(
    page: Page, host: TabHost, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_number: int) -> None:
        raise KeyError("secret detail")

    host.before_picture = fail
    page.run("compare")
    assert "KeyError" in page["compare_result"] and "secret" not in page["compare_result"]
    assert "secret detail" in caplog.text and not page["compare_gallery"]


def test_only_the_newest_pictures_are_kept(page: Page) -> None:
    jobs = []
    for _ in range(WITH_PICTURES + 1):
        page.run("compare")
        jobs.append(page["job"])
    later = Page(page.service)
    for job, kept in ((jobs[0], False), (jobs[-1], True)):
        later.job = job
        later.fire("outcome")
        assert bool(later["compare_gallery"]) == kept


def test_the_merges_picture_becomes_its_preview_unless_the_user_has_one(page: Page, host: TabHost) -> None:
    page.set(compare_preview=True)
    page.run("compare")
    preview = host.folder / "merged.preview.png"
    assert "merged.preview.png" in page["compare_result"]
    with Image.open(preview) as image:
        assert image.info["parameters"].startswith("a sks dog in ink style <lora:merged:1>")
    preview.write_bytes(b"the user's")
    page.run("compare")
    assert "picture of your own" in page["compare_result"] and preview.read_bytes() == b"the user's"


@pytest.mark.parametrize(("chosen", "used"), [(2, 2), (-1, PICTURES)])
def test_a_chosen_picture_becomes_the_preview(page: Page, host: TabHost, chosen: int, used: int) -> None:
    page.run("compare")
    page.picture = chosen
    page.fire("compare_use")
    assert "merged.preview.png is now the preview" in words(page["compare_note"])
    expected: Any = page["compare_gallery"][used][0]
    with Image.open(host.folder / "merged.preview.png") as image:
        assert image.getpixel((0, 0)) == expected.getpixel((0, 0))


@pytest.mark.parametrize(("chosen", "told"), [(0, "too large for a card"), (13, "Press Compare first")])
def test_what_is_no_picture_is_refused(page: Page, host: TabHost, chosen: int, told: str) -> None:
    page.run("compare")
    page.picture = chosen
    page.fire("compare_use")
    assert told in words(page["compare_note"]) and not list(host.folder.glob("*.png"))


def test_before_a_comparison_there_is_nothing_to_choose(page: Page) -> None:
    page.fire("compare_use")
    assert "Press Compare first" in words(page["compare_note"])
