"""Merges over HTTP: the main path, one after the other, stopping."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.jobs.queue import QueueFullError
from lib_ziplora.jobs.service import Service
from lib_ziplora.lora.io.read import read_lora

from ..support.pico_host import module_names
from .support import QUICK, SECONDS, V1, LockedHost, files, held, host_service, job, submit, wait


def test_a_merge_becomes_a_verified_file(client: TestClient, host: LockedHost) -> None:
    done = wait(client, submit(client))
    assert done["state"] == "done", done
    report = done["report"]
    assert (report["name"], report["tag"], report["steps"]) == ("dog_ink", "<lora:dog_ink:1>", 6)
    assert report["common_layers"] == len(module_names())
    assert report["settings"]["steps"] == 6
    merged = read_lora(host.folder / "dog_ink.safetensors")
    assert merged.metadata["sshs_model_hash"] == report["model_hash"]
    assert {layer.rank for layer in merged.layers.values()} == {5}
    assert done["progress"]["stage"] == "done" and done["progress"]["step"] == done["progress"]["total"]
    assert done["created"] <= done["started"] <= done["finished"]
    assert done["error"] is None


def test_the_plain_sum_carries_the_weights(client: TestClient, host: LockedHost) -> None:
    assert wait(client, submit(client, settings={"method": "direct", "precision": "fp32"}))["state"] == "done"
    merged, subject, style = (read_lora(host.folder / f"{n}.safetensors") for n in ("dog_ink", "dog", "ink"))
    for name, layer in merged.layers.items():
        expected = subject.layers[name].delta() + 0.9 * style.layers[name].delta()
        torch.testing.assert_close(layer.delta(), expected)


def test_progress_is_shown_while_it_runs(client: TestClient, host: LockedHost) -> None:
    shown: list[dict[str, Any]] = []
    gate = threading.Event()
    report = host.report

    def follow(progress: Any) -> None:
        report(progress)
        if progress.metrics and not gate.is_set():
            gate.set()
            host.gate.clear()

    host.report = follow  # type: ignore[method-assign]
    job_id = submit(client)
    assert gate.wait(SECONDS)
    deadline = time.monotonic() + SECONDS
    while not shown or not shown[-1]["metrics"]:
        assert time.monotonic() < deadline
        shown.append(job(client, job_id)["progress"] or {"metrics": {}})
    host.gate.set()
    event = shown[-1]
    assert event["stage"] == "optimising" and 0 < event["step"] < event["total"]
    assert {"similarity", "travel"} <= set(event["metrics"]) and event["text"]
    assert wait(client, job_id)["state"] == "done"


def test_figures_that_are_no_json_numbers_become_null(client: TestClient, host: LockedHost) -> None:
    from lib_ziplora.hosts import Progress

    job_id = held(client, host)
    queue_job = next(iter(host_service(client).jobs()))
    queue_job.progress = Progress(
        "optimising", 1, 2, float("inf"), "x", {"loss": float("nan"), "travel": 0.5}
    )
    progress = job(client, job_id)["progress"]
    assert progress["metrics"] == {"loss": None, "travel": 0.5} and progress["seconds_left"] is None


def test_jobs_run_one_after_the_other_in_their_order(client: TestClient, host: LockedHost) -> None:
    first = held(client, host, output="a")
    second, third = submit(client, output="b"), submit(client, output="c")
    assert [one["state"] for one in client.get(f"{V1}/jobs").json()] == ["running", "queued", "queued"]
    host.gate.set()
    ends = [wait(client, one) for one in (first, second, third)]
    assert [end["state"] for end in ends] == ["done"] * 3
    assert ends[0]["finished"] <= ends[1]["started"] and ends[1]["finished"] <= ends[2]["started"]
    assert host.most_at_once == 1
    assert {"a", "b", "c"} <= files(host)


def test_a_job_waits_for_what_else_uses_the_host(client: TestClient, host: LockedHost) -> None:
    with host.exclusive():
        job_id = submit(client)
        time.sleep(0.1)
        assert job(client, job_id)["state"] == "queued"
    assert wait(client, job_id)["state"] == "done"


def test_many_threads_submit_at_once(client: TestClient, host: LockedHost) -> None:
    direct = {"method": "direct"}
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: ids.append(submit(client, output=f"t{n}", settings=direct)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {wait(client, one)["state"] for one in ids} == {"done"}
    assert {f"t{n}" for n in range(8)} <= files(host) and host.most_at_once == 1


def test_the_last_jobs_are_remembered_and_a_full_queue_refuses(host: LockedHost) -> None:
    queue = Service(host, remembered=3)
    sum_of = MergeSettings(method="direct")
    request = MergeRequest.pair(LoraInput("dog"), LoraInput("ink"), "x", settings=sum_of)
    with host.exclusive():
        waiting = [queue.submit(MergeRequest(request.loras, n, settings=sum_of)) for n in "abc"]
        with pytest.raises(QueueFullError, match="3 jobs"):
            queue.submit(request)
        queue.interrupt(waiting[1])
        late = queue.submit(request)
        assert queue.jobs() == [waiting[0], waiting[2], late]
        assert queue.get(waiting[1].id) is None
    queue.stop(timeout=SECONDS)
    assert all(one.ended for one in queue.jobs())


def test_the_thread_ends_with_the_work_and_a_new_one_begins(client: TestClient) -> None:
    def workers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "ziplora-jobs"]

    for output in ("a", "b"):
        wait(client, submit(client, output=output, settings={"method": "direct"}))
        for thread in workers():
            thread.join(SECONDS)
        assert not workers()


def test_interrupting_the_running_job_writes_nothing(client: TestClient, host: LockedHost) -> None:
    job_id = held(client, host)
    answer = client.post(f"{V1}/jobs/{job_id}/interrupt")
    assert (answer.status_code, answer.json()["stopping"], host.interrupts) == (200, "interrupt", 1)
    assert client.post(f"{V1}/jobs/{job_id}/finish").status_code == 409
    host.gate.set()
    end = wait(client, job_id)
    assert end["state"] == "interrupted" and "nothing was written" in end["error"] and end["report"] is None
    assert "dog_ink" not in files(host)
    again = client.post(f"{V1}/jobs/{job_id}/interrupt")
    assert again.status_code == 409 and "ended" in again.json()["detail"] and host.interrupts == 1
    assert wait(client, submit(client))["state"] == "done"


def test_a_queued_job_is_cancelled_and_the_running_one_goes_on(client: TestClient, host: LockedHost) -> None:
    running, waiting = held(client, host, output="a"), submit(client, output="b")
    assert client.post(f"{V1}/jobs/{waiting}/finish").status_code == 409
    answer = client.post(f"{V1}/jobs/{waiting}/interrupt").json()
    assert answer["state"] == "interrupted" and "taken off the queue" in answer["error"]
    host.gate.set()
    assert wait(client, running)["state"] == "done"
    assert host.interrupts == 0 and "b" not in files(host)


def test_a_job_that_waits_for_the_host_is_cancelled_without_reaching_it(
    client: TestClient, host: LockedHost
) -> None:
    with host.exclusive():  # somebody else's picture
        job_id = submit(client)
        time.sleep(0.1)
        client.post(f"{V1}/jobs/{job_id}/interrupt")
        assert host.interrupts == 0 and not host.stop
    assert wait(client, job_id)["state"] == "interrupted"
    assert wait(client, submit(client, output="later"))["state"] == "done"
    assert "dog_ink" not in files(host)


def test_finish_now_writes_what_there_is(client: TestClient, host: LockedHost) -> None:
    job_id = held(client, host, settings={**QUICK, "steps": 1000})
    assert client.post(f"{V1}/jobs/{job_id}/finish").json()["stopping"] == "finish"
    host.gate.set()
    end = wait(client, job_id)
    assert end["state"] == "done" and end["report"]["stopped_early"] and end["report"]["steps"] < 1000
    assert "dog_ink" in files(host)


def test_stopping_the_queue_interrupts_everything(client: TestClient, host: LockedHost) -> None:
    running, waiting = held(client, host, output="a"), submit(client, output="b")
    host_service(client).stop()
    host.gate.set()
    assert wait(client, running)["state"] == wait(client, waiting)["state"] == "interrupted"
    assert files(host) == {"dog", "ink", "old", "broken"}
