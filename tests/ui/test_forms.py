"""Requests from the values of the tab's controls."""

from __future__ import annotations

from typing import Any

import pytest

from lib_ziplora.config import LoraInput, setting_defaults, setting_fields
from lib_ziplora.errors import ConfigError
from lib_ziplora.hosts import Sampler
from lib_ziplora.names import free_name, validate_name
from lib_ziplora.pictures.comparison import CompareRequest
from lib_ziplora.ui.forms import (
    COMPARE_VALUES,
    MATRIX_VALUES,
    MERGE_VALUES,
    compare_request,
    follow_up_request,
    matrix_request,
    merge_request,
    next_name,
    suggested_name,
)
from lib_ziplora.ui.matrix import added


def merge_values(**changed: Any) -> dict[str, Any]:
    given = {
        **dict.fromkeys(MERGE_VALUES),
        **setting_defaults(),
        "subject": "cat",
        "subject_prompt": "a cat",
        "subject_weight": 0.8,
        "style": "ink",
        "style_prompt": "an ink drawing",
        "style_weight": 1.2,
        "output": " cat in ink ",
        "overwrite": True,
        "report": False,
    }
    assert set(changed) <= set(given) == set(MERGE_VALUES)
    return {**given, **changed}


def other_value(name: str) -> Any:
    """A legal value of a setting that is not its default."""
    option, default = setting_fields()[name], setting_defaults()[name]
    if option.choices:
        return next(choice for choice in option.choices if choice != default)
    if isinstance(default, str):
        return "32" if name == "rank" else f"{default} blurry"
    if isinstance(default, bool):
        return not default
    return option.minimum if option.minimum != default else option.maximum


@pytest.mark.parametrize("name", list(setting_fields()))
def test_every_setting_reaches_the_request(name: str) -> None:
    changed = merge_request(merge_values(**{name: other_value(name)})).settings
    expected = {**setting_defaults(), name: other_value(name)}
    assert {other: getattr(changed, other) for other in setting_fields()} == expected


def test_the_other_values_reach_the_request() -> None:
    request = merge_request(merge_values())
    assert request.loras == (
        LoraInput("cat", "a cat", 0.8, role="subject"),
        LoraInput("ink", "an ink drawing", 1.2, role="style"),
    )
    assert (request.output, request.overwrite, request.report) == ("cat in ink", True, False)


def test_more_loras_may_be_chosen_and_left_empty() -> None:
    fourth = {"fourth": "old", "fourth_prompt": "an old cat", "fourth_weight": 0.5, "fourth_role": "style"}
    request = merge_request(merge_values(**fourth))
    assert request.loras[2:] == (LoraInput("old", "an old cat", 0.5, role="style"),)
    assert request.labels == ("subject", "style 1", "style 2")


def test_whole_numbers_may_come_as_floats() -> None:
    settings = merge_request(merge_values(steps=40.0, seed=7.0)).settings
    assert (settings.steps, settings.seed) == (40, 7)
    assert isinstance(settings.steps, int)


@pytest.mark.parametrize("seed", [-1, -1.0])
def test_a_seed_of_minus_one_is_another_one_each_time(seed: float) -> None:
    seeds = {merge_request(merge_values(seed=seed)).settings.seed for _ in range(4)}
    assert len(seeds) > 1 and min(seeds) >= 0
    assert len({compare_request(compare_values(compare_seed=seed)).seed for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"subject": None}, "No subject is chosen"),
        ({"style": ""}, "No style is chosen"),
        ({"output": "  "}, "no name"),
        ({"steps": 0}, "steps must lie between"),
        ({"width": 100}, "multiple of 64"),
        ({"subject_weight": 0}, "weight of cat"),
    ],
)
def test_bad_values_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        merge_request(merge_values(**changed))


