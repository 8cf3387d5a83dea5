"""Panel Explain: what a merge did in words, curves, histograms and heat maps, and its report."""

from __future__ import annotations

import base64
import logging
from html import escape

import gradio as gr

from ..errors import LoraFileError, ZipLoraError
from ..hosts import Host
from ..plots import curves
from ..report.charts import heat_maps, histograms, words
from ..report.document import Document, document
from ..report.files import is_report, report_paths
from ..report.html import page
from . import text
from .controller import CHOOSE_MERGE, TabController
from .controls import Controls

log = logging.getLogger(__name__)


def explain_panel(controller: TabController, controls: Controls) -> None:
    """Picker of merges, and what there is to tell of the one that is picked."""
    with gr.Accordion("Explain", open=False, elem_id="ziplora_explaining") as controls["explaining"]:
        controls.add(gr.Dropdown, "explain", controller.merges(), value=None, label="Merge to explain")
        controls.add(gr.HTML, "explained", text.facts(CHOOSE_MERGE))
        paste = {"label": "Paste a recipe", "info": "The line that begins with ziplora", "max_lines": 1}
        controls.add(gr.Textbox, "recipe", "", **paste)
        controls.add(gr.Button, "recipe_fill", "Fill the form with it", size="sm")
        controls.add(gr.HTML, "recipe_note", "")


def explain_events(controller: TabController, controls: Controls) -> None:
    """The panel follows its picker."""
    controls.on(
        controls["explain"].input,
        lambda given: {"explained": explained(controller.host, given["explain"])},
        ("explain",),
        ("explained",),
    )


def explained(host: Host, name: str | None) -> str:
    """A box about a merge."""
    if not name:
        return text.facts(CHOOSE_MERGE)
    try:
        found = document(host, name)
    except ZipLoraError as error:
        return text.error(str(error))
    except Exception as problem:
        log.exception("%s could not be explained", name)
        return text.unexpected(problem)
    return about(found, _report_name(host, name))


def about(found: Document, report: str = "") -> str:
    """What there is to tell of a merge.

    Args:
        found: all of it.
        report: the name of the report beside it, or "".
    """
    name, recipe = escape(found.name), escape(found.recipe)
    content = base64.b64encode(page(found).encode()).decode()
    link = (
        f'<a class="ziplora-link" download="{name}.report.html" href="data:text/html;base64,{content}">'
        "Download the report</a>"
    )
    kept = f" It is saved next to the LoRA as {escape(report)}." if report else ""
    learning = f"<details><summary>Training curves</summary>{curves(found.saved.history)}</details>"
    return (
        f'<div class="ziplora-box" role="status" data-explained="{name}"><p><b>{name}</b></p>'
        f"{words(found.words)}{histograms(found.explanation)}"
        f"{learning if len(found.saved.history) > 1 else ''}{heat_maps(found.explanation, opened=False)}"
        f"<details><summary>Recipe</summary><p data-recipe>{recipe}</p></details><p>{link}.{kept}</p></div>"
    )


def _report_name(host: Host, name: str) -> str:
    try:
        web = report_paths(host.resolve(name))[0]
    except LoraFileError:
        return ""
    return web.name if is_report(web) else ""
