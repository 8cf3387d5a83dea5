"""Matrices and comparisons over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from lib_ziplora import api
from lib_ziplora.api.bodies import SCHEMAS
from lib_ziplora.api.views import without_folders
from lib_ziplora.errors import OutputError
from lib_ziplora.hosts import Sampler
from lib_ziplora.jobs.service import Service
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.options import from_json
from lib_ziplora.pictures.comparison import CompareRequest
from lib_ziplora.pipeline.matrix import MatrixRequest

from ..support.drawing_host import DrawingHost
from ..support.pico_host import module_names, write_kohya
from .support import QUICK, SECONDS, V1, LockedHost, files, held, host_service, job, submit, wait

DIRECT = {"method": "direct", "precision": "fp32"}


class Host(LockedHost, DrawingHost):
    """Locks, stops and draws."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    folder = tmp_path / "loras with spaces"
    folder.mkdir()
    for seed, name in enumerate(("dog", "cat", "ink", "clay"), 1):
        write_kohya(folder / f"{name}.safetensors", module_names(), rank=2, seed=seed)
    (folder / "broken.safetensors").write_bytes(b"no header")
    host = Host(folder)
    host.saves = tmp_path / "pictures" / "sheet.png"
    host.saves.parent.mkdir()
    host.cards = {name: {"activation text": f"a {name}"} for name in ("dog", "cat", "ink", "clay")}
    yield host
    host.gate.set()


@pytest.fixture
def client(host: Host) -> Iterator[TestClient]:
    app = FastAPI()
    app.state.service = service = Service(host)
    api.add_routes(app, service)
    yield TestClient(app)
    host.gate.set()
    service.stop(timeout=SECONDS)


def matrix(**changed: Any) -> dict[str, Any]:
    body = {
        "subjects": [{"lora": "dog"}, {"lora": "cat", "weight": 0.5}],
        "styles": [{"lora": "ink"}, {"lora": "clay"}],
        "settings": DIRECT,
    }
    return {**body, **changed}


