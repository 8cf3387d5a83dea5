"""Header strings and file names."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest

from lib_ziplora.errors import OutputError
from lib_ziplora.lora.io.metadata import merged_metadata, read_recipe, tags_are_shortened
from lib_ziplora.lora.layer import Lora
from lib_ziplora.names import validate_name

from .files import K2, Q, layer, layers


def test_hosts_list_the_file_under_sdxl():
    metadata = merged_metadata("cat-ink", layers(layer(Q)))
    assert metadata["ss_base_model_version"].startswith("sdxl_")
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == "cat-ink"
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())


def test_rank_and_alpha_are_shown_when_they_are_the_same_everywhere():
    same = merged_metadata("m", layers(layer(Q, rank=4, alpha=2.5), layer(K2, rank=4, alpha=2.5)))
    assert (same["ss_network_dim"], same["ss_network_alpha"]) == ("4", "2.5")
    mixed = merged_metadata("m", layers(layer(Q, rank=4), layer(K2, rank=2)))
    assert (mixed["ss_network_dim"], mixed["ss_network_alpha"]) == ("Dynamic", "Dynamic")


def test_sources_are_named_and_their_tags_are_kept():
    tags = {"ss_tag_frequency": json.dumps({"10_cat": {"a cat": 10}})}
    sources = [
        Lora("cat", layers(layer(Q)), tags, sha256="aa"),
        Lora("ink", layers(layer(Q)), {"ss_tag_frequency": "broken {"}, sha256="bb"),
    ]
    metadata = merged_metadata("m", layers(layer(Q)), sources)
    assert metadata["modelspec.merged_from"] == "cat, ink"
    assert read_recipe(metadata)["sources"] == [
        {"name": "cat", "sha256": "aa"},
        {"name": "ink", "sha256": "bb"},
    ]
    assert json.loads(metadata["ss_tag_frequency"]) == {"cat: 10_cat": {"a cat": 10}}


def test_the_recipe_comes_back_as_it_went_in():
    recipe = {
        "settings": {"steps": 100, "seed": 3},
        "checkpoint": "sd_xl_base",
        "weights": [1.0, 0.7],
        "best": None,
    }
    read = read_recipe(merged_metadata("m", layers(layer(Q)), recipe=recipe))
    assert {key: read[key] for key in recipe} == recipe


def test_the_date_is_the_moment_of_the_merge():
    moment = datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=timezone.utc)
    assert (
        merged_metadata("m", layers(layer(Q)), date=moment)["modelspec.date"] == "2024-05-06T07:08:09+00:00"
    )


@pytest.mark.parametrize(
    "name",
    [
        "cat",
        "cat_ink-v1.2 (final)+",
        "кот",
        "con-fusion",
        "a" * 120,
        "none of it",
        "é",
        "🦊 50% × {a}[b]!",
        "👩‍🎨",
        "a'b&c#d@e~f^g;h",
    ],
)
def test_good_names(name):
    validate_name(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("a/b", "folder"),
        ("a\\b", "folder"),
        ("..", "folder"),
        ("C:cat", "':' doesn't work"),
        ("cat<1>", "doesn't work"),
        ("x=y", "'=' doesn't work"),
        ("a,b", "doesn't work"),
        ("cat\n", "doesn't work"),
        ("cat\0", "doesn't work"),
        ("a|b?", "doesn't work"),
        ("a\udcff", "doesn't work"),
        ("a\u2028b", "doesn't work"),
        ("tac\u202ename", "doesn't work"),
        (".cat", "starts or ends"),
        ("cat.", "starts or ends"),
        (" cat", "starts or ends"),
        ("cat ", "starts or ends"),
        ("cat.safetensors", "file extension"),
        ("none", "WebUI uses"),
        ("None", "WebUI uses"),
        ("addams", "WebUI uses"),
        ("CON", "Windows"),
        ("nul.x", "Windows"),
        ("com1", "Windows"),
        ("lpt9 .x", "Windows"),
        ("a" * 121, "longer"),
        ("漢" * 100, "longer"),
    ],
)
def test_bad_names_say_why(name, words):
    with pytest.raises(OutputError, match=words):
        validate_name(name)


def test_of_millions_of_training_tags_the_most_frequent_are_kept():
    rare = {f"rare tag number {i:06d}": 1 for i in range(60_000)}
    sources = [
        Lora(
            name,
            layers(layer(Q)),
            {"ss_tag_frequency": json.dumps({"1_x": {**rare, name: 50}, "2_y": {"twice": 2}})},
        )
        for name in ("cat", "ink")
    ]
    assert tags_are_shortened(sources)
    text = merged_metadata("both", layers(layer(Q)), sources)["ss_tag_frequency"]
    kept = json.loads(text)
    assert 900_000 < len(text) < 1_100_000
    assert kept["cat: 1_x"]["cat"] == kept["ink: 1_x"]["ink"] == 50
    assert kept["cat: 2_y"] == kept["ink: 2_y"] == {"twice": 2}
    few = [Lora("cat", layers(layer(Q)), {"ss_tag_frequency": json.dumps({"1_x": {"a": 1}})})]
    assert not tags_are_shortened(few)
