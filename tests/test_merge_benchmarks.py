"""The benchmarks that measure pieces of a merge on MiniXL: what they vary, what they leave as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import lessons, objective, samples, strengths
from benchmarks.methods import Pair
from lib_ziplora.job import balancing
from lib_ziplora.merge import balance
from lib_ziplora.merge.stepping import Stepper

PAIR = Pair("turtle", "fluent-emoji")
EVEN = (0.7, 0.7)


@pytest.fixture(scope="module")
def at() -> Iterator[lessons.Desk]:
    with lessons.desk(PAIR) as desk:
        yield desk


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"width": 64, "height": 64}
    monkeypatch.setattr(
        lessons, "SETTINGS", dataclasses.replace(lessons.SETTINGS, trajectories=1, sampling_steps=2, **size)
    )
    monkeypatch.setattr(lessons, "SIZE", 64)


def weighed() -> tuple[object, ...]:
    return balancing.WEIGHED_PICTURES, balancing.WEIGHED_STEPS, balance.TIMES


def test_cheaper_weighing_takes_fewer_forwards_and_the_present_one_is_back_afterwards(
    at: lessons.Desk,
) -> None:
    present = weighed()
    cheap = strengths.Weighing(1, 2, (0.5,))
    found = [strengths.found(at, PAIR, weighing, 0) for weighing in (strengths.PRESENT, cheap)]
    assert found[1].units < found[0].units / 4
    assert all(balance.LOWEST <= one.angle <= balance.HIGHEST for one in found)
    assert weighed() == present
    rows = list(strengths.rows(found))
    assert len(rows) == 2 and rows[0].endswith("| 0.0° | 0.0° |")


def test_a_curve_begins_at_the_start_of_the_loop_and_ends_lower(at: lessons.Desk, tmp_path: Path) -> None:
    unseen = lessons.unseen(at, EVEN)
    closed, longer = (objective.curve(at, method, unseen) for method in ("closed", "closed+20"))
    assert [point.updates for point in closed] == [0]
    assert [point.updates for point in longer] == [0, 1, 2, 5, 10, 20]
    assert (longer[0].alone, longer[0].both) == pytest.approx((closed[0].alone, closed[0].both), rel=1e-3)
    assert [p.seconds for p in longer] == sorted(p.seconds for p in longer)
    assert longer[-1].alone < longer[0].alone
    objective.draw({"closed": closed, "closed+20": longer}, tmp_path / "objective.png")
    assert Image.open(tmp_path / "objective.png").size[0] > 500


def test_a_choice_of_samples_gives_a_row_for_every_number_of_updates(at: lessons.Desk) -> None:
    unseen, at_once = lessons.unseen(at, EVEN), Stepper.at_once
    choice = samples.Choice(1, 3, at_once=3, updates=(1, 4))
    first, second = samples.rows(at, PAIR, choice, EVEN, unseen)
    assert (first.updates, second.updates) == (1, 4)
    assert second.units - first.units == 3 * 7, "three updates of three samples"
    assert second.alone < first.alone
    assert Stepper.at_once is at_once
