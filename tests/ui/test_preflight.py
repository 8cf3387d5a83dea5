"""Pre-flight over real files, and the training curves while a merge runs."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from lib_ziplora import plots
from lib_ziplora.pipeline.overlap import Overlap
from lib_ziplora.pipeline.preflight import Preflight
from lib_ziplora.ui import curves
from lib_ziplora.ui.preflight import figures, heat_map, preflight_box

from .conftest import TabHost
from .page import EVIL, Balance, Page, words


def test_a_pair_is_described_as_soon_as_it_is_chosen(page: Page) -> None:
    page.set(method="ziplora")
    page.pick(subject="dog")
    assert page["preflight"] == ""
    page.pick(style="ink")
    assert 'data-check="fine"' in page["preflight"] and "dog + ink Ready to merge" in words(page["preflight"])
    assert "MB" in page.figure("File size") and "unknown" in page.figure("Time")
    assert re.search(r'<details class="ziplora-heat"[^>]*>', page["preflight"])
    assert 'ziplora-heat" open' not in page["preflight"]


def test_what_keeps_it_from_being_merged_is_said_like_a_refusal(pair: Page) -> None:
    pair.set(output="ink")
    pair.fire("check")
    assert 'data-check="problems"' in pair["preflight"] and "Not ready to merge" in words(pair["preflight"])
    problem = re.search(r'ziplora-problems"><li>(.*?)</li>', pair["preflight"])
    assert problem and pair.start() == "" and problem[1] in pair["result"]


def test_the_time_is_that_of_the_merge_before(pair: Page) -> None:
    pair.set(method="ziplora", steps=1)
    pair.run()
    pair.set(steps=1000, output="another")
    pair.fire("recheck")
    assert "about" in pair.figure("Time")
    pair.set(method="direct")
    pair.fire("recheck")
    assert "nothing is learnt" in pair.figure("Time")


def test_half_a_pair_says_nothing_until_check_is_pressed(page: Page) -> None:
    page.pick(subject="dog")
    page.fire("recheck")
    assert page["preflight"] == ""
    page.fire("check")
    assert "No style is chosen" in page["preflight"]


def test_an_answer_that_comes_after_a_merge_began_is_not_shown(page: Page, host: TabHost) -> None:
    page.set(subject="dog", style="ink", output="both", job="begun before")
    listed = host.resolve

    def begin_meanwhile(lora: str) -> Any:
        page.set(job="begun meanwhile")
        return listed(lora)

    host.resolve = begin_meanwhile  # type: ignore[method-assign]
    page.fire("recheck")
    assert page["preflight"] == ""
    page.fire("recheck")
    assert "Ready to merge" in page["preflight"]


def test_unforeseen_errors_are_logged_and_named_by_type(
    pair: Page, host: TabHost, caplog: pytest.LogCaptureFixture
) -> None:
    pair.set(method="ziplora")
    host.check = lambda: {}["secret detail"]  # type: ignore[assignment]
    pair.fire("check")
    assert "KeyError" in pair["preflight"] and "secret" not in pair["preflight"]
    assert "secret detail" in caplog.text


def test_the_heat_map_has_a_cell_for_every_place_and_colours_by_value() -> None:
    places = {
        ("input 4", "self-attention"): 0.0,
        ("input 4", "cross-attention"): 0.6,
        ("middle", "other"): 0.3,
    }
    html = heat_map(Overlap(places, 0.3, 0.1, 3, 3))
    opacity = {value: float(o) for o, value in re.findall(r"234, 88, 12, ([\d.]+)\)\">([\d.]+)", html)}
    assert opacity["0.00"] == 0 and opacity["0.60"] == pytest.approx(2 * opacity["0.30"], abs=0.011)
    assert html.count("<td></td>") == 2 * 3 - 3
    heads = re.findall(r'scope="col">(.*?)<', html)
    assert heads == ["block", "self-attention", "cross-attention", "other"]
    assert Balance(html).open == [] and heat_map(Overlap({}, 0.0, 0.0, 0, 0)) == ""


def test_everything_in_the_box_is_escaped() -> None:
    overlap = Overlap({(EVIL, EVIL): 0.1}, 0.1, 0.1, 1, 1)
    found = Preflight((EVIL,), (EVIL,), (EVIL,), 3, {EVIL: 1}, 10, overlap, EVIL)
    box = Balance(preflight_box(found, "ziplora"))
    assert box.open == [] and "img" not in box.seen


def test_what_is_not_known_has_no_row() -> None:
    assert [name for name, _ in figures(Preflight(("a",), ("gone",)), "ziplora")] == ["Time"]


def run(updates: int, loss: Any = lambda i: 1.0, travel: Any = lambda i: 0.02 * i) -> list[dict[str, float]]:
    """Figures of every update."""
    return [
        {
            **dict.fromkeys(("loss", "subject_loss", "style_1_loss"), loss(index)),
            "similarity": 1.0,
            "travel": travel(index),
        }
        for index in range(updates)
    ]


def test_every_lora_has_a_line_and_its_latest_loss() -> None:
    html = curves.chart(run(12, loss=lambda i: 2.0 - 0.1 * i))
    assert html.count("<svg") == 3 and html.count("<polyline") == 4
    assert "subject 0.9" in html and "style 1 0.9" in html
    assert Balance(html).open == []


def test_a_line_goes_from_left_to_right_with_zero_at_the_bottom() -> None:
    points = plots.points([0.0, 2.0, 1.0], 2.0).split()
    x, y = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert x == (0.0, 100.0, 200.0)
    assert y[0] == plots.HEIGHT - plots.MARGIN and y[1] == plots.MARGIN
    assert y[2] == pytest.approx((y[0] + y[1]) / 2)


@pytest.mark.parametrize("updates", [plots.MOST_POINTS, 1000, 1001])
def test_long_runs_are_thinned_but_reach_the_last_update(updates: int) -> None:
    points = plots.points([1.0] * updates, 1.0).split()
    assert len(points) <= plots.MOST_POINTS + 1
    assert points[-1].startswith(f"{plots.WIDTH:.1f},")


def test_one_update_draws_nothing() -> None:
    assert curves.chart(run(1)) == curves.chart([]) == ""


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (run(30), ""),
        (run(5, travel=lambda i: 0.0), ""),
        (run(30, travel=lambda i: 1e-5 * i), "have not moved"),
        (run(30, travel=lambda i: 0.1 * i), "far from where"),
        (run(30, loss=lambda i: 1 + 0.1 * i), "loss rises"),
        (run(30, loss=lambda i: 2 - 0.05 * i), ""),
        (run(3, loss=lambda i: math.nan), "not a number"),
    ],
    ids=str,
)
def test_a_sentence_only_where_something_is_off(steps: list[dict[str, float]], told: str) -> None:
    sentence = curves.remark(steps)
    assert told in sentence and bool(told) == bool(sentence)
    assert Balance(curves.chart(steps)).open == []
