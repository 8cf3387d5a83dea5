"""The compare panel: its values, what it shows of a comparison, and where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.errors import ConfigError
from lib_ziplora.hosts import Sampler
from lib_ziplora.pictures.comparison import CompareRequest
from lib_ziplora.pipeline.merge import run
from lib_ziplora.ui import tab
from lib_ziplora.ui.comparing import COMPARE_VALUES, REMEMBERED, Comparisons, compare_request
from lib_ziplora.ui.handlers import Desk

from ..support.drawing_host import DrawingHost
from ..support.pico_host import module_names, write_kohya
from .fake_host import FakeEngine, FakeHost

PROMPTS = "a sks dog\na cat in ink style\na sks dog in ink style"


@pytest.fixture
def host(tmp_path: Path) -> DrawingHost:
    for seed, name in enumerate(("dog", "ink")):
        write_kohya(tmp_path / f"{name}.safetensors", module_names(), seed=seed)
    host = DrawingHost(tmp_path)
    loras = LoraInput("dog", "a sks dog"), LoraInput("ink", "a cat in ink style", role="style")
    run(MergeRequest(loras, "merged", settings=MergeSettings(method="direct")), host)
    return host


@pytest.fixture
def comparisons(host: DrawingHost) -> Comparisons:
    return Comparisons(Desk(host))


def values(**changed: Any) -> list[Any]:
    base = {
        "compare_merge": "merged",
        "compare_prompts": PROMPTS,
        "compare_seeds": 1.0,
        "compare_seed": 0.0,
        "compare_sampler": "first",
        "compare_steps": 2.0,
        "compare_guidance": 5,
        "compare_width": 0,
        "compare_height": 64.0,
        "compare_negative": " bad ",
        "compare_preview": False,
    }
    assert set(changed) <= set(base) == set(COMPARE_VALUES)
    return [{**base, **changed}[name] for name in COMPARE_VALUES]


def draw(comparisons: Comparisons, **changed: Any) -> tuple[str, Any]:
    ticket, refused = comparisons.prepare(values(**changed))
    assert refused == ""
    return ticket, comparisons.work(ticket, values(**changed))


def test_the_values_reach_the_request() -> None:
    request = compare_request(values(compare_prompts=" a dog \n\n a cat", compare_seed=9.0))
    sampler = Sampler("first", 2, 5.0, 0, 64, "bad")
    assert request == CompareRequest("merged", ("a dog", "a cat"), 1, 9, sampler)


def test_empty_values_are_the_defaults() -> None:
    request = compare_request(["merged", *[None] * (len(COMPARE_VALUES) - 1)])
    assert request == CompareRequest("merged")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"compare_merge": None}, "No merged LoRA"),
        ({"compare_steps": 0}, "steps must lie"),
        ({"compare_seed": "x"}, "whole number"),
        ({"compare_seeds": float("inf")}, "whole number"),
    ],
    ids=str,
)
def test_bad_values_get_a_box_and_no_ticket(comparisons: Comparisons, changed: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        compare_request(values(**changed))
    ticket, box = comparisons.prepare(values(**changed))
    assert ticket == "" and says in box and 'data-outcome="error"' in box


def test_a_merge_offers_its_prompts(comparisons: Comparisons) -> None:
    assert comparisons.merges() == ["merged"] and comparisons.prompts("merged") == PROMPTS
    assert comparisons.prompts(None) == comparisons.prompts("gone") == ""


def test_a_comparison_ends_in_pictures_and_words(comparisons: Comparisons, host: DrawingHost) -> None:
    ticket, outcome = draw(comparisons)
    assert 'data-outcome="done"' in outcome.html and "Drew 12 of 12 pictures" in outcome.html
    assert outcome.tag == "<lora:merged:1>"
    gallery = comparisons.gallery(ticket)
    assert len(gallery) == 13 and gallery[0][1] == "All pictures"
    assert gallery[1][1].startswith("subject alone · a sks dog") and len(host.drawn) == 12
    assert not list(host.folder.glob("*.png"))


def test_an_interrupted_one_shows_what_there_is(comparisons: Comparisons, host: DrawingHost) -> None:
    host.before_picture = lambda number: setattr(host, "stop", number == 3)
    ticket, outcome = draw(comparisons)
    assert 'data-outcome="interrupted"' in outcome.html and "Drew 2 of 12" in outcome.html
    assert len(comparisons.gallery(ticket)) == 3


def test_what_nobody_foresaw_is_logged_and_named(
    comparisons: Comparisons, host: DrawingHost, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_number: int) -> None:
        raise KeyError("secret detail")

    host.before_picture = fails
    ticket, outcome = draw(comparisons)
    assert "KeyError" in outcome.html and "secret" not in outcome.html and "secret detail" in caplog.text
    assert comparisons.gallery(ticket) == []


def test_stopping_says_that_pictures_stay(comparisons: Comparisons, host: DrawingHost) -> None:
    desk, said = comparisons._desk, []
    ticket, _ = comparisons.prepare(values())
    host.before_picture = lambda _number: said.extend([desk.interrupt(ticket), desk.finish_now(ticket)])
    comparisons.work(ticket, values())
    assert said and all("pictures that are finished stay" in sentence for sentence in said)


def test_only_the_newest_pictures_are_kept(comparisons: Comparisons) -> None:
    tickets = [draw(comparisons)[0] for _ in range(REMEMBERED + 1)]
    assert comparisons.gallery(tickets[0]) == [] and comparisons.gallery(tickets[-1])


def test_the_merges_picture_becomes_its_preview_unless_the_user_has_one(
    comparisons: Comparisons, host: DrawingHost
) -> None:
    _, outcome = draw(comparisons, compare_preview=True)
    preview = host.folder / "merged.preview.png"
    assert "merged.preview.png" in outcome.html
    with Image.open(preview) as image:
        assert image.info["parameters"].startswith("a sks dog in ink style <lora:merged:1>")
    preview.write_bytes(b"the user's")
    _, outcome = draw(comparisons, compare_preview=True)
    assert "picture of your own" in outcome.html and preview.read_bytes() == b"the user's"


def test_a_chosen_picture_becomes_the_preview(comparisons: Comparisons, host: DrawingHost) -> None:
    ticket, _ = draw(comparisons)
    for chosen, expected in (
        (2, comparisons.gallery(ticket)[2][0]),
        (-1, comparisons.gallery(ticket)[12][0]),
    ):
        assert "merged.preview.png is the preview" in comparisons.use_as_preview(ticket, chosen, False)
        with Image.open(host.folder / "merged.preview.png") as image:
            assert image.getpixel((0, 0)) == expected.getpixel((0, 0))
    assert "too large for a card" in comparisons.use_as_preview(ticket, 0, False)
    assert "Press Compare first" in comparisons.use_as_preview(ticket, 13, False)
    assert "Press Compare first" in comparisons.use_as_preview("", -1, False)


def labels(page: Any) -> list[str]:
    return [block.label for block in page.blocks.values() if getattr(block, "label", None)]


def component(page: Any, name: str) -> Any:
    return next(b for b in page.blocks.values() if getattr(b, "elem_id", None) == f"ziplora_{name}")


def test_the_panel_begins_with_the_hosts_own_sampler(host: DrawingHost) -> None:
    page = tab.build(host)
    assert component(page, "compare_sampler").value == "first"
    assert component(page, "compare_steps").value == host.default_sampler().steps
    assert len(labels(page)) == len(set(labels(page)))
    assert isinstance(component(page, "compare_gallery"), gr.Gallery)


def test_a_host_that_can_not_draw_has_no_panel() -> None:
    host = FakeHost()
    page = tab.build(host, Desk(host, FakeEngine().engine()))
    assert not [
        b for b in page.blocks.values() if str(getattr(b, "elem_id", "")).startswith("ziplora_compar")
    ]
