"""``python -m lib_ziplora serve`` over MiniXL as a process of its own.

``ZIPLORA_SERVE_PYTHON`` names the Python of an environment with ``requirements/serve.txt``: the page is then that
gradio's; without it, the one that runs the tests.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MINIXL = ROOT / "benchmarks" / "minixl"
START_SECONDS = 120


@dataclass(frozen=True)
class Server:
    url: str
    loras: Path

    def files(self) -> set[str]:
        return {path.name for path in self.loras.iterdir()}


@contextmanager
def running(folder: Path, *flags: str) -> Iterator[Server]:
    """The server with copies of MiniXL's LoRAs in a folder of its own, stopped in the end."""
    loras, log = folder / "loras", folder / "serve.log"
    shutil.copytree(MINIXL / "loras", loras)
    url = f"http://127.0.0.1:{free_port()}/"
    port = url.rstrip("/").rpartition(":")[2]
    python = os.environ.get("ZIPLORA_SERVE_PYTHON", sys.executable)
    command = [python, "-m", "lib_ziplora", "serve", "--port", port, "--device", "cpu"]
    command += ["--checkpoint", str(MINIXL / "model"), "--lora-dir", str(loras), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_up(url, process, log)
        yield Server(url, loras)
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(START_SECONDS * 4):
        if process.poll() is not None:
            break
        try:
            direct.open(url, timeout=5).close()
        except OSError:
            time.sleep(0.25)
        else:
            return
    pytest.fail(f"serve did not come up:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}")
