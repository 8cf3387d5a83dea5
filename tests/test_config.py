"""The one configuration that feeds every front end."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args, get_type_hints

import pytest

from lib_ziplora.config import (
    LoraInput,
    MergeRequest,
    MergeSettings,
    setting_defaults,
    setting_fields,
    settings_from,
)
from lib_ziplora.errors import ConfigError
from lib_ziplora.methods import METHODS, MethodName


def test_every_setting_has_label_help_and_a_default_that_it_accepts() -> None:
    assert setting_fields().keys() == setting_defaults().keys()
    for name, option in setting_fields().items():
        assert option.label, name
        assert option.help, name
        assert settings_from({name: setting_defaults()[name]}) == MergeSettings()


def test_choices_are_those_of_the_type() -> None:
    types = get_type_hints(MergeSettings)
    for name, option in setting_fields().items():
        assert option.choices == tuple(get_args(types[name])), name


def test_the_papers_learning_rate_is_the_default() -> None:
    assert MergeSettings().learning_rate == 0.01


def test_instant_knows_the_combined_prompt_but_does_not_weigh_it() -> None:
    settings = MergeSettings(method="instant", combined_prompt="a sks dog in ink")
    assert settings.uses_combined_prompt and not settings.searches_strengths
    assert MergeSettings(method="ziplora", combined_prompt="a sks dog in ink").searches_strengths
    assert not MergeSettings(method="direct", combined_prompt="a sks dog in ink").uses_combined_prompt


def test_a_combined_prompt_without_weight_counts_only_where_the_method_is_made_of_it() -> None:
    assert not MergeSettings(method="ziplora", combined_weight=0.0).uses_combined_prompt
    assert MergeSettings(method="balanced", combined_weight=0.0).searches_strengths
    assert not MergeSettings(method="balanced", auto_balance=False).searches_strengths


def test_the_closed_form_is_the_instant_method_or_the_loops_start() -> None:
    for start, used in (("closed-form", True), ("ones", False)):
        assert MergeSettings(start=start).uses_closed_form == used
        assert MergeSettings(method="instant", start=start).uses_closed_form
        assert not MergeSettings(method="balanced", start=start).uses_closed_form


def test_a_balance_of_zero_from_before_there_was_a_switch_is_the_switch_turned_off_with_a_note() -> None:
    old = settings_from({"balance": 0.0})
    assert not old.auto_balance and any("auto_balance" in remark for remark in old.remarks())
    now = settings_from({"balance": "0", "auto_balance": "true"})
    assert now.auto_balance and now.balance == 0 and now.remarks() == []
    assert settings_from({"balance": 0.4}).auto_balance and MergeSettings().auto_balance
    assert settings_from({"auto_balance": False}).remarks() == []


def test_methods_that_need_a_model_have_stages_and_the_others_have_none() -> None:
    assert tuple(METHODS) == get_args(MethodName)
    for name, method in METHODS.items():
        stages = (method.closed_form, method.updates, method.strengths, method.combined_prompt != "none")
        assert method.model == any(stages), name
        assert method.help and (method.reference.startswith("https://") or name == "direct"), name


@pytest.mark.parametrize("role", ["subject", "style"])
def test_a_method_between_the_roles_needs_both(role) -> None:
    loras = (LoraInput("a", role=role), LoraInput("b", role=role))
    with pytest.raises(ConfigError, match="np-lora needs a subject and a style"):
        MergeRequest(loras, "x", settings=MergeSettings(method="np-lora"))


@pytest.mark.parametrize("name", [n for n, o in setting_fields().items() if o.minimum is not None])
def test_values_outside_the_range_are_refused_by_name(name: str) -> None:
    option = setting_fields()[name]
    for value in (option.minimum - 1, option.maximum + 1):
        with pytest.raises(ConfigError, match=name):
            settings_from({name: value})
    if isinstance(setting_defaults()[name], float):
        for value in (math.nan, math.inf, "nan"):
            with pytest.raises(ConfigError, match=name):
                settings_from({name: value})


@pytest.mark.parametrize("name", [n for n, o in setting_fields().items() if o.choices])
def test_other_choices_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        settings_from({name: "another"})


def test_loosely_typed_values() -> None:
    settings = settings_from({"steps": "50", "seed": 3.0, "learning_rate": "0.02", "width": 512.0})
    assert (settings.steps, settings.seed, settings.learning_rate, settings.width) == (50, 3, 0.02, 512)
    assert type(settings.steps) is int
    for values in ({"steps": "fifty"}, {"steps": 1.5}, {"width": 1000}, {"steps": None}, {"seed": [1]}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            settings_from(values)


def test_unknown_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="stepz"):
        settings_from({"stepz": 1})


def test_settings_survive_a_round_trip_through_plain_data() -> None:
    settings = MergeSettings(steps=7, objective="paper", negative_prompt="grey", width=512)
    assert settings_from(dataclasses.asdict(settings)) == settings


@pytest.mark.parametrize("weight", [0, math.nan, math.inf, 11, -11])
def test_impossible_weights_are_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="turtle"):
        LoraInput("turtle", weight=weight)


@pytest.mark.parametrize(
    ("roles", "names"),
    [
        (("subject", "style"), ("subject", "style")),
        (("style", "style"), ("style 1", "style 2")),
        (("subject", "style", "subject"), ("subject 1", "style", "subject 2")),
        (("style", "subject", "subject", "style"), ("style 1", "subject 1", "subject 2", "style 2")),
    ],
)
def test_loras_are_called_by_their_role_and_numbered_where_it_repeats(roles, names) -> None:
    loras = tuple(LoraInput(f"lora{index}", role=role) for index, role in enumerate(roles))
    assert MergeRequest(loras, "x").labels == names


def test_a_merge_has_at_least_two_loras() -> None:
    for loras in ((), (LoraInput("dog"),)):
        with pytest.raises(ConfigError, match="at least two"):
            MergeRequest(loras, "x")


def test_a_pair_is_a_subject_and_a_style_whatever_the_inputs_say() -> None:
    pair = MergeRequest.pair(LoraInput("dog", role="style"), LoraInput("ink", "a", 0.5), "x", True)
    assert pair.loras == (LoraInput("dog", role="subject"), LoraInput("ink", "a", 0.5, role="style"))
    assert (pair.output, pair.overwrite, pair.settings) == ("x", True, MergeSettings())


def test_a_role_is_a_subject_or_a_style() -> None:
    with pytest.raises(ConfigError, match="dog must be one of subject, style"):
        LoraInput("dog", role="object")


def test_a_lora_must_be_chosen() -> None:
    with pytest.raises(ConfigError, match="No LoRA"):
        LoraInput("")


def test_a_text_setting_takes_text_only():
    with pytest.raises(ConfigError, match="negative_prompt must be text"):
        settings_from({"negative_prompt": None})
