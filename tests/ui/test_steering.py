"""The steering panel's values, over real files: what it shows of a merge, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.reexport import ReexportRequest
from lib_ziplora.ui import text
from lib_ziplora.ui.forms import STEER_VALUES, STRENGTHS
from lib_ziplora.ui.handlers import Desk

from ..support.exports import host_of_three, merge, same_tensors


@pytest.fixture
def host(tmp_path: Path) -> Any:
    host = host_of_three(tmp_path)
    merge(host, method="direct")
    return host


@pytest.fixture
def desk(host: Any) -> Desk:
    return Desk(host)


def values(desk: Desk, **changed: Any) -> list[Any]:
    """What the panel holds after ``merged`` was picked."""
    shown = desk.steering("merged")
    base = {name: 1.0 for name in STEER_VALUES if "strength" in name}
    base |= {"steer": "merged", "steer_rank": shown.rank, "steer_precision": shown.precision}
    base |= {"steer_split": False, "steer_output": shown.output, "steer_overwrite": False, "report": False}
    assert set(changed) <= set(base) == set(STEER_VALUES)
    return [{**base, **changed}[name] for name in STEER_VALUES]


def export(desk: Desk, **changed: Any) -> Any:
    given = values(desk, **changed)
    ticket, refused = desk.prepare_reexport(given)
    assert refused == ""
    return desk.work_reexport(ticket, given)


def test_only_loras_with_coefficients_are_offered(desk: Desk) -> None:
    assert desk.steerables() == ["merged"]


def test_a_merge_shows_one_slider_for_each_lora_and_its_own_form(desk: Desk) -> None:
    shown = desk.steering("merged")
    assert shown.labels == (
        "Strength of dog (subject 1)",
        "Strength of cat (subject 2)",
        "Strength of ink (style)",
    )
    assert (shown.rank, shown.precision, shown.output) == ("exact", "fp32", "merged_steered")
    assert len(shown.labels) <= STRENGTHS
    for name in ("dog", "cat", "ink"):
        assert name in shown.about


def test_loras_without_a_slider_are_named(desk: Desk) -> None:
    merge_ = desk.engine.steerable(desk.host, "merged")
    assert "ink can&#x27;t be steered here" in text.steering(merge_, 2)
    assert "steered here" not in text.steering(merge_, 3)


def test_untouched_it_writes_the_same_tensors_and_shows_them_like_a_merge(host: Any, desk: Desk) -> None:
    outcome = export(desk)
    assert outcome.tag == "<lora:merged_steered:1>" and 'data-outcome="done"' in outcome.html
    assert same_tensors(host, "merged", "merged_steered")
    assert desk.steering("merged").output == "merged_steered_2"


def test_each_slider_is_the_strength_of_its_lora(host: Any, desk: Desk) -> None:
    export(desk, steer_strength_1=0.5, steer_strength_2=2.0, steer_strength_3=0.25)
    run(ReexportRequest("merged", "expected", subject_weights=(0.5, 2.0), style_weights=(0.25,)), host)
    assert same_tensors(host, "merged_steered", "expected")


def test_rank_precision_and_parts_reach_the_files(host: Any, desk: Desk) -> None:
    export(desk, steer_rank=" 2 ", steer_precision="bf16", steer_output="small")
    run(ReexportRequest("merged", "expected", rank="2", precision="bf16"), host)
    assert same_tensors(host, "small", "expected")
    export(desk, steer_split=True, steer_output="parts")
    for part in ("subject1", "subject2", "style"):
        assert (host.folder / f"parts_{part}.safetensors").is_file()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steer": None}, "No merged LoRA is chosen"),
        ({"steer": "dog"}, "no coefficients beside it"),
        ({"steer_output": " "}, "no name"),
        ({"steer_output": "merged"}, "already"),
        ({"steer_rank": "huge"}, "rank must be exact"),
        ({"steer_rank": "2", "steer_split": True}, "rank exact, or no split"),
        ({"steer_strength_3": 0}, "weight must be between"),
    ],
    ids=str,
)
def test_what_can_not_be_written_is_refused_in_words(
    host: Any, desk: Desk, changed: dict[str, Any], words: str
) -> None:
    before = {path.name for path in host.folder.iterdir()}
    ticket, box = desk.prepare_reexport(values(desk, **changed))
    assert ticket == "" and words in box and 'data-outcome="error"' in box
    assert {path.name for path in host.folder.iterdir()} == before


def test_a_damaged_file_shows_its_reason_instead_of_sliders(host: Any, desk: Desk) -> None:
    (host.folder / "merged.ziplora").write_bytes(b"nothing")
    shown = desk.steering("merged")
    assert shown.labels == () and "damaged" in shown.about
    assert desk.steering(None).labels == ()
