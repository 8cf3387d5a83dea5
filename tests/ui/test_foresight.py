"""What the tab says before a merge, over real files, and its curves while one runs."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

from lib_ziplora import plots as drawing
from lib_ziplora.hosts import Progress
from lib_ziplora.pipeline.overlap import Overlap
from lib_ziplora.pipeline.preflight import Preflight
from lib_ziplora.training import memory
from lib_ziplora.ui import curves
from lib_ziplora.ui.forms import PAIR, SLOTS, value_names
from lib_ziplora.ui.handlers import Desk
from lib_ziplora.ui.tasks import Task
from lib_ziplora.ui.verdict import figures, heat_map, verdict

from ..support.small_merges import pico_host
from .fake_host import EVIL, FakeEngine, FakeHost
from .test_handlers import values
from .test_text import Balance


@pytest.fixture
def host(tmp_path: Path) -> Any:
    return pico_host(tmp_path)


def chosen(**changed: Any) -> list[Any]:
    return values(**{"subject": "dog", "style": "ink", "width": 64, "height": 64, **changed})


def told(box: str, row: str) -> str:
    found = re.search(f"<th>{row}</th><td>(.*?)</td>", box)
    assert found, box
    return found.group(1)


def test_a_pair_is_described_before_it_is_merged(host: Any) -> None:
    box = Desk(host).foresee(chosen())
    assert 'data-check="fine"' in box and "dog + ink" in box and "ziplora-heat" in box
    assert "MB" in told(box, "File size") and "unknown" in told(box, "Time")


def test_what_speaks_against_it_is_said_like_a_refusal(host: Any) -> None:
    desk = Desk(host)
    bad = chosen(output="ink", overwrite=False)
    box = desk.foresee(bad)
    assert 'data-check="problems"' in box and "ink.safetensors" in box
    assert desk.prepare(bad)[0] == ""


def test_the_time_is_that_of_the_merge_before(host: Any) -> None:
    desk = Desk(host)
    given = chosen(steps=1, sampling_steps=2, trajectories=1, guidance_scale=1.0)
    desk.work(desk.prepare(given)[0], given)
    assert "about" in told(desk.foresee(chosen(steps=1000, output="another")), "Time")
    assert "nothing is learnt" in told(desk.foresee(chosen(method="direct")), "Time")


def test_half_a_pair_says_nothing_until_check_is_pressed(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**10)
    desk = Desk(host)
    half = chosen(style=None)
    assert desk.foresee_pair(half) == "" and "No style is chosen" in desk.foresee(half)
    assert desk.foresee_pair(chosen()) == desk.foresee(chosen())
    assert len(value_names(SLOTS)) > len(value_names(PAIR))


def test_unforeseen_errors_are_logged_and_named_by_type(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> Preflight:
        raise KeyError("secret detail")

    box = Desk(FakeHost(), dataclasses.replace(FakeEngine().engine(), preflight=fail)).foresee(values())
    assert 'data-outcome="error"' in box and "KeyError" in box and "secret" not in box
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
    found = Preflight(
        (EVIL,), (EVIL,), (EVIL,), 3, {EVIL: 1}, 10, Overlap({(EVIL, EVIL): 0.1}, 0.1, 0.1, 1, 1), EVIL
    )
    box = Balance(verdict(found, 90.0, "ziplora"))
    assert box.open == [] and "img" not in box.seen


def test_what_can_not_be_told_has_no_row() -> None:
    assert [name for name, _ in figures(Preflight(("a",), ("gone",)), None, "ziplora")] == ["Time"]


def history(updates: int, **functions: Any) -> list[dict[str, float]]:
    return [{name: function(index) for name, function in functions.items()} for index in range(updates)]


def run(updates: int, loss: Any = lambda i: 1.0, travel: Any = lambda i: 0.02 * i) -> list[dict[str, float]]:
    return history(
        updates, loss=loss, subject_loss=loss, style_1_loss=loss, similarity=lambda i: 1.0, travel=travel
    )


def test_every_lora_has_a_line_and_its_latest_loss() -> None:
    html = curves.chart(run(12, loss=lambda i: 2.0 - 0.1 * i))
    assert html.count("<svg") == 3 and html.count("<polyline") == 4
    assert "subject 0.9" in html and "style 1 0.9" in html
    assert Balance(html).open == []


def test_a_line_goes_from_left_to_right_with_zero_at_the_bottom() -> None:
    points = drawing.points([0.0, 2.0, 1.0], 2.0).split()
    x, y = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert x == (0.0, 100.0, 200.0)
    assert y[0] == drawing.HEIGHT - drawing.MARGIN and y[1] == drawing.MARGIN
    assert y[2] == pytest.approx((y[0] + y[1]) / 2)


@pytest.mark.parametrize("updates", [drawing.MOST_POINTS, 1000, 1001])
def test_long_runs_are_thinned_but_reach_the_last_update(updates: int) -> None:
    points = drawing.points([1.0] * updates, 1.0).split()
    assert len(points) <= drawing.MOST_POINTS + 1
    assert points[-1].startswith(f"{drawing.WIDTH:.1f},")


def test_one_update_draws_nothing() -> None:
    assert curves.chart(run(1)) == curves.chart([]) == ""


@pytest.mark.parametrize(
    ("steps", "words"),
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
def test_a_sentence_only_where_something_is_off(steps: list[dict[str, float]], words: str) -> None:
    sentence = curves.remark(steps)
    assert words in sentence and bool(words) == bool(sentence)
    assert Balance(curves.chart(steps)).open == []


def test_figures_of_updates_alone_are_kept() -> None:
    task = Task()
    task.follow(Progress("sampling", 1, 9, None, "Drawing"))
    task.follow(Progress("optimising", 2, 9, 3.0, "Update", {"loss": 1.0, "travel": 0.1}))
    assert task.history == [{"loss": 1.0, "travel": 0.1}]


def test_curves_belong_to_a_ticket() -> None:
    desk = Desk(FakeHost(), FakeEngine().engine())
    ticket, _ = desk.prepare(values())
    desk.work(ticket, values())
    assert desk.curves(ticket) == "" == desk.curves("task(unknown)")