@pytest.mark.parametrize(
    ("subject", "style", "taken", "name"),
    [
        ("cat", "ink", [], "cat_x_ink"),
        ("cat", "ink", ["Cat_X_Ink", "cat_x_ink_2"], "cat_x_ink_3"),
        ("a:b=c>", "d/e", [], "a_b_c__x_d_e"),
        ("Katze (v2)", "墨", [], "Katze _v2__x_墨"),
        ("cat", None, [], ""),
    ],
)
def test_suggested_names_are_free_and_harmless(
    subject: str, style: str | None, taken: list[str], name: str
) -> None:
    assert suggested_name(subject, style, taken) == name
    if name:
        assert validate_name(name) == name


@pytest.mark.parametrize(
    ("output", "taken", "following"),
    [
        ("mine", ["mine"], "mine_2"),
        ("merges/mine_2", ["mine", "a/mine_2"], "merges/mine_3"),
        ("a\\b\\mine", ["mine"], "a\\b\\mine_2"),
    ],
)
def test_the_name_after_one_that_is_taken_stays_in_its_folder(
    output: str, taken: list[str], following: str
) -> None:
    assert next_name(output, taken) == following


def test_long_names_give_a_name_that_fits() -> None:
    name = free_name("墨" * 100 + "x" * 300, [])
    assert validate_name(name) == name


def matrix_values(**changed: Any) -> dict[str, Any]:
    given = {
        **dict.fromkeys(MATRIX_VALUES),
        **setting_defaults(),
        "matrix_subjects": "dog | a dog",
        "matrix_styles": "ink | in ink",
        "subject_weight": 0.5,
    }
    return {**given, **changed}


def test_lines_are_loras_with_their_prompts() -> None:
    lines = " dog |  a dog | b\n\n cat \n"
    request = matrix_request(matrix_values(matrix_subjects=lines, combined_prompt="a pair's own"))
    told = [(lora.lora, lora.prompt, lora.weight) for lora in request.subjects]
    assert told == [("dog", "a dog | b", 0.5), ("cat", "", 0.5)]
    assert request.styles == (LoraInput("ink", "in ink", 1.0, role="style"),)
    assert request.settings.combined_prompt == "" and not request.sheet
    assert matrix_request(matrix_values(matrix_sheet=True)).sheet


def test_a_picked_lora_is_added_once_with_its_prompt() -> None:
    lines = added("", "dog", "a sks\ndog")
    assert lines == "dog | a sks dog"
    assert added(added(lines, "cat", ""), "dog", "new") == "cat\ndog | new"
    assert added(lines, None, "x") == lines


def compare_values(**changed: Any) -> dict[str, Any]:
    return {**dict.fromkeys(COMPARE_VALUES), "compare_source": "merged", **changed}


def test_a_comparisons_values_reach_the_request() -> None:
    given = compare_values(
        compare_prompts=" a dog \n\n a cat",
        compare_seed=9.0,
        compare_sampler="first",
        compare_steps=2.0,
        compare_height=64.0,
        compare_negative_prompt=" bad ",
        compare_preview=True,
    )
    sampler = Sampler("first", 2, Sampler().guidance_scale, 0, 64, "bad")
    assert compare_request(given) == CompareRequest("merged", ("a dog", "a cat"), 1, 9, sampler, True)
    assert compare_request(compare_values()) == CompareRequest("merged")


def test_after_a_merge_two_pictures_are_drawn_with_its_own_prompt_or_a_comparison() -> None:
    given = compare_values(compare_prompts="a boat", compare_seeds=3, compare_seed=9, compare_steps=2)
    two = follow_up_request({**given, "after_merge": "two pictures"})
    assert two == CompareRequest("merged", (), 1, 9, Sampler(steps=2), brief=True)
    assert follow_up_request({**given, "after_merge": "a comparison"}) == compare_request(given)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"compare_source": None}, "No merged LoRA"),
        ({"compare_steps": 0}, "steps must lie"),
        ({"compare_seed": "x"}, "seed must be an integer"),
        ({"compare_seeds": float("inf")}, "seeds must be an integer"),
    ],
    ids=str,
)
def test_bad_values_of_a_comparison_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compare_request(compare_values(**changed))
