"""The same merge by every front end: the same things remembered, the same files, the same sentences."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from lib_ziplora import api, cli
from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.jobs.service import Service
from lib_ziplora.library.catalog import catalog
from lib_ziplora.pipeline.matrix import MatrixRequest

from ..support import minixl

DIRECT = MergeSettings(method="direct")
SUBJECT, STYLE = minixl.SUBJECT.stem, minixl.STYLE.stem
PROMPTS = ("a sks icon", "a bell icon in szn style")
SECONDS = 60
Sentences = tuple[str, ...]


def request() -> MergeRequest:
    subject, style = LoraInput(SUBJECT, PROMPTS[0]), LoraInput(STYLE, PROMPTS[1])
    return MergeRequest.pair(subject, style, "both", settings=DIRECT)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    """What a tab that is open shares with the API; its memory lies in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "loras"
    folder.mkdir()
    for file in (minixl.SUBJECT, minixl.STYLE):
        shutil.copy(file, folder)
    return Service(StandaloneHost(None, [folder], device="cpu", strict=True))


def folder_of(service: Service) -> Path:
    return service.host.loras()[0].path.parent


def post(service: Service, path: str, body: dict[str, Any]) -> dict[str, Any]:
    app = FastAPI()
    api.add_routes(app, service)
    client = TestClient(app)
    answer = client.post(f"/ziplora/v1/{path}", json=body)
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + SECONDS
    while True:
        view: dict[str, Any] = client.get(f"/ziplora/v1/jobs/{answer.json()['id']}").json()
        if view["state"] not in ("queued", "running"):
            return view
        assert time.monotonic() < deadline, view
        time.sleep(0.02)


def loras() -> dict[str, Any]:
    return {
        "subject": {"lora": SUBJECT, "prompt": PROMPTS[0]},
        "style": {"lora": STYLE, "prompt": PROMPTS[1]},
        "settings": {"method": "direct"},
    }


def over_rest(service: Service, _capsys: Any) -> Sentences:
    return tuple(post(service, "merge", {**loras(), "output": "both"})["report"]["warnings"])


def by_command(service: Service, capsys: pytest.CaptureFixture[str]) -> Sentences:
    prompts = ("--subject-prompt", PROMPTS[0], "--style-prompt", PROMPTS[1])
    where = ("--lora-dir", str(folder_of(service)), "-o", "both", "--method", "direct", "--device", "cpu")
    assert cli.main(["merge", SUBJECT, STYLE, *prompts, *where]) == 0
    lines = capsys.readouterr().err.splitlines()
    return tuple(line.removeprefix("warning: ") for line in lines if line.startswith("warning: "))


def by_task(service: Service, _capsys: Any) -> Sentences:
    """By a caller that waits for the host itself."""
    job = service.submit(request(), background=False)
    with service.host.exclusive():
        service.run(job)
    assert job.report is not None, job.error
    return job.report.warnings


FRONT_ENDS: tuple[Callable[[Service, Any], Sentences], ...] = (over_rest, by_command, by_task)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_every_front_end_leaves_the_same_behind(
    service: Service, front_end: Callable[[Service, Any], Sentences], capsys: pytest.CaptureFixture[str]
) -> None:
    assert front_end(service, capsys) == ()
    (recent,) = service.recent.merges()
    assert recent.loras == request().loras
    assert [entry.name for entry in catalog(service.host) if entry.merged] == ["both"]
    folder = folder_of(service)
    made = {file.name for file in folder.iterdir()} - {minixl.SUBJECT.name, minixl.STYLE.name}
    assert made == {"both.safetensors", "both.ziplora", "both.json"}
    card = json.loads((folder / "both.json").read_text(encoding="utf-8"))
    assert card["activation text"] == "a sks icon in szn style"


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_every_front_end_says_the_same_of_a_card_that_is_none(
    service: Service, front_end: Callable[[Service, Any], Sentences], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder_of(service) / "both.json").write_text("[]", encoding="utf-8")
    assert front_end(service, capsys) == (
        "The LoRA is written, but its card is not: The card both.json holds no JSON object. It was left as it is. "
        "Correct both.json or remove it.",
    )


def test_one_sentence_says_why_there_is_no_sheet(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = {"subjects": [{"lora": SUBJECT}], "styles": [{"lora": STYLE}], "names": "over rest"}
    body = {**pairs, "settings": {"method": "direct"}, "sheet": True}
    (told,) = post(service, "matrix", body)["pictures"]["remarks"]
    assert told.startswith("The sheet was not drawn: There is no checkpoint to draw with")
    names = ("--subject", SUBJECT, "--style", STYLE, "--lora-dir", str(folder_of(service)), "--device", "cpu")
    asked = ["matrix", *names, "-o", "by command", "--method", "direct", "--sheet", str(tmp_path / "s.png")]
    assert cli.main(asked) == 0
    assert f"warning: {told}" in capsys.readouterr().err.splitlines()
    lora, style = LoraInput(SUBJECT), LoraInput(STYLE, role="style")
    job = service.submit(
        MatrixRequest((lora,), (style,), names="by task", settings=DIRECT, sheet=True), background=False
    )
    with service.host.exclusive():
        service.run(job)
    assert job.result.pictures is not None and job.result.pictures.remarks == (told,)


def test_a_job_begun_anywhere_is_seen_while_it_runs(service: Service) -> None:
    seen: list[tuple[str, str]] = []
    job = service.submit(request(), background=False)
    assert service.running() is None and service.jobs() == [job]

    def look(_progress: object) -> None:
        running = service.running()
        assert running is job and job.progress is not None
        seen.append((running.id, job.progress.stage))

    with service.host.exclusive():
        service.run(job, look)
    assert {one for one, _ in seen} == {job.id} and seen[-1][1] == "done"
    assert service.running() is None and service.written == 1


def test_an_interrupt_that_no_front_end_asked_for_is_said_to_come_from_elsewhere(service: Service) -> None:
    for ask, elsewhere in ((lambda job: service.host.interrupt(), True), (service.interrupt, False)):
        job = service.submit(request(), background=False)
        with service.host.exclusive():
            service.run(job, lambda _progress, ask=ask, job=job: job.stopping or ask(job))
        assert job.state == "interrupted" and "nothing was written" in job.error
        assert ("from elsewhere" in job.error) == elsewhere


def test_an_error_after_an_interrupt_is_an_interrupt(service: Service) -> None:
    """Loaders that are interrupted answer with errors of all kinds, such as that protobuf is missing."""
    job = service.submit(request(), background=False)

    def fail(_progress: object) -> None:
        service.interrupt(job)
        raise ImportError("it requires protobuf")

    with service.host.exclusive():
        service.run(job, fail)
    assert (job.state, job.error) == ("interrupted", "The job was interrupted.")
    assert not (folder_of(service) / "both.safetensors").exists()