def post(client: TestClient, path: str, body: dict[str, Any]) -> str:
    answer = client.post(f"{V1}/{path}", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.json()["state"] == "queued"
    return str(answer.json()["id"])


def states(view: dict[str, Any]) -> dict[str, str]:
    return {pair["output"]: pair["state"] for pair in view["pairs"]}


def test_every_subject_is_merged_with_every_style(client: TestClient, host: Host) -> None:
    done = wait(client, post(client, "matrix", matrix()))
    assert (done["state"], done["kind"], done["output"]) == ("done", "matrix", "{subject}_{style}")
    assert states(done) == dict.fromkeys(("dog_ink", "dog_clay", "cat_ink", "cat_clay"), "done")
    assert [pair["report"]["tag"] for pair in done["pairs"]][:1] == ["<lora:dog_ink:1>"]
    assert len(done["loras"]) == 4 and done["report"] is None and done["pictures"] is None
    merged, cat, clay = (
        read_lora(host.folder / f"{name}.safetensors") for name in ("cat_clay", "cat", "clay")
    )
    for name, layer in merged.layers.items():
        expected = 0.5 * cat.layers[name].delta() + clay.layers[name].delta()
        torch.testing.assert_close(layer.delta(), expected)


def test_a_pair_that_can_not_be_merged_does_not_stop_the_rest(client: TestClient, host: Host) -> None:
    body = matrix(subjects=[{"lora": "broken"}, {"lora": "dog"}], styles=[{"lora": "ink"}])
    job_id = post(client, "matrix", body)
    done = wait(client, job_id)
    assert done["state"] == "done" and states(done) == {"broken_ink": "refused", "dog_ink": "done"}
    assert "broken.safetensors" in done["pairs"][0]["sentence"] and done["pairs"][0]["report"] is None
    assert str(host.folder.parent) not in client.get(f"{V1}/jobs/{job_id}").text
    again = wait(client, post(client, "matrix", matrix()))
    assert states(again)["dog_ink"] == "exists" and states(again)["dog_clay"] == "done"


def test_a_matrix_of_which_nothing_can_be_merged_is_refused(client: TestClient, host: Host) -> None:
    before = files(host)
    answer = client.post(f"{V1}/matrix", json=matrix(subjects=[{"lora": "broken"}]))
    assert answer.status_code == 422 and "broken.safetensors" in answer.json()["detail"]
    assert str(host.folder) not in answer.text and files(host) == before
    assert client.get(f"{V1}/jobs").json() == []


@pytest.mark.parametrize(
    ("changed", "status", "says"),
    [
        ({"subjects": []}, 422, "No subject"),
        ({"subjects": {"lora": "dog"}}, 422, "subjects must be an array"),
        ({"subjects": ["dog"]}, 422, "subjects[0] must be an object"),
        ({"styles": [{"lora": "ink", "weight": "1"}]}, 422, "styles[0].weight must be a number"),
        ({"styles": [{"lora": "ink", "role": "style"}]}, 422, "Unknown field 'role' in styles[0]"),
        ({"styles": [{"lora": "ink"}, {"lora": "gone"}]}, 404, "'gone'"),
        ({"subjects": [{"lora": "../dog"}]}, 404, "There is no LoRA named"),
        ({"subjects": [{"lora": "dog"}, {"lora": "dog"}]}, 422, "Choose each LoRA once"),
        ({"names": "../{subject}_{style}"}, 422, "folder"),
        ({"names": "/tmp/{subject}_{style}"}, 422, "folder"),
        ({"names": "mine"}, 422, "{subject}"),
        ({"sheet": 1}, 422, "sheet must be a boolean"),
        ({"settings": {"steps": 0}}, 422, "steps"),
        ({"output": "x"}, 422, "Unknown field 'output'"),
    ],
    ids=str,
)
def test_wrong_matrices_are_refused(
    client: TestClient, host: Host, changed: dict[str, Any], status: int, says: str
) -> None:
    before = sorted(host.folder.parent.rglob("*"))
    answer = client.post(f"{V1}/matrix", json=matrix(**changed))
    assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text
    assert sorted(host.folder.parent.rglob("*")) == before


def test_interrupt_keeps_what_is_finished(client: TestClient, host: Host) -> None:
    assert wait(client, post(client, "matrix", matrix(styles=[{"lora": "ink"}])))["state"] == "done"
    host.gate.clear()
    host.inside.clear()
    body = matrix(styles=[{"lora": "ink"}, {"lora": "clay"}], settings=QUICK)
    job_id = post(client, "matrix", body)
    assert host.inside.wait(SECONDS)
    running = job(client, job_id)
    assert states(running) == {"dog_ink": "exists"} and running["progress"]["text"].startswith(
        "1 of 2, dog_clay"
    )
    assert client.post(f"{V1}/jobs/{job_id}/interrupt").json()["stopping"] == "interrupt"
    host.gate.set()
    end = wait(client, job_id)
    assert end["state"] == "interrupted" and "0 of 4" in end["error"]
    assert states(end)["dog_clay"] == "interrupted" and states(end)["cat_clay"] == "left"
    assert {"dog_ink", "cat_ink"} <= files(host) and not {"dog_clay", "cat_clay"} & files(host)


def test_names_that_a_waiting_matrix_will_write_are_spoken_for(client: TestClient, host: Host) -> None:
    held(client, host, output="first", settings=QUICK)
    post(client, "matrix", matrix())
    taken = {"subject": {"lora": "dog"}, "style": {"lora": "ink"}, "output": "Cat_Clay", "settings": DIRECT}
    answer = client.post(f"{V1}/merge", json=taken)
    assert answer.status_code == 409 and "not ended" in answer.json()["detail"]
    host_service(client).stop()


def test_a_matrix_tells_how_long_the_next_merge_takes(client: TestClient) -> None:
    body = matrix(subjects=[{"lora": "dog"}], styles=[{"lora": "ink"}], settings=QUICK)
    assert wait(client, post(client, "matrix", body))["state"] == "done"
    asked = {"subject": {"lora": "dog"}, "style": {"lora": "clay"}, "output": "x", "settings": QUICK}
    assert client.post(f"{V1}/check", json=asked).json()["seconds"] > 0


def test_a_sheet_shows_every_merge(client: TestClient, host: Host) -> None:
    done = wait(client, post(client, "matrix", matrix(sheet=True)))
    assert done["pictures"] == {
        "drawn": 4, "wanted": 4, "file": "sheet.png", "preview": None, "remarks": []
    }  # fmt: skip
    assert {picture.loras[0][0] for picture in host.drawn} == set(states(done))
    assert host.saves and Image.open(host.saves).width > 0
    host.before_picture = lambda number: 1 / 0
    end = wait(client, post(client, "matrix", matrix(sheet=True, overwrite=True)))
    assert end["state"] == "done" and end["pictures"]["drawn"] == 0
    assert "ZeroDivisionError" in end["pictures"]["remarks"][0]


def test_a_merge_is_drawn_beside_its_loras(client: TestClient, host: Host) -> None:
    assert wait(client, submit(client, settings=DIRECT))["state"] == "done"
    asked = {"source": "dog_ink", "prompts": ["a", "b"], "seeds": 2, "seed": 5, "steps": 4, "preview": True}
    job_id = post(client, "compare", asked)
    done = wait(client, job_id)
    assert (done["state"], done["kind"], done["source"], done["output"]) == ("done", "compare", "dog_ink", "")
    assert done["pictures"] == {
        "drawn": 16, "wanted": 16, "file": "sheet.png", "preview": "dog_ink.preview.png", "remarks": []
    }  # fmt: skip
    assert {(picture.prompt, picture.seed) for picture in host.drawn} == {
        (p, s) for p in "ab" for s in (5, 6)
    }
    assert host.drawn[-1].loras == (("dog_ink", 1.0),)
    assert host.samplers_used == [Sampler(steps=4)] and (host.folder / "dog_ink.preview.png").is_file()
    assert str(host.folder.parent) not in client.get(f"{V1}/jobs/{job_id}").text


def test_a_preview_of_the_users_own_stays(client: TestClient, host: Host) -> None:
    assert wait(client, submit(client, settings=DIRECT))["state"] == "done"
    own = host.folder / "dog_ink.png"
    Image.new("RGB", (8, 8)).save(own)
    before = own.read_bytes()
    done = wait(client, post(client, "compare", {"source": "dog_ink", "preview": True}))
    assert done["state"] == "done" and done["pictures"]["preview"] is None
    assert "dog_ink.png" in done["pictures"]["remarks"][0] and own.read_bytes() == before


def test_an_interrupted_comparison_tells_of_its_pictures(client: TestClient, host: Host) -> None:
    assert wait(client, submit(client, settings=DIRECT))["state"] == "done"
    host.before_picture = lambda number: host.interrupt() if number == 3 else None
    end = wait(client, post(client, "compare", {"source": "dog_ink", "prompts": ["a"]}))
    assert end["state"] == "interrupted" and "interrupted" in end["error"]
    assert (end["pictures"]["drawn"], end["pictures"]["wanted"]) == (2, 4)


def test_the_folder_of_the_pictures_is_told_to_nobody(client: TestClient, host: Host) -> None:
    assert wait(client, submit(client, settings=DIRECT))["state"] == "done"

    def full(_grid: Any, _infotext: str) -> None:
        raise OutputError(
            f"The grid can't be saved in {host.folder.parent}/a b ([Errno 28] No space: '/x/y/z.png')."
        )

    host.keep = full  # type: ignore[method-assign, assignment]
    done = wait(client, post(client, "compare", {"source": "dog_ink"}))
    (remark,) = done["pictures"]["remarks"]
    assert remark == "The grid can't be saved in a b ([Errno 28] No space: 'z.png')."


@pytest.mark.parametrize(
    ("sentence", "kept"),
    [
        ("It is /a/b c/d.png.", "It is d.png."),
        ("Of /a/x and /b/y", "Of x and y"),
        (r"In 'C:\Users\me\x.png'", "In 'x.png'"),
        ("1024/64 and and/or stay", "1024/64 and and/or stay"),
        ("<lora:a:1> / b", "<lora:a:1> / b"),
    ],
)
def test_folders_are_cut_off_every_path(sentence: str, kept: str) -> None:
    assert without_folders(sentence, ()) == kept


@pytest.mark.parametrize(
    ("changed", "status", "says"),
    [
        ({"source": "gone"}, 404, "'gone'"),
        ({"source": "../dog_ink"}, 404, "There is no LoRA named"),
        ({"source": "dog"}, 422, "dog.ziplora"),
        ({"prompts": "a"}, 422, "prompts must be an array"),
        ({"prompts": ["a", 1]}, 422, "prompts[1] must be a string"),
        ({"seeds": 0}, 422, "seeds must lie"),
        ({"seeds": True}, 422, "seeds must be an integer"),
        ({"steps": 1000}, 422, "steps must lie"),
        ({"guidance_scale": "7"}, 422, "guidance_scale must be a number"),
        ({"width": 65}, 422, "width"),
        ({"sampler": "third"}, 409, "There is no sampler"),
        ({"folder": "/tmp"}, 422, "Unknown field 'folder'"),
    ],
    ids=str,
)
def test_wrong_comparisons_are_refused(
    client: TestClient, host: Host, changed: dict[str, Any], status: int, says: str
) -> None:
    assert wait(client, submit(client, settings=DIRECT))["state"] == "done"
    answer = client.post(f"{V1}/compare", json={"source": "dog_ink", **changed})
    assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text
    assert str(host.folder) not in answer.text and host.drawn == []


def test_a_host_that_does_not_draw_refuses_pictures(tmp_path: Path) -> None:
    for seed, name in enumerate(("dog", "cat", "ink", "clay"), 1):
        write_kohya(tmp_path / f"{name}.safetensors", module_names(), rank=2, seed=seed)
    app = FastAPI()
    service, client = Service(LockedHost(tmp_path)), TestClient(app)
    api.add_routes(app, service)
    answer = client.post(f"{V1}/matrix", json=matrix(sheet=True))
    assert answer.status_code == 409 and "Leave the sheet out" in answer.json()["detail"]
    assert client.post(f"{V1}/compare", json={"source": "dog"}).status_code == 409
    service.stop(timeout=SECONDS)


def test_the_descriptions_have_every_field() -> None:
    described = SCHEMAS[MatrixRequest]
    assert set(described["properties"]) == set(MatrixRequest.__dataclass_fields__)
    assert from_json(MatrixRequest, described["example"]).sheet
    described = SCHEMAS[CompareRequest]
    drawing = {*Sampler.__dataclass_fields__} - {"name"}
    assert set(described["properties"]) == {*CompareRequest.__dataclass_fields__, *drawing}
    asked = from_json(CompareRequest, described["example"], sampler=Sampler(steps=9))
    assert asked.seeds == 2 and asked.sampler == Sampler(steps=9)
