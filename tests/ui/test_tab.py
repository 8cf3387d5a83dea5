"""Layout of the tab: every setting has its control, labels are unique, events carry what they should."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from lib_ziplora.config import setting_defaults, setting_fields
from lib_ziplora.jobs.service import Service
from lib_ziplora.ui import compat, guard, tab
from lib_ziplora.ui.controls import prefilled

from ..support.small_merges import pico_host
from .conftest import TabHost
from .page import EVIL, Page

TRANSIENT = ("subject", "style", "subject_prompt", "style_prompt", "output", "overwrite", "tag", "generate")


def labels(page: Page) -> list[str]:
    blocks = page.blocks.blocks.values()
    return [block.label for block in blocks if getattr(block, "label", None)]


@pytest.mark.parametrize("name", list(setting_fields()))
def test_every_setting_has_a_control_with_its_default(service: Service, name: str) -> None:
    option, control = setting_fields()[name], Page(service).component(name)
    assert control.value == setting_defaults()[name]
    assert (control.label, control.info) == (option.label, option.help)
    if isinstance(control, gr.Slider):
        bounds = control.minimum, control.maximum, control.step
        assert bounds == (option.minimum, option.maximum, option.step)


def test_labels_are_unique(page: Page) -> None:
    """The WebUI's ui-config.json knows controls by their labels alone."""
    assert len(labels(page)) == len(set(labels(page)))


def test_what_belongs_to_one_merge_is_not_saved_in_the_ui_config(page: Page) -> None:
    assert all(page.component(name).do_not_save_to_config for name in TRANSIENT)
    assert not getattr(page.component("subject_weight"), "do_not_save_to_config", False)


def test_the_settings_page_alone_decides_what_a_setting_begins_with(service: Service) -> None:
    """A value that ui-config.json has stored would win over it."""
    chosen = {**setting_defaults(), "steps": 33, "precision": "bf16"}
    page = Page(service, chosen)
    assert all(page.component(name).do_not_save_to_config for name in setting_fields())
    assert {name: page[name] for name in setting_fields()} == chosen


@pytest.mark.parametrize(
    ("current", "filled", "empty", "expected"),
    [
        ("", "", True, ("a cat", "a cat")),
        ("a dog", "a dog", True, ("a cat", "a cat")),
        ("my dog", "a dog", True, ("my dog", "a dog")),
        ("", "a dog", True, ("a cat", "a cat")),
        ("", "a dog", False, ("", "a dog")),
    ],
)
def test_a_box_follows_its_suggestion_until_the_user_types(
    current: str, filled: str, empty: bool, expected: tuple[str, str]
) -> None:
    given: dict[str, Any] = {"box": current, "box_filled": filled}
    updates = prefilled(given, "box", "a cat", empty=empty)
    shown = {**given, **{name: value for name, value in updates.items() if isinstance(value, str)}}
    assert (updates["box"].get("value", current), shown["box_filled"]) == expected


def test_the_page_brings_its_own_script_and_style(page: Page) -> None:
    scripts = [dependency["js"] for dependency in page.blocks.config["dependencies"] if dependency["js"]]
    assert any("window.ziplora = {" in str(script) for script in scripts)
    assert "#ziplora_root" in (page.blocks.css or tab.looks(gr.mount_gradio_app)["css"])


def test_every_event_of_the_page_asks_for_a_function_that_the_script_has(page: Page) -> None:
    scripts = [str(dependency["js"] or "") for dependency in page.blocks.config["dependencies"]]
    whole = max(scripts, key=len)
    exported = whole.partition("window.ziplora = {")[2].partition("}")[0]
    asked = {part.partition("(")[0] for js in scripts if js != whole for part in js.split("ziplora.")[1:]}
    assert asked and asked <= {name.partition(":")[0].strip() for name in exported.split(",")}


def test_a_host_that_can_not_draw_has_no_compare_panel(host: TabHost) -> None:
    page = Page(Service(pico_host(host.folder)))
    assert "generate" in page and "compare" not in page and "comparison" not in page
    page.pick(subject="dog", style="ink")
    page.set(method="direct")
    page.run()
    assert page["adjust_source"] == "dog_x_ink"


def test_refusal_says_why() -> None:
    page = tab.refusal(f"This WebUI is too old {EVIL}.")
    assert any("&lt;img" in str(getattr(block, "value", "")) for block in page.blocks.values())


def test_javascript_keyword_is_one_that_gradio_takes() -> None:
    with gr.Blocks():
        gr.Button("b").click(None, None, None, **compat.javascript("() => []"))


@pytest.mark.parametrize(
    "element",
    [
        b'<script src="https://cdn.example/x.js"></script>',
        b"<script\n\tasync\n\tsrc='//cdn.example/x.js'\n></script>",
        b'<link rel="preconnect" href="https://fonts.example" />',
    ],
)
def test_remote_elements_are_taken_out(element: bytes) -> None:
    kept = b'<script src="./assets/index.js"></script><link href="/theme.css"><script>"https://x"</script>'
    assert guard.REMOTE_ELEMENTS.sub(b"", kept + element + kept) == kept * 2
