"""Events that start a job, follow whichever runs, stop it, and show how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from ..names import lora_name
from . import adjust, compare
from .controller import TabController
from .controls import Controls, Updates, Values, prefilled
from .explain import explained
from .forms import (
    ADJUST_VALUES,
    COMPARE_VALUES,
    MATRIX_VALUES,
    MERGE_VALUES,
    NO_PICTURES,
    SLOTS,
    compare_request,
    follow_up_request,
    matrix_request,
    merge_request,
    next_name,
)

FOLLOWED = "(_job, ...values) => [ziplora.followed(), ...values]"
"""The page's script knows which job the page follows."""


def job_events(controller: TabController, controls: Controls) -> None:
    """Everything about jobs: the tab shows those of the API and of other pages as its own."""
    drawn = [name for name in ("drawn", "drawn_note") if name in controls]
    for button, names, build, box in (
        ("generate", MERGE_VALUES, merge_request, "result"),
        ("reexport", ADJUST_VALUES, controller.reexport_request, "result"),
        ("matrix_run", MATRIX_VALUES, matrix_request, "result"),
        ("compare", COMPARE_VALUES, compare_request, "compare_result"),
    ):
        if button in controls:
            shown = (box, "job", "tag_panel", "note", "curves", "preflight", *drawn)
            submit = partial(_submit, controller, build, box)
            event = controls.on(controls[button].click, submit, names, shown)
            controls.script(event.then, "(job) => ziplora.submitted(job)", ("job",))
    if "follow_up" in controls:
        follow_up, names = partial(_follow_up, controller), ("after_merge", *COMPARE_VALUES)
        event = controls.on(controls["follow_up"].click, follow_up, names, ("job", "drawn_note"))
        controls.script(event.then, "(job) => ziplora.submitted(job)", ("job",))
    controls.on(controls["poll"].click, partial(_poll, controller), ("job",), ("bar", "curves"), js=FOLLOWED)
    for button, ask in (("interrupt", controller.interrupt), ("skip", controller.finish)):
        controls.on(controls[button].click, partial(_stop, ask), ("job",), ("note",), js=FOLLOWED)
    panels = [name for name in (*adjust.SHOWN, *compare.PROMPTS) if name in controls]
    lists = [name for name in PANELS if name in controls]
    inputs = ("job", "output", "output_filled", "overwrite", "subject", "style", *panels)
    outputs = ("result", "tag", "tag_panel", "note", "output", "output_filled", *lists, *panels)
    outcome = partial(_outcome, controller)
    ended = controls.on(controls["outcome"].click, outcome, inputs, outputs, js=FOLLOWED)
    controls.script(ended.then, "() => ziplora.shown()")
    for button, script in (
        ("copy", "copyTag()"),
        ("send", "send('txt2img')"),
        ("send_img2img", "send('img2img')"),
    ):
        controls.script(controls[button].click, f"() => ziplora.{script}")


PANELS = (
    *("adjust_source", "adjusting", "explain", "explaining", "explained"),
    *("compare_source", "comparison", "compare_result", "compare_gallery", "compare_job"),
    *("drawn", "drawn_note"),
)
"""What follows the newest merge, beside what changes with a merge that is picked."""


def _submit(controller: TabController, build: Any, box: str, given: Values) -> Updates:
    job, refused = controller.submit(build, given)
    updates: Updates = {box: refused, "job": job, "note": ""}
    if box == "result":
        updates |= dict.fromkeys(("tag_panel", "drawn"), gr.update(visible=False))
        updates["drawn_note"] = ""
    return updates | ({"curves": "", "preflight": ""} if job else {})


def _follow_up(controller: TabController, given: Values) -> Updates:
    """Begin to draw what the user wants to see after a merge."""
    if given["after_merge"] == NO_PICTURES:
        return {"job": ""}
    job, refused = controller.submit(follow_up_request, given)
    return {"job": job, "drawn_note": refused}


def _poll(controller: TabController, given: Values) -> Updates:
    curves = controller.curves(given["job"])
    return {"bar": controller.bar(given["job"])} | ({"curves": curves} if curves else {})


def _stop(ask: Any, given: Values) -> Updates:
    return {"note": ask(given["job"])}


def _outcome(controller: TabController, given: Values) -> Updates:
    """How the job ended; the panels follow the merge that is there now."""
    job = given["job"]
    ended = controller.outcome(job)
    if ended is None:
        return {}
    updates: Updates = {ended.place: ended.html, "note": ""}
    pictures = controller.gallery(job)
    if pictures and ended.place == "drawn_note":
        updates["drawn"] = gr.update(value=pictures[:0:-1], visible=True)  # the merge first, no sheet
    elif pictures:
        updates |= {"compare_gallery": pictures, "compare_job": job, "comparison": gr.update(open=True)}
    if ended.place != "result":
        return updates
    controller.loras.forget()
    updates |= {"tag": controller.tag(ended.name), "tag_panel": gr.update(visible=bool(ended.name))}
    updates |= _next_name(controller, ended.name, given)
    choices = controller.merges()
    if ended.name not in choices:
        return updates
    picked = gr.update(choices=choices, value=ended.name)
    updates |= dict.fromkeys(("adjust_source", "explain", "compare_source"), picked)
    updates |= dict.fromkeys(("adjusting", "explaining"), gr.update(open=True))
    updates |= {"explained": explained(controller.host, ended.name)}
    updates |= adjust.adjustable(controller, ended.name, given)
    if "compare_prompts" in given:
        updates |= compare.compare_prompts(controller, ended.name, given)
    return updates


def _next_name(controller: TabController, written: str, given: Values) -> Updates:
    """The next free name once one is taken: a name that was typed counts up as a suggested one does."""
    output = given["output"] or ""
    if (
        written
        and written == lora_name(output)
        and output != given["output_filled"]
        and not given["overwrite"]
    ):
        return {"output": next_name(output, controller.loras.names())}
    return prefilled(given, "output", controller.output_name(given["subject"], given["style"]))


def preflight_events(controller: TabController, controls: Controls, picked: Sequence[Any]) -> None:
    """Pre-flight follows the picks, and is repeated by Check and, by the script, once a setting has changed.

    A pick first has the pair inspected, which may take a second, and then shows what belongs to
    the values that the page has by then: a late answer is never that of another pair, and none
    is shown once a merge has begun meanwhile.

    Args:
        controller: knows what to show.
        controls: of the whole tab.
        picked: events after which other LoRAs are chosen.
    """
    controls.add_states("inspected")

    def inspect(given: Values) -> Updates:
        controller.preflight_pair(given)
        return {"inspected": given["job"]}

    def show(given: Values) -> Updates:
        begun = given["job"] != given["inspected"]
        return {"preflight": "" if begun else controller.preflight_pair(given)}

    def check(given: Values) -> Updates:
        return {"preflight": controller.preflight(given)}

    for on in [event.then for event in picked] + [controls["recheck"].click]:
        inspected = controls.on(on, inspect, ("job", *MERGE_VALUES), ("inspected",))
        shown = controls.on(inspected.then, show, ("job", "inspected", *MERGE_VALUES), ("preflight",))
        controls.script(shown.then, "() => ziplora.checked()")
    checked = controls.on(controls["check"].click, check, MERGE_VALUES, ("preflight",))
    controls.script(checked.then, "() => ziplora.checked()")
    pickers = {slot.name for slot in SLOTS}
    for name in (name for name in MERGE_VALUES if name not in pickers):
        controls.script(controls[name].input, "() => ziplora.outdated()")
