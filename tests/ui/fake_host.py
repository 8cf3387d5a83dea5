"""A host and an engine without files or models: what the tab needs to be tested alone."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

from lib_ziplora.config import MergeRequest
from lib_ziplora.errors import IncompatibleError, Interrupted, LoraFileError
from lib_ziplora.hosts import CheckpointInfo, InstalledLora, Progress
from lib_ziplora.library.catalog import CatalogEntry
from lib_ziplora.report.report import MergeReport
from lib_ziplora.training.learnt import Learnt
from lib_ziplora.ui.handlers import Engine

EVIL = "<img src=x onerror=alert(1)>"


class FakeHost:
    name = "fake"

    def __init__(self, names: Sequence[str] = ("cat", "ink", "old")) -> None:
        self.cards: dict[str, Mapping[str, Any]] = {name: {"activation text": f"a {name}"} for name in names}
        self.lock = threading.Lock()
        self.wrapped_outputs: list[int] = []
        self.stop, self.finish = threading.Event(), threading.Event()

    def loras(self) -> Sequence[InstalledLora]:
        return [InstalledLora(name, Path(f"{name}.safetensors"), card) for name, card in self.cards.items()]

    def resolve(self, lora: str) -> Path:
        if lora not in self.cards:
            raise LoraFileError(f"There is no LoRA named {lora}.")
        return Path(f"{lora}.safetensors")

    def output_path(self, name: str) -> Path:
        return Path(f"{name}.safetensors")

    def checkpoint(self) -> CheckpointInfo:
        return CheckpointInfo("fake", "")

    def check(self) -> None:
        pass

    def open(self) -> Any:
        return nullcontext()

    def exclusive(self) -> Any:
        return self.lock

    def wrap_task(self, task: Callable[..., Sequence[Any]], outputs: int) -> Callable[..., Sequence[Any]]:
        self.wrapped_outputs.append(outputs)

        def wrapped(*arguments: Any) -> Sequence[Any]:
            with self.lock:
                self.stop.clear()
                self.finish.clear()
                return task(*arguments)

        return wrapped

    def report(self, progress: Progress) -> None:
        pass

    def interrupted(self) -> bool:
        return self.stop.is_set()

    def finish_requested(self) -> bool:
        return self.finish.is_set()

    def interrupt(self) -> None:
        self.stop.set()

    def finish_now(self) -> None:
        self.finish.set()

    def refresh(self, path: Path) -> None:
        self.cards[path.stem] = {}


class FakeEngine:
    """Records the requests; ``run`` waits for ``go`` if told to, and fails with ``problem``."""

    def __init__(self) -> None:
        self.requests: list[MergeRequest] = []
        self.problem: Exception | None = None
        self.running, self.go = threading.Event(), threading.Event()
        self.go.set()

    def engine(self) -> Engine:
        return Engine(self.check, self.run, self.judged, with_card=lambda report, host: report)

    def check(self, request: MergeRequest, host: FakeHost) -> None:
        paths = [host.resolve(one.lora) for one in request.loras]
        if paths[0] == paths[1]:
            raise IncompatibleError("Subject and style are the same file.")

    def judged(self, loras: Sequence[InstalledLora], host: FakeHost, patience: float) -> list[CatalogEntry]:
        entries = []
        for lora in loras:
            usable = lora.name != "old"
            reason = "" if usable else "It was made for SD 1.5."
            base = "sdxl" if usable else "sd1"
            activation = str(lora.user_metadata.get("activation text") or "")
            entry = CatalogEntry(lora.name, lora.path, base, 8, 96, f"a {lora.name}", usable, reason)
            entries.append(replace(entry, family="lora", activation=activation))
        return entries

    def run(self, request: MergeRequest, host: FakeHost, follow: Callable[[Progress], None]) -> MergeReport:
        self.requests.append(request)
        follow(Progress("optimising", 3, 12, 40.0, "Update 3 of 12", {"loss": 1.5, "travel": 0.1}))
        self.running.set()
        while not self.go.wait(0.01):
            if host.interrupted():
                raise Interrupted("The merge was interrupted; nothing was written.")
        if self.problem is not None:
            raise self.problem
        host.refresh(host.output_path(request.output))
        return report(request)


def report(request: MergeRequest, **changed: Any) -> MergeReport:
    """A plausible report of a request."""
    figures: dict[str, Any] = {
        "output": f"loras/{request.output}.safetensors",
        "name": request.output,
        "method": request.settings.method,
        "common_layers": 90,
        "single_layers": {"subject": 4, "style": 2},
        "rank": 16,
        "model_hash": "00",
        "settings": request.settings,
        "seconds": 42.0,
    }
    learnt = Learnt(12, 0.25, 1.0, 0.5, 1.9, 0.4, 2.0, 0.6)
    told = {name: changed.pop(name) for name in Learnt.__dataclass_fields__ if name in changed}
    return MergeReport(**{**figures, "learnt": replace(learnt, **told), **changed})


def rows(listing: str) -> list[list[Any]]:
    """What the pickers' list says of each LoRA: name, note, state."""
    found = re.search(r'data-loras="([^"]*)"', listing)
    assert found
    shown: list[list[Any]] = json.loads(unescape(found[1]))
    return shown
