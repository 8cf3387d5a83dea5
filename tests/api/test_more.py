"""More than two LoRAs, and merges that are exported again, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from starlette.testclient import TestClient

from lib_ziplora.api.bodies import SCHEMAS
from lib_ziplora.options import from_json
from lib_ziplora.pipeline.reexport import ReexportRequest

from ..support.pico_host import module_names, write_kohya
from .support import QUICK, V1, LockedHost, files, host_service, submit, wait

DIRECT = {"method": "direct", "precision": "fp32"}


def three(**changed: Any) -> dict[str, Any]:
    loras = [
        {"lora": "dog", "role": "subject", "prompt": "a dog"},
        {"lora": "cat", "role": "subject", "prompt": "a cat", "weight": 0.5},
        {"lora": "ink", "role": "style", "prompt": "in ink"},
    ]
    return {"loras": loras, "output": "all", "settings": QUICK, **changed}


@pytest.fixture
def cat(host: LockedHost) -> None:
    write_kohya(host.folder / "cat.safetensors", module_names(), rank=1, seed=5)


def post(client: TestClient, path: str, body: dict[str, Any]) -> str:
    answer = client.post(f"{V1}/{path}", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


@pytest.mark.usefixtures("cat")
def test_three_loras_are_merged_and_named(client: TestClient, host: LockedHost) -> None:
    done = wait(client, post(client, "merge", three()))
    assert done["state"] == "done", done
    assert (done["kind"], done["source"]) == ("merge", "")
    assert done["loras"] == [
        {"lora": "dog", "role": "subject"},
        {"lora": "cat", "role": "subject"},
        {"lora": "ink", "role": "style"},
    ]
    assert done["report"]["rank"] == 6 and set(done["report"]["single_layers"]) == {
        "subject 1",
        "subject 2",
        "style",
    }
    assert host_service(client).jobs()[0].request.labels == ("subject 1", "subject 2", "style")


@pytest.mark.usefixtures("cat")
@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"subject": {"lora": "dog"}}, 422, "either loras, or subject and style"),
        ({"loras": []}, 422, "at least two"),
        ({"loras": [{"lora": "dog", "role": "subject"}]}, 422, "at least two"),
        ({"loras": {"lora": "dog"}}, 422, "loras must be an array"),
        ({"loras": ["dog", "ink"]}, 422, "loras[0] must be an object"),
        ({"loras": [{"lora": "dog"}, {"lora": "ink", "role": "style"}]}, 422, "loras[0].role is missing"),
        ({"loras": [{"lora": "dog", "role": "hero"}]}, 422, "loras[0].role must be one of subject, style"),
        (
            {"loras": [{"lora": "dog", "role": "style", "images": ["/etc/passwd"]}]},
            422,
            "Unknown field 'images' in loras[0]",
        ),
        (
            {"loras": [{"lora": "dog", "role": "style"}, {"lora": "../cat", "role": "style"}]},
            404,
            "There is no LoRA named",
        ),
    ],
)
def test_wrong_lists_are_refused_by_place(
    client: TestClient, change: dict[str, Any], status: int, says: str
) -> None:
    answer = client.post(f"{V1}/merge", json=three(**change))
    assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text


def test_a_merge_is_exported_again(client: TestClient, host: LockedHost) -> None:
    assert wait(client, submit(client))["state"] == "done"
    forwards = host.forwards
    done = wait(client, post(client, "re-export", {"source": "dog_ink", "output": "same"}))
    assert done["state"] == "done", done
    assert (done["kind"], done["source"], done["loras"]) == ("re-export", "dog_ink", [])
    assert done["report"]["tag"] == "<lora:same:1>" and host.forwards == forwards
    first, second = (load_file(host.folder / f"{name}.safetensors") for name in ("dog_ink", "same"))
    assert all(torch.equal(first[key], second[key]) for key in {*first, *second})
    assert str(host.folder.parent) not in client.get(f"{V1}/jobs").text


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"source": "../dog_ink"}, 404, "There is no LoRA named"),
        ({"source": "dog"}, 422, "there is no dog.ziplora"),
        ({"source": 1}, 422, "source must be a string"),
        ({"output": "ink"}, 409, "ink.safetensors exists already"),
        ({"output": "../x"}, 422, "folder"),
        ({"subject_weights": 0.5}, 422, "subject_weights must be an array"),
        ({"subject_weights": [1, "2"]}, 422, "subject_weights[1] must be a number"),
        ({"style_weights": [1, 1]}, 422, "2 weights for a style, but dog_ink was merged from 1"),
        ({"style_weights": [0]}, 422, "not 0"),
        ({"rank": 64}, 422, "rank must be a string"),
        ({"precision": "fp8"}, 422, "precision must be one of"),
        ({"steps": 5}, 422, "Unknown field 'steps'"),
    ],
)
def test_wrong_exports_are_refused_in_a_sentence(
    client: TestClient, host: LockedHost, change: dict[str, Any], status: int, says: str
) -> None:
    assert wait(client, submit(client, settings=DIRECT))["state"] == "done"
    before = files(host)
    answer = client.post(f"{V1}/re-export", json={"source": "dog_ink", "output": "x", **change})
    assert answer.status_code == status and says in answer.json()["detail"], answer.text
    assert str(host.folder) not in answer.text and files(host) == before


def test_the_description_has_every_field_of_an_export() -> None:
    schema = SCHEMAS[ReexportRequest]
    assert set(schema["properties"]) == set(ReexportRequest.__dataclass_fields__)
    assert from_json(ReexportRequest, schema["example"]).style_weights == (0.6,)
