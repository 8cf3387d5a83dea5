"""The layout: every setting has its control, labels are unique, events carry what they should."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import gradio as gr
import pytest

from lib_ziplora.config import setting_defaults, setting_fields
from lib_ziplora.ui import compat, guard, pickers, tab
from lib_ziplora.ui.forms import value_names
from lib_ziplora.ui.handlers import Desk

from .fake_host import EVIL, FakeEngine, FakeHost, rows

TRANSIENT = ("subject", "style", "subject_prompt", "style_prompt", "output", "overwrite", "tag", "generate")


@pytest.fixture
def page() -> Any:
    host = FakeHost()
    return tab.build(host, Desk(host, FakeEngine().engine()))


def component(page: Any, name: str) -> Any:
    return next(
        block for block in page.blocks.values() if getattr(block, "elem_id", None) == f"ziplora_{name}"
    )


def labelled(page: Any) -> list[Any]:
    return [block for block in page.blocks.values() if getattr(block, "label", None)]


def handler(page: Any, name: str) -> Any:
    """The function of the first event of a component."""
    target = component(page, name)._id
    for function, dependency in zip(functions(page), page.config["dependencies"], strict=True):
        if any(
            str(target) == str(item if isinstance(item, int) else item[0]) for item in dependency["targets"]
        ):
            return function
    raise AssertionError(f"{name} has no event")


def functions(page: Any) -> list[Any]:
    known = page.fns.values() if isinstance(page.fns, dict) else page.fns
    return [block.fn for block in known]


@pytest.mark.parametrize("name", list(setting_fields()))
def test_every_setting_has_a_control_with_its_default(page: Any, name: str) -> None:
    option, control = setting_fields()[name], component(page, name)
    assert control.value == setting_defaults()[name]
    assert (control.label, control.info) == (option.label, option.help)
    if isinstance(control, gr.Slider):
        assert (control.minimum, control.maximum, control.step) == (
            option.minimum,
            option.maximum,
            option.step,
        )


def test_labels_are_unique(page: Any) -> None:
    """The WebUI's ui-config.json knows controls by their labels alone."""
    labels = [block.label for block in labelled(page)]
    assert len(labels) == len(set(labels))


def test_what_belongs_to_one_merge_is_not_saved_in_the_ui_config(page: Any) -> None:
    assert all(component(page, name).do_not_save_to_config for name in TRANSIENT)
    assert not getattr(component(page, "subject_weight"), "do_not_save_to_config", False)


def test_the_settings_page_alone_decides_what_a_setting_begins_with(page: Any) -> None:
    """A value that ui-config.json has stored would win over it."""
    assert all(component(page, name).do_not_save_to_config for name in setting_fields())
    chosen = {**setting_defaults(), "steps": 33, "precision": "bf16"}
    host = FakeHost()
    other = tab.build(host, Desk(host, FakeEngine().engine()), chosen)
    assert {name: component(other, name).value for name in setting_fields()} == chosen


def test_a_merge_sends_the_values_in_the_handlers_order(page: Any) -> None:
    wanted = [component(page, name)._id for name in value_names()]
    sent = [dependency["inputs"] for dependency in page.config["dependencies"]]
    assert wanted in sent
    assert any(inputs[1:] == wanted for inputs in sent)


def test_the_host_knows_how_many_values_a_merge_gives_back() -> None:
    """It puts an exception's message into as many, so that the page can show it."""
    host = FakeHost()
    page = tab.build(host)
    merges = [d for d in page.config["dependencies"] if "submit_ziplora(" in str(d["js"])]
    assert [
        len(d["outputs"]) for d in merges if "window.submit_ziplora" not in d["js"]
    ] == host.wrapped_outputs


def test_prefilled_boxes_follow_the_pick_until_the_user_types() -> None:
    assert pickers.prefilled("", "", "a cat") == ["a cat", "a cat"]
    assert pickers.prefilled("a cat", "a cat", "a dog") == ["a dog", "a dog"]
    assert pickers.prefilled("my cat", "a cat", "a dog") == ["my cat", "a cat"]


def test_picking_prefills_prompt_and_name(page: Any) -> None:
    facts, prompt, _, output, _ = handler(page, "style")("ink", "", "", "cat", "ink", "", "")
    assert "<i>rank</i> 8" in facts and prompt == "a ink" and output == "cat_x_ink"


def test_picking_one_more_prefills_its_prompt_alone(page: Any) -> None:
    facts, *prompt = handler(page, "third")("ink", "", "")
    assert "<i>rank</i> 8" in facts and prompt == ["a ink", "a ink"]
    assert handler(page, "third_clear")()[0] == ""


def test_refreshing_reads_every_list_anew(page: Any) -> None:
    listing, recent, merges = handler(page, "refresh")()
    assert [name for name, _, _ in rows(listing)] == ["cat", "ink", "old"]
    assert recent == "" and merges["choices"] == []


def test_swap_twice_is_as_before(page: Any) -> None:
    before = ["cat", "ink", "a cat", "mine", "a cat", "a ink", 0.5, 1.5, "my name", "cat_x_ink"]
    once = handler(page, "swap")(*before)
    assert once[:8] == ["ink", "cat", "mine", "a cat", "a ink", "a cat", 1.5, 0.5]
    assert handler(page, "swap")(*once[:10])[:10] == before


def test_a_look_that_comes_after_a_merge_began_is_not_shown(page: Any) -> None:
    verdict = component(page, "verdict")._id
    known = zip(functions(page), page.config["dependencies"], strict=True)
    look, show = next(pair for pair in pairwise(known) if pair[1][1]["outputs"] == [verdict])
    names = value_names()
    given = [setting_defaults().get(name, {"subject": "cat", "style": "ink"}.get(name)) for name in names]
    looked = look[0]("", *given)
    assert show[0]("", looked, *given) != "" == show[0]("task(begun)", looked, *given)


def test_a_refused_request_changes_nothing_but_the_message(page: Any) -> None:
    ticket, box, *_ = handler(page, "generate")(*[setting_defaults().get(name) for name in value_names()])
    assert ticket == "" and "No subject is chosen" in box


def test_the_page_brings_its_own_script_and_style(page: Any) -> None:
    scripts = [dependency["js"] for dependency in page.config["dependencies"] if dependency["js"]]
    assert any("submit_ziplora = function" in str(script) for script in scripts)
    assert "#ziplora_root" in (page.css or tab.looks(gr.mount_gradio_app)["css"])


def test_refusal_says_why() -> None:
    page = tab.refusal(f"This WebUI is too old {EVIL}.")
    assert any("&lt;img" in str(getattr(block, "value", "")) for block in page.blocks.values())


def test_javascript_keyword_is_one_that_gradio_takes(page: Any) -> None:
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
