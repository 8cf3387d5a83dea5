"""What can be told of a merge before it is made, and after, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from lib_ziplora.api.bodies import merge_request
from lib_ziplora.pipeline.preflight import preflight

from .support import QUICK, V1, LockedHost, body, files, submit, wait


def check(client: TestClient, **changed: Any) -> dict[str, Any]:
    answer = client.post(f"{V1}/check", json={**body(), **changed})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_merge_is_told_as_the_tab_tells_it(client: TestClient, host: LockedHost) -> None:
    found, before = check(client), files(host)
    expected = preflight(merge_request(body()), host)
    assert found["names"] == ["dog", "ink"] and found["problems"] == []
    assert found["common_layers"] == expected.common_layers and found["size"] == expected.size
    assert expected.overlap is not None and found["advice"] == expected.advice != ""
    assert found["overlap"]["mean"] == pytest.approx(expected.overlap.mean)
    places = {(one["block"], one["kind"]): one["overlap"] for one in found["overlap"]["places"]}
    assert places == pytest.approx(dict(expected.overlap.places))
    assert files(host) == before and host.forwards == 0 and client.get(f"{V1}/jobs").json() == []


def test_the_time_is_that_of_a_merge_before(client: TestClient) -> None:
    assert check(client)["seconds"] is None
    assert wait(client, submit(client))["state"] == "done"
    longer = check(client, output="other", settings={**QUICK, "steps": 1000})
    assert longer["seconds"] > check(client, output="other")["seconds"] > 0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"style": {"lora": "old", "prompt": "x"}}, "old.safetensors"),
        ({"style": {"lora": "broken", "prompt": "x"}}, "broken.safetensors"),
        ({"style": {"lora": "dog", "prompt": "x"}}, "same file"),
        ({"style": {"lora": "ink"}}, "no prompt for ink"),
        ({"output": "ink"}, "ink.safetensors exists already"),
    ],
    ids=str,
)
def test_what_speaks_against_it_is_told_in_the_words_of_the_refusal(
    client: TestClient, host: LockedHost, changed: dict[str, Any], says: str
) -> None:
    found = check(client, **changed)
    assert any(says in problem for problem in found["problems"]), found
    assert str(host.folder) not in json.dumps(found) and found["seconds"] is None
    refused = client.post(f"{V1}/merge", json={**body(), **changed})
    assert refused.status_code in (409, 422) and refused.json()["detail"] in found["problems"]


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"subject": {"lora": "gone"}}, 404),
        ({"subject": {"lora": "../dog"}}, 404),
        ({"output": "../x"}, 422),
        ({"settings": {"steps": 0}}, 422),
        ({"more": 1}, 422),
    ],
    ids=str,
)
def test_requests_that_are_none_are_refused(client: TestClient, changed: dict[str, Any], status: int) -> None:
    assert client.post(f"{V1}/check", json={**body(), **changed}).status_code == status


def test_a_merge_is_explained_without_its_folders(client: TestClient, host: LockedHost) -> None:
    assert wait(client, submit(client, report=True))["report"]["report_files"] == [
        "dog_ink.report.html",
        "dog_ink.report.json",
    ]
    answer = client.post(f"{V1}/explain", json={"lora": "dog_ink"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [lora["lora"] for lora in found["loras"]] == ["dog", "ink"] and found["words"]
    assert len(found["coefficients"]["loras"]) == 2 and len(found["history"]) == QUICK["steps"]
    assert str(host.folder) not in answer.text


def test_what_can_not_be_explained_is_refused(client: TestClient) -> None:
    assert client.post(f"{V1}/explain", json={"lora": "gone"}).status_code == 404
    answer = client.post(f"{V1}/explain", json={"lora": "dog"})
    assert answer.status_code == 422 and "dog.ziplora" in answer.json()["detail"]
    assert client.post(f"{V1}/explain", json={"lora": "dog", "x": 1}).status_code == 422
