"""Many merges in one process: memory, threads and open files stay level."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest

from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.jobs.service import Service

from ..support.small_merges import pico_host, request

MERGES, SETTLED = 200, 50
"""Merges, and those after which everything that is kept has been kept."""
SLACK = 4 * 2**20
"""Bytes by which the allocator may grow meanwhile: less than half of a merged file for every merge."""


def resident() -> int:
    """Bytes of main memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")
def test_memory_threads_and_handles_stay_level(tmp_path: Path) -> None:
    loras, fresh = tmp_path / "loras", threading.Event()
    loras.mkdir()
    pico_host(loras)
    service = Service(StandaloneHost(None, [loras], device="cpu"))
    measured: list[tuple[int, int, int]] = []
    for number in range(MERGES):
        job = service.submit(request(output=f"merged {number}"))
        while not job.ended:
            fresh.wait(0.001)
        assert job.state == "done", job.error
        for file in loras.glob("merged*"):
            file.unlink()
        if number + 1 in (SETTLED, MERGES):
            service.stop(10)
            gc.collect()
            measured.append(
                (resident(), threading.active_count(), len(list(Path("/proc/self/fd").iterdir())))
            )
    (memory, threads, handles), after = measured
    assert after[1:] == (threads, handles)
    assert after[0] - memory < SLACK
