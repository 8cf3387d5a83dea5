"""A localisation translates whole text nodes: they have to be the same for everybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lib_ziplora.jobs.service import Service
from lib_ziplora.ui import guide, tab

from ..support.pico_host import PicoHost, module_names, write_kohya
from .page import Texts


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


@pytest.fixture
def page(tmp_path: Path) -> Any:
    return tab.build(Service(PicoHost(tmp_path)))


def test_the_texts_do_not_depend_on_what_is_installed(page: Any, tmp_path: Path) -> None:
    write_kohya(tmp_path / "other.safetensors", module_names())
    assert texts(page) == texts(tab.build(Service(PicoHost(tmp_path))))


def test_every_sentence_of_the_guide_is_one_text(page: Any) -> None:
    sentences = {guide.PURPOSE, *guide.STEPS, *(text for answer in guide.ANSWERS for text in answer)}
    assert sentences <= texts(page)


@pytest.mark.parametrize(
    "name",
    [
        "Subject LoRA",
        "Style LoRA",
        "Subject prompt",
        "Combined prompt",
        "Balance of the combined prompt",
        "Adjust strengths",
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
