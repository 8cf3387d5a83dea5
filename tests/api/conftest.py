"""The API on an application, over a host in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from lib_ziplora import api
from lib_ziplora.jobs.service import Service

from ..support.pico_host import module_names, write_kohya
from .support import SECONDS, LockedHost


@pytest.fixture
def host(tmp_path: Path) -> Iterator[LockedHost]:
    folder = tmp_path / "loras with spaces"
    folder.mkdir()
    write_kohya(
        folder / "dog.safetensors", module_names(), rank=2, seed=1, metadata={"ss_output_name": "sks dog"}
    )
    write_kohya(folder / "ink.safetensors", module_names(), rank=3, seed=2)
    write_kohya(folder / "old.safetensors", {"lora_unet_down_blocks_0_attentions_0_proj_in": (320, 320)})
    (folder / "broken.safetensors").write_bytes(b"no header")
    host = LockedHost(folder)
    yield host
    host.gate.set()


@pytest.fixture
def client(host: LockedHost) -> Iterator[TestClient]:
    app = FastAPI()
    app.state.service = service = Service(host)
    api.add_routes(app, service)
    yield TestClient(app)
    host.gate.set()
    service.stop(timeout=SECONDS)
