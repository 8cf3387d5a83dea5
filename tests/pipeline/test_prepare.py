"""What is found out about a merge before it is made is found out once: files, names, prompts, the output."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.jobs.requests import Request
from lib_ziplora.jobs.service import Service
from lib_ziplora.library.header_cache import inspect_file
from lib_ziplora.pipeline.matrix import MatrixRequest

from ..support.pico_host import PicoHost, module_names, write_kohya

SETTINGS = MergeSettings(
    steps=1, width=64, height=64, sampling_steps=2, trajectories=1, start="ones", combined_weight=0.0
)
LISTENERS: list[Counter[str]] = []


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and LISTENERS and isinstance(args[0], (str, Path)):
        LISTENERS[-1][Path(args[0]).name] += 1


sys.addaudithook(_heard)


@contextmanager
def opened() -> Iterator[Counter[str]]:
    """How often each file is opened inside the block, by name."""
    LISTENERS.append(Counter())
    try:
        yield LISTENERS[-1]
    finally:
        LISTENERS.pop()


class CountingHost(PicoHost):
    """Counts what it is asked."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: Counter[str] = Counter()

    def resolve(self, lora: str) -> Path:
        self.asked[f"resolve {lora}"] += 1
        return super().resolve(lora)

    def output_path(self, name: str) -> Path:
        self.asked[f"output {name}"] += 1
        return super().output_path(name)

    def loras(self) -> Any:
        self.asked["loras"] += 1
        return super().loras()


@pytest.fixture
def host(tmp_path: Path) -> CountingHost:
    for seed, name in enumerate(("dog", "ink"), 1):
        write_kohya(tmp_path / f"{name}.safetensors", module_names(), rank=2, seed=seed)
    host = CountingHost(tmp_path)
    host.cards = {"dog": {"activation text": "a sks dog"}, "ink": {"activation text": "in ink style"}}
    return host


def merge() -> MergeRequest:
    return MergeRequest.pair(LoraInput("dog"), LoraInput("ink"), "dog_ink", settings=SETTINGS)


def matrix() -> MatrixRequest:
    return MatrixRequest((LoraInput("dog"),), (LoraInput("ink", role="style"),), settings=SETTINGS)


@pytest.mark.parametrize("request_of", [merge, matrix])
def test_a_header_a_name_and_the_prompts_are_looked_at_once(host: CountingHost, request_of: Any) -> None:
    asked: Request = request_of()
    service = Service(host)
    with opened() as files:
        job = service.submit(asked, background=False)
    assert files["dog.safetensors"] == files["ink.safetensors"] == 1
    assert host.asked["resolve dog"] == host.asked["resolve ink"] == 1
    assert host.asked["loras"] == 1, "the cards are listed once for the prompts of both"
    outputs = host.asked["output dog_ink"]
    probes = [name for name in files if name.startswith(".") and "dog_ink" in name]
    assert len(probes) == 1, "the output is tried out once before the queue"
    with opened() as files:
        service.run(job)
    assert job.state == "done", job.error
    assert files["dog.safetensors"] == files["ink.safetensors"] == 1, "for their tensors"
    assert host.asked["resolve dog"] == host.asked["resolve ink"] == 1
    assert host.asked["output dog_ink"] == outputs <= (2 if request_of is matrix else 1)
    report = job.report or job.result.pairs[0].report
    assert report is not None and report.learnt.steps == 1


def test_prompts_are_in_place_from_then_on(host: CountingHost) -> None:
    job = Service(host).submit(merge(), background=False)
    assert [lora.prompt for lora in job.prepared.request.loras] == ["a sks dog", "in ink style"]
    assert [lora.prompt for lora in job.request.loras] == ["", ""], "the request stays what was asked for"


def test_a_file_that_was_inspected_is_read_again_only_when_it_changes(host: CountingHost) -> None:
    path = host.folder / "dog.safetensors"
    with opened() as files:
        assert inspect_file(path) is inspect_file(path)
    assert files["dog.safetensors"] == 1
    write_kohya(path, module_names(), rank=5, seed=1)
    assert inspect_file(path).header.ranks == (5,)
