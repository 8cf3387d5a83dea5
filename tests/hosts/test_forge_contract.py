"""Forge's and reForge's hosts keep the contracts of every host and of every host that draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lib_ziplora.hosts import detect

from . import forge_webui as webui
from .contract import HostContract
from .contract_draws import DrawsContract
from .real_webui import KIND, marks

pytestmark = marks("forge", "reforge")
NAMES = ("drawn one", "drawn two")


@pytest.fixture
def host() -> Iterator[Any]:
    webui.boot()
    found = detect()
    assert found.name == KIND
    with webui.cleaned():
        with (
            found.open() as session
        ):  # the first makes inference tensors normal, and a prompt casts embeddings
            session.encode_prompts(["a cat"], width=128, height=128, negative=False, deltas={})
        yield found


class TestForgeHost(HostContract):
    SAMPLES_LATENTS = KIND != "reforge"

    @pytest.fixture
    def host(self, host: Any) -> Any:
        return host

    @pytest.fixture
    def parts(self, host: Any) -> list[nn.Module]:
        return webui.parts()


class TestForgeDraws(DrawsContract):
    @pytest.fixture
    def host(self, host: Any, folder: Path) -> Any:
        loras = Path(webui.boot().cmd_opts.lora_dir)
        for seed, name in enumerate(NAMES):
            if not (loras / f"{name}.safetensors").is_file():
                webui.write_lora(name, seed)
        return host

    @pytest.fixture
    def parts(self, host: Any) -> list[nn.Module]:
        return webui.parts()

    @pytest.fixture
    def names(self, host: Any) -> Sequence[str]:
        return NAMES

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        data = webui.boot().opts.data
        wanted = {"samples_save": True, "grid_save": True, "samples_format": "png", "grid_format": "png"}
        wanted |= {"outdir_samples": str(tmp_path / "s"), "outdir_grids": str(tmp_path / "g")}
        for name, value in {**wanted, "save_to_dirs": False}.items():
            monkeypatch.setitem(data, name, value)
        return tmp_path
