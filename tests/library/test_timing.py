"""How long merges took is remembered, also by the next program and beside others that write it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lib_ziplora.config import MergeRequest
from lib_ziplora.hosts import CheckpointInfo
from lib_ziplora.library.timing import REMEMBERED, Timing
from lib_ziplora.report.report import MergeReport
from lib_ziplora.training.learnt import Learnt

from ..support.small_merges import request


class Host:
    """A checkpoint's name is all that is asked."""

    def checkpoint(self) -> CheckpointInfo:
        return CheckpointInfo("pico", "")


def asked(width: int = 64, steps: int = 50) -> MergeRequest:
    return request(method="ziplora", width=width, steps=steps)


def report(seconds: float, checkpoint: str = "pico", steps: int = 50) -> MergeReport:
    settings = request().settings
    return MergeReport(
        output="m.safetensors",
        name="m",
        method="ziplora",
        settings=settings,
        common_layers=1,
        single_layers={},
        rank=2,
        learnt=Learnt(steps=steps),
        checkpoint=checkpoint,
        seconds=seconds,
    )


def told(pace: Timing, width: int = 64) -> float | None:
    return pace.seconds(asked(width), Host())  # type: ignore[arg-type]


def test_the_next_program_knows_it(tmp_path: Path) -> None:
    Timing(tmp_path / "data").note(asked(), report(80.0))
    assert told(Timing(tmp_path / "data")) == pytest.approx(80.0)
    assert told(Timing(tmp_path / "data"), width=128) is None
    assert told(Timing()) is None


def test_two_that_keep_it_in_one_place_know_the_newest(tmp_path: Path) -> None:
    tab, api = Timing(tmp_path), Timing(tmp_path)
    tab.note(asked(), report(80.0))
    api.note(asked(128), report(30.0))
    api.note(asked(), report(20.0))
    for pace in (tab, api, Timing(tmp_path)):
        assert told(pace) == pytest.approx(20.0) and told(pace, 128) == pytest.approx(30.0)


def test_where_nothing_can_be_written_it_lasts_as_long_as_the_program(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    pace = Timing(tmp_path / "taken")
    pace.note(asked(), report(80.0))
    assert told(pace) == pytest.approx(80.0) and told(Timing(tmp_path / "taken")) is None


def test_only_so_many_are_kept_the_newest(tmp_path: Path) -> None:
    pace = Timing(tmp_path)
    pace.note(asked(), report(1.0))
    for number in range(REMEMBERED):
        pace.note(asked(128), report(2.0, f"checkpoint {number}"))
    assert told(pace) is None
    assert len(json.loads((tmp_path / "pace.json").read_text(encoding="utf-8"))) == REMEMBERED


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "null", "3", "[" * 100_000, "[3, [1, 2], null]"], ids=lambda c: c[:9]
)
def test_a_damaged_file_is_no_pace(tmp_path: Path, content: str) -> None:
    (tmp_path / "pace.json").write_text(content, encoding="utf-8")
    pace = Timing(tmp_path)
    assert told(pace) is None
    pace.note(asked(), report(80.0))
    assert told(Timing(tmp_path)) == pytest.approx(80.0)


@pytest.mark.parametrize("value", ["x", None, 0, -1, math.nan, math.inf, "1e999"])
def test_a_damaged_row_is_left_out_and_the_others_stay(tmp_path: Path, value: object) -> None:
    Timing(tmp_path).note(asked(), report(80.0))
    file = tmp_path / "pace.json"
    row = [128, 64, "pico", value]
    file.write_text(json.dumps([row, *json.loads(file.read_text(encoding="utf-8"))]), encoding="utf-8")
    assert told(Timing(tmp_path)) == pytest.approx(80.0) and told(Timing(tmp_path), 128) is None
