"""A merge's recipe: one line that gives the same merge again, on another machine, and refuses what is none."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lib_ziplora.config import LoraInput, MergeSettings
from lib_ziplora.errors import ConfigError
from lib_ziplora.pipeline.merge import run
from lib_ziplora.report.document import document
from lib_ziplora.report.recipe import read_recipe, write_recipe

from ..support.small_merges import pico_host, request

LORAS = (
    LoraInput("rose", "a sks rose", images=("/home/me/a.png",)),
    LoraInput("ink", "in “ink” style", 0.8, role="style"),
)


def test_a_recipe_says_what_is_not_the_default_in_one_line():
    line = write_recipe(LORAS, MergeSettings(steps=30, combined_prompt="two\nlines"))
    assert "\n" not in line and line.startswith("ziplora {")
    assert json.loads(line.removeprefix("ziplora ")) == {
        "loras": [
            {"lora": "rose", "prompt": "a sks rose", "role": "subject"},
            {"lora": "ink", "prompt": "in “ink” style", "weight": 0.8, "role": "style"},
        ],
        "settings": {"steps": 30, "combined_prompt": "two\nlines"},
    }


@pytest.mark.parametrize("around", ["{}", "  {}\n", "ziplora: {}", "ziplora\n{}"])
def test_a_recipe_read_is_the_merge_that_was_written(around):
    settings = MergeSettings(method="balanced", balance=0.0, seed=7, rank="64")
    line = write_recipe(LORAS, settings)
    found = read_recipe(around.format(line.removeprefix("ziplora ") if "ziplora" in around else line))
    assert found.settings == settings
    assert found.loras == (dataclasses.replace(LORAS[0], images=()), LORAS[1])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no recipe"),
        ("ziplora: rose + ink", "no recipe"),
        ("ziplora [1]", "no recipe"),
        ("[" * 5000, "no recipe"),
        ('{"loras": []}', "at least two"),
        ('{"loras": [{"lora": "a", "role": "subject"}]}', "at least two"),
        ('{"loras": [{"lora": "a"}, {"lora": "b"}]}', "role is missing"),
        ('{"loras": [], "output": "../x"}', "Unknown field 'output'"),
        ('{"loras": [], "settings": {"steps": 0}}', "steps must lie between"),
        (
            '{"loras": [{"lora": "a", "role": "subject", "images": ["/etc/passwd"]}]}',
            "Unknown field 'images'",
        ),
    ],
)
def test_what_is_no_recipe_is_refused_in_words(text, says):
    with pytest.raises(ConfigError, match=says):
        read_recipe(text)


def test_a_merge_tells_its_recipe_which_makes_it_again(tmp_path):
    host = pico_host(tmp_path)
    run(request(weight=(0.7, 1.2)), host)
    again = dataclasses.replace(read_recipe(document(host, "merged").recipe), output="again")
    assert again == dataclasses.replace(request(weight=(0.7, 1.2)), output="again")
    assert document(host, "merged").to_json()["recipe"] == document(host, "merged").recipe
