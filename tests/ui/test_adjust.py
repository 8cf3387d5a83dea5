"""Panel Adjust strengths over real files: what it shows of a merge, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_ziplora.jobs.service import Service
from lib_ziplora.ui.forms import STRENGTH_VALUES

from ..support.exports import again, host_of_three, merge, same_tensors
from ..support.small_merges import request
from .page import Page, words


@pytest.fixture
def host(tmp_path: Path) -> Any:
    host = host_of_three(tmp_path)
    merge(host, method="direct")
    return host


@pytest.fixture
def page(host: Any) -> Page:
    """The tab after ``merged`` was picked in the panel."""
    page = Page(Service(host))
    page.set(adjust_source="merged")
    page.fire("adjust_source", "input")
    return page


def test_only_loras_with_coefficients_are_offered(page: Page) -> None:
    assert [
        choice[0] if isinstance(choice, tuple) else choice
        for choice in page.component("adjust_source").choices
    ] == ["merged"]


def test_a_merge_shows_one_slider_for_each_lora_and_its_own_form(page: Page) -> None:
    labels = [page.shown[f"{name}.label"] for name in STRENGTH_VALUES[:3]]
    assert labels == [
        "Strength of dog (subject 1)",
        "Strength of cat (subject 2)",
        "Strength of ink (style)",
    ]
    visible = [page.shown[f"{name}.visible"] for name in STRENGTH_VALUES]
    assert visible == [True] * 3 + [False] * (len(STRENGTH_VALUES) - 3)
    shown = page["adjust_rank"], page["adjust_precision"], page["adjust_output"]
    assert shown == ("exact", "fp32", "merged_adjusted")
    assert "dog + cat + ink" in words(page["adjust_about"])


def test_untouched_it_writes_the_same_tensors_and_shows_them_like_a_merge(host: Any, page: Page) -> None:
    page.run("reexport")
    assert page["tag"].startswith("<lora:merged_adjusted:1>") and 'data-outcome="done"' in page["result"]
    assert same_tensors(host, "merged", "merged_adjusted")
    for panel in ("adjust_source", "explain"):
        assert page[panel] == "merged_adjusted"


def test_each_slider_is_the_strength_of_its_lora(host: Any, page: Page) -> None:
    page.set(adjust_strength_1=0.5, adjust_strength_2=2.0, adjust_strength_3=0.25)
    page.run("reexport")
    again(host, "expected", subject_weights=(0.5, 2.0), style_weights=(0.25,))
    assert same_tensors(host, "merged_adjusted", "expected")


def test_rank_precision_and_parts_reach_the_files(host: Any, page: Page) -> None:
    page.set(adjust_rank=" 2 ", adjust_precision="bf16", adjust_output="small")
    page.run("reexport")
    again(host, "expected", rank="2", precision="bf16")
    assert same_tensors(host, "small", "expected")
    page.set(adjust_source="merged", adjust_rank="exact", adjust_split=True, adjust_output="parts")
    page.run("reexport")
    for part in ("subject1", "subject2", "style"):
        assert (host.folder / f"parts_{part}.safetensors").is_file()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"adjust_source": None}, "No merged LoRA is chosen"),
        ({"adjust_source": "dog"}, "no coefficients beside it"),
        ({"adjust_output": " "}, "no name"),
        ({"adjust_output": "merged"}, "already"),
        ({"adjust_rank": "huge"}, "rank must be exact"),
        ({"adjust_rank": "2", "adjust_split": True}, "rank exact, or no split"),
        ({"adjust_strength_3": 0}, "weight must be between"),
    ],
    ids=str,
)
def test_what_can_not_be_written_is_refused_in_words(
    host: Any, page: Page, changed: dict[str, Any], told: str
) -> None:
    before = sorted(host.folder.iterdir())
    page.set(**changed)
    assert page.start("reexport") == ""
    assert told in words(page["result"]) and 'data-outcome="error"' in page["result"]
    assert sorted(host.folder.iterdir()) == before


def test_a_damaged_file_shows_its_reason_instead_of_sliders(host: Any, page: Page) -> None:
    (host.folder / "merged.ziplora").write_bytes(b"nothing")
    page.fire("adjust_source", "input")
    assert not any(page.shown[f"{name}.visible"] for name in STRENGTH_VALUES)
    assert "damaged" in words(page["adjust_about"])


def test_a_merge_is_renamed_and_every_panel_follows(host: Any, page: Page) -> None:
    page.set(adjust_output=" mine ")
    page.fire("rename")
    assert 'data-gone="merged" data-now="mine"' in page["adjust_about"]
    assert (page["adjust_source"], page["explain"]) == ("mine", "mine")
    assert 'data-explained="mine"' in page["explained"]
    assert {"mine.safetensors", "mine.ziplora"} <= {path.name for path in host.folder.iterdir()}
    page.set(adjust_output="dog")
    page.fire("rename")
    assert "dog.safetensors exists already" in words(page["adjust_about"]) and page["adjust_source"] == "mine"


def test_a_merge_is_deleted_once_the_user_has_said_yes(host: Any, page: Page) -> None:
    page.confirms = False
    page.fire("remove")
    assert (host.folder / "merged.safetensors").is_file() and page["adjust_source"] == "merged"
    page.confirms = True
    page.fire("remove")
    assert "Deleted merged.safetensors, merged.ziplora" in words(page["adjust_about"])
    assert (page["adjust_source"], page["explain"]) == (None, None)
    assert not [path for path in host.folder.iterdir() if path.stem == "merged"]


def test_nothing_is_deleted_while_a_job_waits(host: Any, page: Page) -> None:
    page.service.submit(request(output="another"), background=False)
    page.fire("remove")
    assert "Delete the merge when it has ended" in words(page["adjust_about"])
    assert (host.folder / "merged.safetensors").is_file()
