"""The matrix panel's values over real files, and the box that explains a merge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_ziplora.config import setting_defaults
from lib_ziplora.pictures.matrix_sheet import Sheet
from lib_ziplora.pipeline.matrix import Cell
from lib_ziplora.pipeline.merge import run
from lib_ziplora.report.document import document
from lib_ziplora.ui import explain, matrix
from lib_ziplora.ui.handlers import Desk
from lib_ziplora.ui.matrix import MATRIX_VALUES

from ..support.small_merges import pico_host, request
from .fake_host import EVIL
from .test_text import Balance


@pytest.fixture
def host(tmp_path: Path) -> Any:
    return pico_host(tmp_path)


@pytest.fixture
def desk(host: Any) -> Desk:
    return Desk(host)


def values(**changed: Any) -> list[Any]:
    base = {
        "matrix_subjects": "dog | a dog",
        "matrix_styles": "ink | in ink",
        "matrix_names": "{subject} {style}",
        "matrix_overwrite": False,
        "matrix_sheet": False,
        "report": False,
        "subject_weight": 0.5,
        "style_weight": None,
        **setting_defaults(),
        "method": "direct",
    }
    assert set(changed) <= set(base) == set(MATRIX_VALUES)
    return [{**base, **changed}[name] for name in MATRIX_VALUES]


def test_lines_are_loras_with_their_prompts() -> None:
    asked = matrix.matrix_from(
        values(matrix_subjects=" dog |  a dog | b\n\n cat \n", combined_prompt="a pair's own")
    )
    assert [(lora.lora, lora.prompt, lora.weight) for lora in asked.subjects] == [
        ("dog", "a dog | b", 0.5),
        ("cat", "", 0.5),
    ]
    assert asked.styles[0].weight == 1.0 and asked.styles[0].role == "style"
    assert asked.settings.combined_prompt == "" and asked.settings.method == "direct"


def test_a_picked_lora_is_added_once_with_its_prompt() -> None:
    lines = matrix.added("", "dog", "a sks\ndog")
    assert lines == "dog | a sks dog"
    assert matrix.added(matrix.added(lines, "cat", ""), "dog", "new") == "cat\ndog | new"
    assert matrix.added(lines, None, "x") == lines


def test_pairs_are_merged_and_told(desk: Desk, host: Any) -> None:
    given = values(matrix_styles="ink | in ink\ngone")
    assert "1 of 2 pairs can be merged" in matrix.looked_at(desk, given)
    ticket, refused = matrix.admit_matrix(desk, given)
    assert refused == ""
    outcome = matrix.work_matrix(desk, ticket, given)
    assert outcome.tag == "" and 'data-outcome="done"' in outcome.html
    assert re.findall(r'data-state="(\w+)"', outcome.html) == ["done", "refused"]
    assert desk.outcome(ticket) == outcome and (host.folder / "dog ink.safetensors").is_file()
    assert matrix.admit_matrix(desk, values())[0] == ""


def test_an_interrupt_tells_that_finished_merges_stay(desk: Desk) -> None:
    ticket, _ = matrix.admit_matrix(desk, values())
    task = desk._tasks[ticket]
    task.state = "running"
    assert "finished stay" in desk.interrupt(ticket)


def test_what_makes_no_matrix_is_refused(desk: Desk) -> None:
    for changed, words in (
        ({"matrix_subjects": " \n"}, "No subject"),
        ({"steps": 0}, "steps"),
        ({"matrix_subjects": "gone"}, "no pair left"),
    ):
        ticket, box = matrix.admit_matrix(desk, values(**changed))
        assert ticket == "" and words in box


def test_everything_in_the_boxes_is_escaped_and_balanced(host: Any) -> None:
    cell = Cell(request(subject=EVIL, style=EVIL, output=EVIL), "failed", EVIL)
    sheet = Sheet(Image.new("RGB", (30, 20)), 1, Path(EVIL), (EVIL,))
    run(request(method="ziplora", steps=2), host)
    told = explain.about(document(host, "merged"), EVIL)
    for html in (matrix.result([cell], sheet, EVIL), matrix.table([cell]), told):
        parsed = Balance(html)
        assert parsed.open == [] and "onerror" not in re.sub(r"&lt;.*?&gt;", "", html)


def test_a_merge_is_explained_with_its_report(host: Any) -> None:
    run(request(method="ziplora", steps=2), host)
    box = explain.explained(host, "merged")
    assert 'data-explained="merged"' in box and box.count("ziplora-heat") == 5
    assert "lies beside" not in box and "data:text/html;base64," in box
    assert "no coefficients beside it" in explain.explained(host, "dog")
    assert explain.explained(host, None) == explain.CHOOSE


def test_matrix_merges_are_remembered_like_others(host: Any) -> None:
    desk = Desk(host)
    learnt = {"steps": 1, "sampling_steps": 2, "trajectories": 1, "width": 64, "height": 64}
    given = values(**learnt, method="ziplora", combined_weight=0.0, guidance_scale=1.0)
    ticket, refused = matrix.admit_matrix(desk, given)
    assert refused == ""
    matrix.work_matrix(desk, ticket, given)
    (recent,) = desk.recent.merges()
    assert [(lora.lora, lora.prompt, lora.weight) for lora in recent.loras] == [
        ("dog", "a dog", 0.5),
        ("ink", "in ink", 1.0),
    ]
    asked = matrix.matrix_from(values(**{**learnt, "steps": 1000}, method="ziplora")).pairs()[0]
    assert desk._pace.seconds(asked, host) > 0
