"""A host with LoRA files and a small model, its jobs, and the tab over them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
import torch
from safetensors.torch import save_file

from lib_ziplora.hosts import InstalledLora
from lib_ziplora.jobs.service import Service

from ..support.drawing_host import DrawingHost
from ..support.pico_host import TEXT_LAYER, module_names, write_kohya
from .page import Page

SD15_LAYER = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
CARDS = {"dog": "a sks dog", "ink": "a cat in ink style"}


class TabHost(DrawingHost):
    """A drawing host that stops when asked to, whose jobs wait for ``free`` and learn once ``go`` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lock, self.free, self.go = threading.Lock(), threading.Event(), threading.Event()
        self.free.set()
        self.go.set()
        self.before_forward = lambda _count: self.go.wait(30)

    def exclusive(self) -> Any:
        self.free.wait(30)
        self.stop = self.finish = False
        return self.lock

    def interrupt(self) -> None:
        self.stop = True
        self.go.set()

    def finish_now(self) -> None:
        self.finish = True
        self.go.set()

    def loras(self) -> list[InstalledLora]:
        """With what stands on the cards beside the files, as the WebUI and the standalone host read it."""
        found = []
        for lora in super().loras():
            card = lora.path.with_suffix(".json")
            written = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
            found.append(InstalledLora(lora.name, lora.path, {**written, **lora.user_metadata}))
        return found


@pytest.fixture
def host(tmp_path: Path) -> TabHost:
    """Two LoRAs with cards, dog and ink, and one for Stable Diffusion 1, old."""
    shapes = {**module_names(), TEXT_LAYER: (6, 6)}
    write_kohya(tmp_path / "dog.safetensors", shapes, rank=2, seed=1)
    write_kohya(tmp_path / "ink.safetensors", shapes, rank=3, alpha=3.0, seed=2)
    tensors = {"lora_down": torch.zeros(4, 768), "lora_up": torch.zeros(320, 4)}
    save_file(
        {f"{SD15_LAYER}.{name}.weight": tensor for name, tensor in tensors.items()},
        tmp_path / "old.safetensors",
    )
    host = TabHost(tmp_path)
    host.cards = {name: {"activation text": words} for name, words in CARDS.items()}
    return host


@pytest.fixture
def service(host: TabHost) -> Iterator[Service]:
    service = Service(host)
    yield service
    service.stop(30)


@pytest.fixture
def page(service: Service) -> Page:
    """The tab with settings that take a moment."""
    page = Page(service)
    page.set(method="direct", steps=2, width=64, height=64, sampling_steps=2, trajectories=1)
    page.set(guidance_scale=1.0)
    return page


@pytest.fixture
def pair(page: Page) -> Page:
    """The tab with a subject and a style."""
    page.pick(subject="dog", style="ink")
    return page
