"""Panel Adjust strengths: writes a finished merge again with other strengths, rank or precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import gradio as gr

from ..config import setting_fields
from ..errors import ZipLoraError
from ..library.merges import steerable
from ..names import free_name
from . import text
from .controller import CHOOSE_MERGE, TabController
from .controls import Controls, Updates, Values, prefilled
from .explain import explained
from .forms import STRENGTH_VALUES, STRENGTHS

NAME = ("adjust_output", "adjust_output_filled")
SHOWN = ("adjust_about", *STRENGTH_VALUES, "adjust_rank", "adjust_precision", *NAME)
"""What changes with the merge that is picked."""
PICKERS = ("adjust_source", "explain", "compare_source")
Change = Callable[[str, str], tuple[str, str]]
"""From a merge and a name to what the merge is called then, "" for nothing, and a box that says so."""


def adjust_panel(controller: TabController, controls: Controls) -> None:
    """Picker of merges, a strength for each of a merge's LoRAs, and what the new file is to be like."""
    with gr.Accordion("Adjust strengths", open=False, elem_id="ziplora_adjusting") as controls["adjusting"]:
        controls.add(gr.Dropdown, "adjust_source", controller.merges(), value=None, label="Merged LoRA")
        controls.add(gr.HTML, "adjust_about", text.facts(CHOOSE_MERGE))
        for number, name in enumerate(STRENGTH_VALUES, 1):
            slider = {"value": 1.0, "step": 0.05, "label": f"Strength {number}", "visible": False}
            controls.add(gr.Slider, name, 0.05, 2.0, **slider)
        with gr.Row(elem_classes=["ziplora-row"]):
            controls.add(
                gr.Textbox,
                "adjust_rank",
                label="Rank of the new file",
                info="exact, a highest rank such as 64, or a share of energy such as 0.995",
                max_lines=1,
            )
            precisions = list(setting_fields()["precision"].choices)
            controls.add(gr.Radio, "adjust_precision", precisions, label="Precision of the new file")
        controls.add(gr.Checkbox, "adjust_split", False, label="Also save one new file per LoRA")
        controls.add(gr.Textbox, "adjust_output", label="Name of the new file", max_lines=1)
        controls.add_states("adjust_output_filled")
        controls.add(
            gr.Checkbox, "adjust_overwrite", False, label="Overwrite an existing LoRA with the new name"
        )
        with gr.Row(elem_classes=["ziplora-buttons"]):
            controls.add(gr.Button, "reexport", "Re-export", variant="primary")
            controls.add(gr.Button, "rename", "Rename")
            controls.add(gr.Button, "remove", "Delete")


def adjust_events(controller: TabController, controls: Controls) -> None:
    """The panel follows its picker."""
    controls.on(
        controls["adjust_source"].input,
        lambda given: adjustable(controller, given["adjust_source"], given),
        ("adjust_source", *NAME),
        SHOWN,
    )
    outputs = (*(name for name in PICKERS if name in controls), *SHOWN, "explained")
    for button, change, js in (
        ("rename", controller.rename, ""),
        ("remove", controller.remove, "(name, ...values) => [ziplora.confirmed(name), ...values]"),
    ):
        handler = partial(_changed, controller, change)
        changed = controls.on(controls[button].click, handler, ("adjust_source", *NAME), outputs, js=js)
        controls.script(changed.then, "() => ziplora.changed()")


def _changed(controller: TabController, change: Change, given: Values) -> Updates:
    """What the panels show once a merge was renamed or deleted."""
    name = given["adjust_source"]
    if not name:
        return {}
    now, box = change(name, given["adjust_output"] or "")
    if now == name:
        return {"adjust_about": box}
    controller.loras.forget()
    picked = gr.update(choices=controller.merges(), value=now or None)
    shown = {**adjustable(controller, now, given), "explained": explained(controller.host, now)}
    return {**dict.fromkeys(PICKERS, picked), **shown, "adjust_about": box}


def adjustable(controller: TabController, name: str | None, given: Values) -> Updates:
    """Updates of ``SHOWN`` for a merge, every strength at 1; one that can't be adjusted has no sliders."""
    hidden: Updates = dict.fromkeys(STRENGTH_VALUES, gr.update(value=1.0, visible=False))
    if not name:
        return {**hidden, "adjust_about": text.facts(CHOOSE_MERGE)}
    try:
        merge = steerable(controller.host, name)
    except ZipLoraError as error:
        return {**hidden, "adjust_about": text.error(str(error))}
    settings, fixed = merge.settings, merge.loras[STRENGTHS:]
    facts = [" + ".join(merge.loras), settings.method, f"rank {settings.rank}", settings.precision]
    facts += [f"merged with {merge.checkpoint}"] if merge.checkpoint else []
    facts += [f"{', '.join(fixed)} can't be adjusted here and stay as they are"] if fixed else []
    labels = [f"Strength of {lora} ({label})" for lora, label in zip(merge.loras, merge.labels, strict=True)]
    sliders = [gr.update(label=label, value=1.0, visible=True) for label in labels]
    suggested = controller.folder + free_name(f"{merge.name}_adjusted", controller.loras.names())
    return {
        **hidden,
        **dict(zip(STRENGTH_VALUES, sliders, strict=False)),
        **prefilled(given, "adjust_output", suggested),
        "adjust_about": text.facts(" · ".join(facts)),
        "adjust_rank": settings.rank,
        "adjust_precision": settings.precision,
    }
