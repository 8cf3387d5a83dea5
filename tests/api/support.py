"""A host that can be held still, and what a client of the API does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from lib_ziplora.jobs.service import Service
from lib_ziplora.names import validate_name

from ..support.pico_host import PicoHost

V1 = "/ziplora/v1"
QUICK = {"steps": 6, "width": 64, "height": 64, "sampling_steps": 3, "trajectories": 2, "precision": "fp32"}
SECONDS = 60
JSON = {"content-type": "application/json"}


class LockedHost(PicoHost):
    """The pico host with a lock and stop flags as hosts have them, and a gate that holds a run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lock = threading.Lock()
        self.gate, self.inside = threading.Event(), threading.Event()
        self.gate.set()
        self.interrupts = self.at_once = self.most_at_once = 0
        self.before_forward = self._wait_at_the_gate

    def _wait_at_the_gate(self, _count: int) -> None:
        self.inside.set()
        assert self.gate.wait(SECONDS)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self.lock:
            self.stop = self.finish = False
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                yield
            finally:
                self.at_once -= 1

    def interrupt(self) -> None:
        self.interrupts += 1
        super().interrupt()

    def output_path(self, name: str) -> Path:
        return self.folder / f"{validate_name(name)}.safetensors"


def body(output: str = "dog_ink", subject: Any = "dog", style: Any = "ink", **more: Any) -> dict[str, Any]:
    inputs = {
        "subject": {"lora": subject, "prompt": "a sks dog"},
        "style": {"lora": style, "prompt": "a cat in szn style", "weight": 0.9},
    }
    return {**inputs, "output": output, "settings": QUICK, **more}


def submit(client: TestClient, **more: Any) -> str:
    answer = client.post(f"{V1}/merge", json=body(**more))
    assert answer.status_code == 202, answer.text
    assert answer.json()["state"] == "queued"
    return answer.json()["id"]


def job(client: TestClient, job_id: str) -> dict[str, Any]:
    answer = client.get(f"{V1}/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def wait(client: TestClient, job_id: str, *states: str) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while (found := job(client, job_id))["state"] not in (states or ("done", "failed", "interrupted")):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


def held(client: TestClient, host: LockedHost, **more: Any) -> str:
    """A merge that runs and stands still in its first forward pass."""
    host.gate.clear()
    job_id = submit(client, **more)
    assert host.inside.wait(SECONDS)
    return job_id


def files(host: LockedHost) -> set[str]:
    return {path.stem for path in host.folder.iterdir()}


def host_service(client: TestClient) -> Service:
    return client.app.state.service  # type: ignore[attr-defined, no-any-return]
