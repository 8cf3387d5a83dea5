"""LoRAs, inspection, settings, and the description of it all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from lib_ziplora import config
from lib_ziplora.api.bodies import merge_request
from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.errors import ConfigError

from ..support.pico_host import module_names
from .support import V1, LockedHost, body


def test_the_catalog_judges_by_tensors(client: TestClient, host: LockedHost) -> None:
    found = {one["name"]: one for one in client.get(f"{V1}/loras").json()}
    assert set(found) == {"dog", "ink", "old", "broken"}
    dog = found["dog"]
    assert (dog["base"], dog["rank"], dog["layers"], dog["usable"]) == ("sdxl", 2, len(module_names()), True)
    assert dog["prompt"] == "sks dog" and set(dog) == {
        "name", "base", "rank", "layers", "prompt", "usable", "reason"
    }  # fmt: skip
    assert not found["broken"]["usable"] and "broken.safetensors" in found["broken"]["reason"]


def test_a_scan_tells_which_loras_go_together(client: TestClient) -> None:
    answer = client.post(f"{V1}/scan", json={"subjects": ["dog"]})
    assert answer.status_code == 200 and answer.json()["pending"] == 0
    (pair,) = [one for one in answer.json()["pairs"] if one["style"] == "ink"]
    two = client.post(f"{V1}/inspect", json={"lora": "dog", "other": "ink"}).json()
    assert pair["subject"] == "dog" and abs(pair["overlap"] - two["mean_overlap"]) < 1e-6
    assert client.post(f"{V1}/scan", json={"subjects": ["gone"]}).status_code == 404
    assert client.post(f"{V1}/scan", json={"subjects": []}).status_code == 422


def test_inspecting_one_and_two(client: TestClient) -> None:
    one = client.post(f"{V1}/inspect", json={"lora": "dog", "layers": True}).json()
    assert (one["name"], one["base"], one["dialect"], one["ranks"]) == ("dog", "sdxl", "kohya", [2])
    assert one["metadata"] == {"ss_output_name": "sks dog"} and len(one["layers"]) == one["unet_layers"]
    two = client.post(f"{V1}/inspect", json={"lora": "dog", "other": "ink"}).json()
    assert two["common_layers"] == len(two["overlap"]) == len(module_names())
    assert all(0 <= value <= 1 for value in two["overlap"].values())
    same = client.post(f"{V1}/inspect", json={"lora": "dog", "other": "dog"}).json()
    assert same["mean_overlap"] == pytest.approx(1, abs=1e-3)
    for wrong in (
        {"lora": "dog", "other": "ink", "layers": True},
        {"lora": "dog", "file": "x"},
        {},
        {"lora": 1},
    ):
        assert client.post(f"{V1}/inspect", json=wrong).status_code == 422
    assert client.post(f"{V1}/inspect", json={"lora": "broken"}).status_code == 422


def test_the_settings_are_those_of_the_configuration(client: TestClient) -> None:
    shown = client.get(f"{V1}/settings").json()
    assert [one["name"] for one in shown] == list(config.setting_fields())
    for one in shown:
        option = config.setting_fields()[one["name"]]
        assert one["default"] == config.setting_defaults()[one["name"]]
        assert type(one["default"]) is type(config.setting_defaults()[one["name"]])
        assert (one["label"], one["help"], one["advanced"]) == (option.label, option.help, option.advanced)
        assert (one["minimum"], one["maximum"], one["step"]) == (option.minimum, option.maximum, option.step)
        assert one["choices"] == list(option.choices)


def other_value(name: str) -> Any:
    """A value of a setting that is allowed and not its default."""
    option, default = config.setting_fields()[name], config.setting_defaults()[name]
    if option.choices:
        return next(choice for choice in option.choices if choice != default)
    if isinstance(default, bool):
        return not default
    words = {"negative_prompt": "blurry", "combined_prompt": "a dog in ink", "rank": "64"}
    return words.get(name, option.maximum)


@pytest.mark.parametrize("name", config.setting_fields())
def test_every_setting_is_taken(name: str) -> None:
    values = {name: other_value(name)}
    taken = merge_request(body(settings=values)).settings
    assert taken == config.settings_from(values) != MergeSettings()
    wrong = 1 if isinstance(values[name], (bool, str)) else str(values[name])
    with pytest.raises(ConfigError, match=f"settings.{name} must be"):
        merge_request(body(settings={name: wrong}))


def test_absent_settings_keep_their_default() -> None:
    assert merge_request(body(settings={})).settings == MergeSettings()
    assert merge_request(body(settings={"steps": 7.0, "similarity_lambda": 1})).settings.steps == 7


def test_the_description_has_every_field_and_every_refusal(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    ours = {path: ways for path, ways in described["paths"].items() if path.startswith(V1)}
    assert set(ours) == {
        f"{V1}/{path}"
        for path in (
            "merge", "re-export", "jobs", "jobs/{job_id}", "jobs/{job_id}/interrupt", "jobs/{job_id}/finish",
            "loras", "inspect", "settings", "check", "explain", "matrix", "compare", "scan",
        )
    }  # fmt: skip
    for ways in ours.values():
        for one in ways.values():
            assert one["summary"] and one["description"] and {"401", "403"} <= set(one["responses"])
    schema = ours[f"{V1}/merge"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    settings = schema["properties"]["settings"]["properties"]
    assert list(settings) == list(config.setting_fields())
    assert settings["steps"]["maximum"] == 1000 and settings["steps"]["type"] == "integer"
    inputs = set(schema["properties"]["subject"]["properties"])
    assert inputs == set(LoraInput.__dataclass_fields__) - {"images", "role"}
    assert set(schema["properties"]["loras"]["items"]["properties"]) == {*inputs, "role"}
    assert set(schema["properties"]) == {*MergeRequest.__dataclass_fields__, "subject", "style"}
    assert merge_request(schema["example"]).output == schema["example"]["output"]
    json.dumps(described)
