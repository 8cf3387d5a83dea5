"""A localisation translates whole text nodes: they have to be the same for everybody."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from lib_ziplora.ui import guide, tab
from lib_ziplora.ui.handlers import Desk

from .fake_host import FakeEngine, FakeHost
from .test_pickers import Texts


def texts(page: Any) -> set[str]:
    """Everything that the tab says before anybody has touched it."""
    found: set[str] = set()
    for block in page.blocks.values():
        for name in ("label", "info", "placeholder"):
            found.add(str(getattr(block, name, None) or ""))
        if isinstance(block, gr.Button):
            found.add(block.value)
        if isinstance(block, gr.HTML):
            found.update(Texts(block.value or "").found)
    return found - {""}


def built(*names: str) -> Any:
    host = FakeHost(names)
    return tab.build(host, Desk(host, FakeEngine().engine()))


@pytest.fixture(scope="module")
def page() -> Any:
    return built("cat", "ink")


def test_the_texts_do_not_depend_on_what_is_installed(page: Any) -> None:
    assert texts(page) == texts(built("other", "things", "altogether"))


def test_every_sentence_of_the_guide_is_one_text(page: Any) -> None:
    sentences = {*guide.STEPS, *(text for answer in guide.ANSWERS for text in answer)}
    assert sentences <= texts(page)


@pytest.mark.parametrize(
    "name",
    [
        "Subject LoRA",
        "Style LoRA",
        "Subject prompt",
        "Prompt for both together",
        "Balance of the combined prompt",
        "Steer afterwards",
        "Updates",
        "Learning rate",
        "Merge",
        "Check",
        "Finish now",
        "Interrupt",
    ],
)
def test_the_guide_speaks_of_controls_that_there_are(page: Any, name: str) -> None:
    assert name in texts(page)
    assert any(name in text for text in (*guide.STEPS, *(told for _, told in guide.ANSWERS)))
