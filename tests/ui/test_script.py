"""The WebUI's entry: what scripts/ziplora.py registers, and which host it finds."""

from __future__ import annotations

import runpy
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lib_ziplora import hosts
from lib_ziplora.config import setting_defaults, setting_fields
from lib_ziplora.errors import HostError
from lib_ziplora.ui import defaults

from ..support.pico_host import PicoHost

SCRIPT = Path(__file__).parents[2] / "scripts" / "ziplora.py"


class OptionInfo:
    """The WebUI's, as far as it is used."""

    def __init__(
        self,
        default: Any,
        label: str,
        component: Any,
        component_args: Any = None,
        *,
        section: tuple[str, str],
    ) -> None:
        self.default, self.label, self.section = default, label, section
        self.component, self.component_args = component, component_args

    def info(self, text: str) -> OptionInfo:
        self.comment = text
        return self


class Options:
    """The WebUI's: stored values, else the options' defaults, as attributes."""

    def __init__(self, **stored: Any) -> None:
        self.added: dict[str, OptionInfo] = {}
        vars(self).update(stored)

    def add_option(self, key: str, info: OptionInfo) -> None:
        self.added[key] = info


@pytest.fixture
def callbacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Callable[..., Any]]]:
    """Stand-ins for ``modules.script_callbacks``, which records what is registered, and ``modules.shared``."""
    registered: dict[str, Callable[..., Any]] = {}
    recorder = types.ModuleType("modules.script_callbacks")
    for name in ("on_ui_settings", "on_ui_tabs", "on_app_started", "on_script_unloaded"):
        setattr(recorder, name, lambda function, name=name: registered.__setitem__(name, function))
    package = types.ModuleType("modules")
    package.script_callbacks = recorder  # type: ignore[attr-defined]
    package.shared = types.SimpleNamespace(opts=Options(), OptionInfo=OptionInfo)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules", package)
    monkeypatch.setitem(sys.modules, "modules.script_callbacks", recorder)
    yield registered


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PicoHost:
    """What the script finds as its host."""
    host = PicoHost(tmp_path)
    monkeypatch.setattr(hosts, "detect", lambda: host)
    return host


@pytest.mark.usefixtures("host")
def test_tab_and_unloading_are_registered(callbacks: dict[str, Callable[..., Any]]) -> None:
    runpy.run_path(str(SCRIPT), run_name="ziplora.py")
    [(page, title, name)] = callbacks["on_ui_tabs"]()
    assert (title, name) == ("ZipLoRA", "ziplora")
    assert any(getattr(block, "elem_id", "") == "ziplora_generate" for block in page.blocks.values())
    callbacks["on_script_unloaded"]()


def test_every_setting_is_on_the_settings_page(callbacks: dict[str, Callable[..., Any]]) -> None:
    runpy.run_path(str(SCRIPT), run_name="ziplora.py")
    callbacks["on_ui_settings"]()
    added = sys.modules["modules"].shared.opts.added
    note = added.pop("ziplora_note")
    assert "Reload UI" in note.default and note.do_not_save and note.section == ("ziplora", "ZipLoRA")
    assert added.pop("ziplora_merges_folder").default == ""
    assert set(added) == {f"ziplora_{name}" for name in setting_fields()}
    assert len({info.label for info in added.values()}) == len(added)
    for name, option in setting_fields().items():
        info = added[f"ziplora_{name}"]
        assert (info.default, info.label) == (setting_defaults()[name], option.label)
        assert info.section == ("ziplora", "ZipLoRA") and info.comment == option.help
        with gr.Blocks():
            assert info.component(value=info.default, **info.component_args).value == info.default


def test_a_loaded_page_can_update_every_setting(callbacks: dict[str, Callable[..., Any]]) -> None:
    """With all that its component is made of; one that can't be keeps the WebUI from updating any setting."""
    runpy.run_path(str(SCRIPT), run_name="ziplora.py")
    callbacks["on_ui_settings"]()
    for info in sys.modules["modules"].shared.opts.added.values():
        arguments = {"value": info.default, **(info.component_args or {})}
        with gr.Blocks():
            component = info.component(label=info.label, **arguments)
        arguments.pop("precision", None)  # as the WebUI does
        assert component.get_specific_update({**arguments, "__type__": "update"})["value"] == info.default


@pytest.mark.usefixtures("host")
def test_the_tab_begins_with_the_defaults_of_the_settings_page(
    callbacks: dict[str, Callable[..., Any]],
) -> None:
    sys.modules["modules"].shared.opts = Options(ziplora_steps=33)
    runpy.run_path(str(SCRIPT), run_name="ziplora.py")
    [(page, _, _)] = callbacks["on_ui_tabs"]()
    [steps] = [block for block in page.blocks.values() if getattr(block, "elem_id", "") == "ziplora_steps"]
    assert steps.value == 33


@pytest.mark.parametrize(
    ("stored", "folder"),
    [("", ""), (" merges/ ", "merges"), ("a/b", "a/b"), ("../up", ""), ("/etc", "etc"), (None, "")],
)
def test_the_folder_for_merges_is_one_below_the_lora_folder(stored: str | None, folder: str) -> None:
    assert defaults.merges_folder(Options(ziplora_merges_folder=stored)) == folder


def test_stored_defaults_are_taken_in_their_type_and_impossible_ones_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = Options(ziplora_steps=40.0, ziplora_rank="64", ziplora_precision="int8", ziplora_seed=-2)
    found = defaults.chosen(options)
    assert found == {**setting_defaults(), "steps": 40, "rank": "64"}
    assert isinstance(found["steps"], int)
    assert "precision" in caplog.text and "seed" in caplog.text
    assert defaults.chosen(Options(ziplora_seed=-1))["seed"] == -1  # random


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
        ({"modules.modeldata", "modules.shared"}, "sdnext"),
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


def test_sdnext_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_importable", {"modules.modeldata", "modules.shared"}.__contains__)
    with pytest.raises(HostError, match=r"SD\.Next.*serve"):
        hosts.detect()
