"""What the API refuses, and how it says so."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from lib_ziplora import api
from lib_ziplora.errors import OutputError
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.jobs.service import Service

from ..support.pico_host import module_names, write_kohya
from .support import JSON, SECONDS, V1, LockedHost, body, files, held, submit, wait


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"subject": {"lora": "cat"}}, 404, "'cat'"),
        ({"subject": {"lora": "dog", "image": "x"}}, 422, "image"),
        ({"subject": {"lora": "dog", "images": ["/etc/passwd"]}}, 422, "images"),
        ({"subject": {"lora": "dog", "weight": 0}}, 422, "weight"),
        ({"subject": {"lora": "dog", "weight": "1"}}, 422, "subject.weight"),
        ({"subject": {"lora": "dog", "weight": True}}, 422, "subject.weight"),
        ({"subject": {"lora": "dog", "weight": 10**400}}, 422, "subject.weight"),
        ({"subject": {"lora": "dog", "prompt": None}}, 422, "subject.prompt"),
        ({"subject": {"prompt": "a dog"}}, 422, "subject.lora"),
        ({"subject": "dog"}, 422, "subject"),
        ({"subject": {"lora": ""}}, 422, "No LoRA"),
        ({"style": {"lora": "dog"}}, 422, "same file"),
        ({"style": {"lora": "old"}}, 422, "old.safetensors"),
        ({"style": {"lora": "broken"}}, 422, "broken.safetensors"),
        ({"style": {"lora": "ink"}}, 422, "no prompt for ink"),
        ({"output": "ink"}, 409, "ink"),
        ({"output": 7}, 422, "output"),
        ({"overwrite": "no"}, 422, "overwrite"),
        ({"force": True}, 422, "force"),
        ({"settings": {"step": 5}}, 422, "step"),
        ({"settings": {"steps": 0}}, 422, "steps"),
        ({"settings": {"steps": 2.5}}, 422, "settings.steps"),
        ({"settings": {"steps": "5"}}, 422, "settings.steps"),
        ({"settings": {"steps": 10**400}}, 422, "steps"),
        ({"settings": {"negative_prompt": ["x"]}}, 422, "settings.negative_prompt"),
        ({"settings": {"method": "magic"}}, 422, "method"),
        ({"settings": []}, 422, "settings"),
    ],
)
def test_wrong_requests_are_refused_in_a_sentence(
    client: TestClient, host: LockedHost, change: dict[str, Any], status: int, says: str
) -> None:
    answer = client.post(f"{V1}/merge", json={**body(), **change})
    assert answer.status_code == status, answer.text
    sentence = answer.json()["detail"]
    assert isinstance(sentence, str) and says in sentence and str(host.folder) not in sentence
    assert client.get(f"{V1}/jobs").json() == [] and host.forwards == 0


@pytest.mark.parametrize("field", ["subject", "style", "output"])
def test_what_is_missing_is_named(client: TestClient, field: str) -> None:
    answer = client.post(f"{V1}/merge", json={k: v for k, v in body().items() if k != field})
    assert answer.status_code == 422 and answer.json()["detail"].startswith(field)


def test_files_that_are_no_text_take_nothing_else_away(tmp_path: Path) -> None:
    write_kohya(tmp_path / "good.safetensors", module_names())
    try:
        write_kohya(tmp_path / os.fsdecode(b"caf\xe9.safetensors"), module_names())
    except OSError:
        pytest.skip("this file system takes no such names")
    app = FastAPI()
    service = Service(StandaloneHost(None, [tmp_path], strict=True))
    api.add_routes(app, service)
    client = TestClient(app)
    assert [(one["name"], one["usable"]) for one in client.get(f"{V1}/loras").json()] == [
        ("caf\ufffd", False),
        ("good", True),
    ]
    for name in ("caf\ufffd", "caf"):
        answer = client.post(f"{V1}/inspect", json={"lora": name})
        assert answer.status_code == (404 if name == "caf" else 200)
    service.stop(timeout=SECONDS)


@pytest.mark.parametrize("change", ["prompt", "combined_prompt", "negative_prompt"])
def test_prompts_that_are_too_long_are_refused(client: TestClient, change: str) -> None:
    long = (
        {"subject": {"lora": "dog", "prompt": "x" * 5001}}
        if change == "prompt"
        else {"settings": {change: "x" * 5001}}
    )
    answer = client.post(f"{V1}/merge", json={**body(), **long})
    assert answer.status_code == 422 and "5001 characters; 5000 are the most" in answer.json()["detail"]


def test_a_client_that_hangs_up_is_no_error(client: TestClient) -> None:
    """As the server sees it: half of a body, then nobody."""
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"host", b"testserver")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"{V1}/inspect",
        "headers": headers,
        "query_string": b"",
    }
    scope |= {
        "http_version": "1.1",
        "scheme": "http",
        "server": ("testserver", 80),
        "client": ("a", 1),
        "root_path": "",
    }
    asyncio.run(client.app(scope, receive, send))
    assert sent[0]["status"] == 400


TRICKS = [
    "",
    "../dog",
    "..\\dog",
    "./dog",
    "/etc/passwd",
    "C:\\dog",
    "dog.safetensors",
    "dog\0",
    "dog\n",
    "\u202edog",
    "ｄog",
    "dog/../dog",
    "file:///dog",
    "~",
    "..",
    " dog",
]


@pytest.mark.parametrize("name", TRICKS)
def test_nothing_but_a_name_means_a_lora(client: TestClient, name: str) -> None:
    for side in ("subject", "style") if name else ():
        answer = client.post(f"{V1}/merge", json=body(**{side: name}))
        assert answer.status_code == 404 and "There is no LoRA named" in answer.json()["detail"]
    assert client.post(f"{V1}/inspect", json={"lora": name}).status_code == 404
    assert client.post(f"{V1}/explain", json={"lora": name}).status_code == 404
    if name:
        assert client.post(f"{V1}/inspect", json={"lora": "dog", "other": name}).status_code == 404


@pytest.mark.parametrize(
    "name", [t for t in TRICKS if t not in ("ｄog", "~")] + [" ", "none", "a:b", "a=b", "con", "x" * 300]
)
def test_nothing_but_a_name_can_be_written(client: TestClient, host: LockedHost, name: str) -> None:
    before = sorted(host.folder.parent.rglob("*"))
    answer = client.post(f"{V1}/merge", json=body(output=name))
    assert answer.status_code == 422, answer.text
    assert sorted(host.folder.parent.rglob("*")) == before


def test_names_beyond_ascii_work(client: TestClient, host: LockedHost) -> None:
    end = wait(client, submit(client, output="犬_ink", settings={"method": "direct"}))
    assert end["state"] == "done" and end["report"]["tag"] == "<lora:犬_ink:1>" and "犬_ink" in files(host)


def test_overwrite_and_names_that_are_spoken_for(client: TestClient, host: LockedHost) -> None:
    direct = {"method": "direct"}
    held(client, host, output="a")
    taken = client.post(f"{V1}/merge", json=body(output="A", settings=direct))
    assert taken.status_code == 409 and "not ended" in taken.json()["detail"]
    host.gate.set()
    for one in client.get(f"{V1}/jobs").json():
        wait(client, one["id"])
    assert client.post(f"{V1}/merge", json=body(output="a", settings=direct)).status_code == 409
    assert wait(client, submit(client, output="a", settings=direct, overwrite=True))["state"] == "done"


def test_a_model_that_can_not_be_used_is_a_conflict(client: TestClient, host: LockedHost) -> None:
    host.refusal = "Choose an SDXL base checkpoint."
    answer = client.post(f"{V1}/merge", json=body())
    assert (answer.status_code, answer.json()["detail"]) == (409, host.refusal)
    assert wait(client, submit(client, settings={"method": "direct"}))["state"] == "done"


def test_a_failure_while_it_runs_is_told_and_the_next_job_runs(client: TestClient, host: LockedHost) -> None:
    def swap(_count: int) -> None:
        host.alive = False

    host.before_forward = swap
    end = wait(client, submit(client))
    assert end["state"] == "failed" and "changed during the merge" in end["error"]
    host.alive, host.before_forward = True, lambda count: 1 / 0
    end = wait(client, submit(client))
    assert end["state"] == "failed" and "ZeroDivisionError" in end["error"]
    host.before_forward = lambda count: None
    assert wait(client, submit(client))["state"] == "done"


def test_a_host_that_can_not_be_locked_fails_the_job_alone(client: TestClient, host: LockedHost) -> None:
    whole = host.exclusive
    host.exclusive = lambda: 1 / 0  # type: ignore[method-assign]
    assert wait(client, submit(client))["state"] == "failed"
    host.exclusive = whole  # type: ignore[method-assign]
    assert wait(client, submit(client))["state"] == "done"


def test_sentences_name_no_folder(client: TestClient, host: LockedHost) -> None:
    def elsewhere(_name: str) -> Path:
        raise OutputError(f"The name means the LoRA {host.folder}/sub/x.safetensors; {host.folder} is full.")

    host.output_path = elsewhere  # type: ignore[method-assign]
    sentence = client.post(f"{V1}/merge", json=body()).json()["detail"]
    assert sentence == "The name means the LoRA sub/x.safetensors; the LoRA folder is full."


def test_no_answer_names_a_folder(client: TestClient, host: LockedHost) -> None:
    wait(client, submit(client))
    answers = [client.get(f"{V1}/{path}") for path in ("jobs", "loras", "settings")]
    answers += [
        client.post(f"{V1}/inspect", json=question)
        for question in ({"lora": "dog"}, {"lora": "dog", "layers": True}, {"lora": "dog", "other": "ink"})
    ]
    for answer in answers:
        assert answer.status_code == 200 and str(host.folder.parent) not in answer.text


def test_unknown_jobs(client: TestClient) -> None:
    for answer in (
        client.get(f"{V1}/jobs/nobody"),
        client.post(f"{V1}/jobs/nobody/interrupt"),
        client.post(f"{V1}/jobs/nobody/finish"),
    ):
        assert answer.status_code == 404 and "nobody" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b"", JSON, 400),
        (b"\xff\xfe", JSON, 400),
        (b'{"a": NaN}', JSON, 400),
        (b'{"a": Infinity}', JSON, 400),
        (b'{"output": "\\ud800"}', JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b"1" * 10_000, JSON, 400),
        (b"[]", JSON, 422),
        (b"null", JSON, 422),
        (b"{}", {}, 415),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"a=1", {"content-type": "application/x-www-form-urlencoded"}, 415),
        (b"{" + b" " * 300_000 + b"}", JSON, 413),
        (b"{}", {"content-type": "application/json; charset=utf-8"}, 422),
    ],
)
def test_bodies_that_are_no_request(
    client: TestClient, content: bytes, headers: dict[str, str], status: int
) -> None:
    for path in ("merge", "inspect"):
        answer = client.post(f"{V1}/{path}", content=content, headers=headers)
        assert answer.status_code == status, answer.text
        assert isinstance(answer.json()["detail"], str)
