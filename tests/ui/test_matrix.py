"""Panel Matrix over real files, and the panel that explains a merge."""

from __future__ import annotations

import re
from html import unescape

import pytest

from lib_ziplora.pipeline.merge import run
from lib_ziplora.report.document import document
from lib_ziplora.ui import explain

from ..support.exports import same_tensors
from ..support.small_merges import request
from .conftest import TabHost
from .page import EVIL, Balance, Page, words


@pytest.fixture
def matrix(page: Page) -> Page:
    page.set(matrix_subjects="dog | a dog", matrix_styles="ink | in ink", matrix_names="{subject} {style}")
    page.set(subject_weight=0.5)
    return page


def states(html: str) -> list[str]:
    return re.findall(r'data-state="(\w+)"', html)


def test_pairs_are_checked_merged_and_told(matrix: Page, host: TabHost) -> None:
    matrix.set(matrix_styles="ink | in ink\ngone")
    matrix.fire("matrix_check")
    assert "1 of 2 pairs can be merged" in words(matrix["matrix_plan"])
    matrix.run("matrix_run")
    assert 'data-outcome="done"' in matrix["result"] and matrix["tag"] == ""
    assert states(matrix["result"]) == ["done", "refused"]
    assert (host.folder / "dog ink.safetensors").is_file()
    matrix.set(matrix_styles="ink")
    assert matrix.start("matrix_run") == "" and "exists already" in words(matrix["result"])


def test_a_sheet_shows_every_merge(matrix: Page, host: TabHost) -> None:
    matrix.set(matrix_sheet=True)
    matrix.run("matrix_run")
    assert 'class="ziplora-sheet"' in matrix["result"] and "Pictures of 1 merge" in matrix["result"]
    assert [picture.loras for picture in host.drawn] == [(("dog ink", 1.0),)]


def test_a_sheet_that_can_not_be_drawn_leaves_the_merges(matrix: Page, host: TabHost) -> None:
    def fail(_number: int) -> None:
        raise KeyError("secret detail")

    host.before_picture = fail
    matrix.set(matrix_sheet=True)
    matrix.run("matrix_run")
    assert states(matrix["result"]) == ["done"] and "KeyError" in matrix["result"]
    assert "secret" not in matrix["result"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"matrix_subjects": " \n"}, "No subject"),
        ({"steps": 0}, "steps"),
        ({"matrix_subjects": "gone"}, "no pair left"),
    ],
    ids=str,
)
def test_what_makes_no_matrix_is_refused(matrix: Page, changed: dict[str, object], told: str) -> None:
    matrix.set(**changed)
    assert matrix.start("matrix_run") == "" and told in words(matrix["result"])


def test_the_lists_are_scanned_for_pairs_that_go_together(matrix: Page) -> None:
    matrix.set(matrix_subjects="dog | a sks dog", matrix_styles="")
    matrix.fire("matrix_scan")
    assert 'data-matrix="scan"' in matrix["matrix_plan"] and matrix["matrix_plan"].count("× chance") >= 1
    matrix.set(matrix_subjects="")
    matrix.fire("matrix_scan")
    assert "No subject" in words(matrix["matrix_plan"])


def test_picked_loras_are_added_to_the_lists(pair: Page) -> None:
    pair.fire("matrix_add_subject")
    pair.fire("matrix_add_style")
    assert pair["matrix_subjects"] == "dog | a sks dog"
    assert pair["matrix_styles"] == "ink | a cat in ink style"


def test_matrix_merges_are_remembered_like_others(matrix: Page) -> None:
    matrix.set(method="ziplora", steps=1)
    matrix.run("matrix_run")
    matrix.fire("refresh")
    assert "dog × ink" in words(matrix["recent"])
    matrix.set(subject="dog", style="ink", output="both")
    matrix.fire("check")
    assert "about" in matrix.figure("Time")


def test_a_merge_is_explained_with_its_report(host: TabHost) -> None:
    run(request(method="ziplora", steps=2), host)
    box = explain.explained(host, "merged")
    assert 'data-explained="merged"' in box and box.count("ziplora-heat") == 5
    assert "saved next to" not in box and "data:text/html;base64," in box
    assert "no coefficients beside it" in explain.explained(host, "dog")
    assert "Choose a merged LoRA" in explain.explained(host, None)
    parsed = Balance(explain.about(document(host, "merged"), EVIL))
    assert parsed.open == [] and "img" not in parsed.seen


def test_an_earlier_merge_is_explained_when_it_is_picked(page: Page, host: TabHost) -> None:
    run(request(), host)
    page.set(explain="merged")
    page.fire("explain", "input")
    assert 'data-explained="merged"' in page["explained"]


def test_a_recipe_that_is_pasted_fills_the_form(page: Page, host: TabHost) -> None:
    run(request(weight=(0.7, 1.2), steps=7), host)
    page.set(explain="merged")
    page.fire("explain", "input")
    shown = re.search(r"<p data-recipe>(.*?)</p>", page["explained"])
    assert shown
    page.set(recipe=unescape(shown[1]))
    page.fire("recipe_fill")
    assert (page["subject"], page["style"], page["subject_prompt"]) == ("dog", "ink", "a dog")
    assert (page["subject_weight"], page["style_weight"], page["steps"], page["method"]) == (
        0.7,
        1.2,
        7,
        "direct",
    )
    page.set(output="again")
    page.run()
    assert same_tensors(host, "again", "merged")
    page.set(recipe=shown[1].replace("ink", EVIL).replace("&quot;", '"'), subject="")
    page.fire("recipe_fill")
    assert "Not installed" in words(page["recipe_note"]) and page["subject"] == "dog"
    page.set(recipe="nothing")
    page.fire("recipe_fill")
    assert "This is no recipe" in words(page["recipe_note"])
