"""The panel that shows what a merge did: words, curves, histograms and heat maps, and its report."""

from __future__ import annotations

import base64
import logging
from html import escape
from typing import Any

import gradio as gr

from ..errors import LoraFileError, ZipLoraError
from ..hosts import Host
from ..plots import curves
from ..report.charts import heat_maps, histograms, words
from ..report.document import Document, document
from ..report.files import is_report, report_paths
from ..report.html import page
from . import text
from .compat import quiet, unsaved
from .forms import SLOTS
from .handlers import Desk
from .pickers import Controls
from .steer import TAG_NAME

log = logging.getLogger(__name__)

CHOOSE = '<div class="ziplora-facts">Choose a merged LoRA whose coefficients were saved.</div>'


def explain_panel(desk: Desk) -> Controls:
    """Picker of merges, and what there is to tell of the one that is picked."""
    made: Controls = {}
    with gr.Accordion("Explain", open=False, elem_id="ziplora_explaining") as made["explaining"]:
        made["explain"] = unsaved(
            gr.Dropdown(desk.steerables(), value=None, label="Merge to explain", elem_id="ziplora_explain")
        )
        made["explained"] = gr.HTML(CHOOSE, elem_id="ziplora_explained")
    return made


def explain_events(desk: Desk, controls: Controls) -> None:
    """The panel follows its picker, and the picker the list of LoRAs."""
    controls["explain"].input(
        lambda name: explained(desk.host, name), controls["explain"], controls["explained"], **quiet()
    )
    for name in ("refresh", *(f"{slot.name}_refresh" for slot in SLOTS)):
        controls[name].click(
            lambda: gr.update(choices=desk.steerables()), None, controls["explain"], **quiet()
        )


def explain_to(desk: Desk, controls: Controls, finished: Any) -> None:
    """Explain a merge once an event has put its tag into the tab."""

    def shown(tag: str) -> list[Any]:
        choices, name = desk.steerables(), tag[TAG_NAME] if tag else ""
        if name not in choices:
            return [gr.update(choices=choices), gr.update(), gr.update()]
        return [gr.update(choices=choices, value=name), gr.update(open=True), explained(desk.host, name)]

    outputs = [controls[name] for name in ("explain", "explaining", "explained")]
    finished.then(shown, controls["tag"], outputs, **quiet())


def explained(host: Host, name: str | None) -> str:
    """A box about a merge."""
    if not name:
        return CHOOSE
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
    name = escape(found.name)
    content = base64.b64encode(page(found).encode()).decode()
    link = (
        f'<a class="ziplora-link" download="{name}.report.html" href="data:text/html;base64,{content}">'
        "Download the report</a>"
    )
    kept = f" It lies beside the LoRA as {escape(report)}." if report else ""
    learning = f"<details><summary>While it learnt</summary>{curves(found.saved.history)}</details>"
    return (
        f'<div class="ziplora-box" role="status" data-explained="{name}"><p><b>{name}</b></p>'
        f"{words(found.words)}{histograms(found.explanation)}"
        f"{learning if len(found.saved.history) > 1 else ''}{heat_maps(found.explanation, opened=False)}"
        f"<p>{link}.{kept}</p></div>"
    )


def _report_name(host: Host, name: str) -> str:
    try:
        web = report_paths(host.resolve(name))[0]
    except LoraFileError:
        return ""
    return web.name if is_report(web) else ""
