"""The WebUI's entry: what scripts/ziplora.py registers, and which host it finds."""

from __future__ import annotations

import runpy
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_ziplora import hosts
from lib_ziplora.errors import HostError

from .fake_host import FakeHost

SCRIPT = Path(__file__).parents[2] / "scripts" / "ziplora.py"


@pytest.fixture
def callbacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Callable[..., Any]]]:
    """A stand-in for ``modules.script_callbacks`` that records what is registered."""
    registered: dict[str, Callable[..., Any]] = {}
    recorder = types.ModuleType("modules.script_callbacks")
    for name in ("on_ui_tabs", "on_app_started", "on_script_unloaded"):
        setattr(recorder, name, lambda function, name=name: registered.__setitem__(name, function))
    package = types.ModuleType("modules")
    package.script_callbacks = recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules", package)
    monkeypatch.setitem(sys.modules, "modules.script_callbacks", recorder)
    yield registered


def test_tab_and_unloading_are_registered(
    callbacks: dict[str, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "detect", FakeHost)
    runpy.run_path(str(SCRIPT), run_name="ziplora.py")
    [(page, title, name)] = callbacks["on_ui_tabs"]()
    assert (title, name) == ("ZipLoRA", "ziplora")
    assert any(getattr(block, "elem_id", "") == "ziplora_generate" for block in page.blocks.values())
    callbacks["on_script_unloaded"]()


def test_an_unknown_webui_gets_a_tab_that_says_so(
    callbacks: dict[str, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise HostError("This WebUI is strange.")

    monkeypatch.setattr(hosts, "detect", refuse)
    runpy.run_path(str(SCRIPT), run_name="ziplora.py")
    [(page, _, _)] = callbacks["on_ui_tabs"]()
    assert any("This WebUI is strange." in str(getattr(block, "value", "")) for block in page.blocks.values())


@pytest.mark.parametrize(
    ("importable", "kind"),
    [
        ({"backend.memory_management", "modules.shared", "modules_forge"}, "forge"),
        ({"modules_forge", "ldm_patched", "modules.shared"}, "reforge"),
        ({"modules.shared"}, "a1111"),
        (set(), ""),
    ],
)
def test_hosts_are_told_apart_by_what_they_have(
    importable: set[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "_importable", importable.__contains__)
    assert hosts.kind() == kind


def test_outside_a_webui_detection_says_what_to_do() -> None:
    with pytest.raises(HostError, match="serve"):
        hosts.detect()
