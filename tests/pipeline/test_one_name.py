"""Ten merges to one name at once: one file of one of them, and nine sentences."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lib_ziplora.errors import OutputError
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.jobs.service import Service
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.pipeline.merge import run

from ..support.small_merges import pico_host, request

COUNT = 10
SECONDS = 60


@pytest.fixture
def host(tmp_path: Path) -> StandaloneHost:
    pico_host(tmp_path)
    return StandaloneHost(None, [tmp_path], device="cpu")


def at_once(work: Callable[[int], None]) -> list[str]:
    """The sentences of the threads that failed, all of which began at the same moment."""
    barrier, sentences = threading.Barrier(COUNT), list[str]()

    def begin(number: int) -> None:
        barrier.wait(SECONDS)
        try:
            work(number)
        except OutputError as error:
            sentences.append(str(error))

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    return sentences


def strength(number: int) -> float:
    """Each merge has its own, so that the file tells whose it is."""
    return (number + 1) / 16


def written_by(folder: Path) -> int:
    """Whose merge the file holds, judged by its tensors; nothing else may have been left."""
    left = {path.name for path in folder.iterdir()} - {"merged.json"}  # the card that a service writes
    assert left == {"dog.safetensors", "ink.safetensors", "merged.safetensors", "merged.ziplora"}
    merged, dog, ink = (read_lora(folder / f"{name}.safetensors") for name in ("merged", "dog", "ink"))
    name = next(iter(merged.layers))
    delta = merged.layers[name].delta() - ink.layers[name].delta()
    share = float((delta * dog.layers[name].delta()).sum() / dog.layers[name].delta().square().sum())
    return round(share * 16) - 1


def test_threads_without_a_queue(host: StandaloneHost, tmp_path: Path) -> None:
    done: list[int] = []

    def merge(number: int) -> None:
        run(request(weight=(strength(number), 1.0)), host)
        done.append(number)

    sentences = at_once(merge)
    assert len(sentences) == COUNT - 1 and all("merged" in s and "exists already" in s for s in sentences)
    assert done == [written_by(tmp_path)]


@pytest.mark.parametrize("background", [True, False])
def test_jobs_of_one_service(host: StandaloneHost, tmp_path: Path, background: bool) -> None:
    service = Service(host)

    def submit(number: int) -> None:
        job = service.submit(request(weight=(strength(number), 1.0)), background=background)
        if not background:
            with host.exclusive():
                service.run(job)
        while not job.ended:
            threading.Event().wait(0.01)
        if job.state != "done":
            raise OutputError(job.error)

    sentences = at_once(submit)
    assert len(sentences) == COUNT - 1 and all("merged" in sentence for sentence in sentences), sentences
    (done,) = [job for job in service.jobs() if job.state == "done"]
    assert done.request.loras[0].weight == strength(written_by(tmp_path))


PROCESSES = textwrap.dedent("""
    import os, sys
    from lib_ziplora.cli import main
    folder, count = sys.argv[1], int(sys.argv[2])
    children, (wait, go) = [], os.pipe()
    for number in range(count):
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(wait, 1)
            output = os.open(f"{folder}/out/{number}", os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1), os.dup2(output, 2)
            weight = (number + 1) / 16
            files = [f"{folder}/loras/{name}.safetensors" for name in ("dog", "ink")]
            options = ["-o", f"{folder}/loras/merged.safetensors", "--method", "direct", "--precision", "fp32"]
            code = main(["merge", *files, *options, "--subject-weight", str(weight)])
            sys.stdout.flush()
            os._exit(code)
        children.append(child)
    os.close(go)
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes(tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "out").mkdir()
    pico_host(tmp_path / "loras")
    found = subprocess.run(
        [sys.executable, "-c", PROCESSES, str(tmp_path), str(COUNT)],
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    codes = [int(code) for code in found.stdout.split()]
    assert sorted(codes) == [0] + [1] * (COUNT - 1), found
    said = [(tmp_path / "out" / str(number)).read_text() for number in range(COUNT)]
    refused = [text for code, text in zip(codes, said, strict=True) if code]
    for text in refused:
        assert re.fullmatch(r"error: merged\S* exists already\. .+", text.splitlines()[-1]), text
        assert "Traceback" not in text
    assert codes.index(0) == written_by(tmp_path / "loras")
