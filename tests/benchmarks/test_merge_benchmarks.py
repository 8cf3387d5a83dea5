"""The benchmarks that measure pieces of a merge on MiniXL: what they vary, what they leave as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import lessons, objective
from benchmarks.methods import Pair
from lib_ziplora.training.strengths import Strengths

PAIR = Pair("rocket", "streamline-cyber-color")
EVEN = Strengths((0.7, 0.7))


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
