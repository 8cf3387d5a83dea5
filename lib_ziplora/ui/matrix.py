"""Panel Matrix: merges several subjects with several styles, and draws one sheet of them all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import gradio as gr

from ..config import ROLES
from ..hosts import Draws
from ..pipeline.matrix import NAMES
from . import text
from .controller import TabController
from .controls import Controls, Updates, Values
from .forms import MATRIX_VALUES, PROMPT_SIGN

ABOUT = (
    "Merges every subject with every style, one after the other, with the settings and weights of the form. "
    "One that fails doesn't stop the others."
)


def matrix_panel(controller: TabController, controls: Controls) -> None:
    """Lists of subjects and styles, the names of the merges, and the buttons."""
    with gr.Accordion("Matrix", open=False, elem_id="ziplora_matrix"):
        gr.HTML(text.facts(ABOUT))
        for role in ROLES:
            controls.add(
                gr.Textbox,
                f"matrix_{role}s",
                label=f"Matrix: {role}s",
                info="One LoRA per line; its prompt may follow after a |, otherwise its activation text is used",
                lines=3,
                max_lines=12,
            )
            controls.add(gr.Button, f"matrix_add_{role}", f"Add the {role} picked above", size="sm")
        names = {"info": "{subject} and {style} stand for the names of the LoRAs", "max_lines": 1}
        controls.add(
            gr.Textbox, "matrix_names", controller.folder + NAMES, label="Names of the merges", **names
        )
        controls.add(
            gr.Checkbox,
            "matrix_overwrite",
            False,
            label="Overwrite existing merges; otherwise they are skipped",
        )
        sheet = {"label": "Draw a sheet with a picture of every merge"}
        controls.add(gr.Checkbox, "matrix_sheet", False, visible=isinstance(controller.host, Draws), **sheet)
        with gr.Row(elem_classes=["ziplora-buttons"]):
            controls.add(gr.Button, "matrix_run", "Merge all pairs", variant="primary")
            controls.add(gr.Button, "matrix_check", "Check the pairs")
            controls.add(gr.Button, "matrix_scan", "Which go together?")
        controls.add(gr.HTML, "matrix_plan", "")


def matrix_events(controller: TabController, controls: Controls) -> None:
    """Picked LoRAs are added to the lists; the pairs are checked before they are merged."""
    for role in ROLES:
        inputs = (f"matrix_{role}s", role, f"{role}_prompt")
        controls.on(controls[f"matrix_add_{role}"].click, partial(_add, role), inputs, (f"matrix_{role}s",))
    for button, plan in (("matrix_check", controller.matrix_plan), ("matrix_scan", controller.matrix_scan)):
        controls.on(controls[button].click, partial(_planned, plan), MATRIX_VALUES, ("matrix_plan",))


def _planned(plan: Callable[[Values], str], given: Values) -> Updates:
    return {"matrix_plan": plan(given)}


def _add(role: str, given: Values) -> Updates:
    return {f"matrix_{role}s": added(given[f"matrix_{role}s"], given[role], given[f"{role}_prompt"])}


def added(lines: str | None, name: str | None, prompt: str | None) -> str:
    """The lines of a list with one more LoRA; one that is there already gets the new prompt."""
    rows = [row for row in (lines or "").splitlines() if row.strip()]
    if not name:
        return "\n".join(rows)
    kept = [row for row in rows if row.partition(PROMPT_SIGN)[0].strip() != name]
    words = " ".join((prompt or "").split())
    return "\n".join([*kept, f"{name} {PROMPT_SIGN} {words}" if words else name])
