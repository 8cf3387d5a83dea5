"""Places for LoRAs: picker, card, role, prompt and weight of each, and what happens on a pick.

A picker is a text box whose value is a LoRA's name. The page's script makes it a list to search in
(``javascript/ziplora_pickers.js``), from what ``#ziplora_catalog`` holds.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from ..config import ROLES
from ..library.prompts import Prompted, combined_prompt
from .card import card, listing
from .controller import TabController
from .controls import Controls, Updates, Values, prefilled
from .forms import MORE, PAIR, SLOTS, Slot
from .recents import recall_event, recent_merges, recent_row

WORDS = "The trigger words, as you would prompt this LoRA alone"
BLOCKS_HELP = (
    "style blocks only, content blocks only, or strengths such as OUT00=0 MID=0.5; empty is all of it"
)
MERGE_LISTS = ("adjust_source", "explain", "compare_source")
"""Lists of the merges whose coefficients were saved."""


def pair_of_sides(controller: TabController, controls: Controls, combined: str = "") -> None:
    """Recent merges, the subject's and the style's place with the button that exchanges them, and the
    combined prompt, which begins with ``combined``."""
    recent_row(controller, controls)
    subject, style = PAIR
    with gr.Row(elem_id="ziplora_sides"):
        _side(controls, subject)
        controls.add(gr.Button, "swap", "⇄", min_width=40)
        _side(controls, style)
    controls.add_setting("combined_prompt", combined)
    controls.add_states("combined_prompt_filled")
    controls.add(gr.HTML, "catalog", listing([], known=False), elem_classes=["ziplora-hidden"])
    controls.add(gr.HTML, "pictures", "", elem_classes=["ziplora-hidden"])
    controls.add(gr.Textbox, "pictures_asked", visible=False, label="ZipLoRA pictures")
    controls.add_hidden("picture", "inspect")


def more_sides(controls: Controls) -> None:
    """Places for LoRAs beside the two, in an accordion."""
    with gr.Accordion("More LoRAs and blocks", open=False, elem_id="ziplora_more"):
        with gr.Row(elem_classes=["ziplora-row"]):
            for slot in MORE:
                _side(controls, slot)
        with gr.Row(elem_classes=["ziplora-row"]):
            for slot in SLOTS:
                only = {"info": BLOCKS_HELP, "max_lines": 1}
                controls.add(
                    gr.Textbox, f"{slot.name}_blocks", label=f"{slot.name.capitalize()} blocks", **only
                )


def _side(controls: Controls, slot: Slot) -> None:
    side, title = slot.name, slot.name.capitalize()
    with gr.Column(elem_classes=["ziplora-side"]):
        with gr.Row(elem_classes=["ziplora-pick"]):
            picker = {"max_lines": 1, "elem_classes": ["ziplora-picker"], "scale": 1}
            controls.add(gr.Textbox, side, label=f"{title} LoRA", placeholder="Type to search", **picker)
            tool = {"elem_classes": ["ziplora-tool"], "min_width": 40}
            controls.add(gr.Button, f"{side}_refresh", "↻", **tool)
            if slot.optional:
                controls.add(gr.Button, f"{side}_clear", "✕", **tool)
        controls.add(gr.HTML, f"{side}_facts", card(None, ""))
        if slot.optional:
            controls.add(gr.Radio, f"{side}_role", list(ROLES), value=ROLES[0], label=f"{title} LoRA is a")
        controls.add(gr.Textbox, f"{side}_prompt", label=f"{title} prompt", placeholder=WORDS, lines=2)
        controls.add_states(f"{side}_prompt_filled")
        weight = {"value": 1.0, "step": 0.05, "label": f"{title} weight"}
        controls.add(gr.Slider, f"{side}_weight", 0.05, 2.0, saved=True, **weight)


def picker_events(controller: TabController, controls: Controls) -> list[Any]:
    """Cards, prompts and a name follow the picks; lists are read anew; the two sides can be exchanged.

    Returns:
        The events after which other LoRAs are chosen than before.
    """
    picked = []
    pair = tuple(slot.name for slot in PAIR)
    for slot in SLOTS:
        name = slot.name
        prompt = (f"{name}_prompt", f"{name}_prompt_filled")
        output = () if slot.optional else ("output", "output_filled")
        event = controls.on(
            controls[name].change,
            partial(_pick, controller, slot),
            tuple(dict.fromkeys((name, *prompt, *pair, *output))),
            (f"{name}_facts", *prompt, *output),
        )
        picked.append(_combine_after(event.then, controller, controls))
        if slot.optional:
            emptied = {name: "", f"{name}_facts": card(None, ""), **dict.fromkeys(prompt, "")}
            controls.on(controls[f"{name}_clear"].click, partial(_constant, emptied), (), tuple(emptied))
            _combine_after(controls[f"{name}_role"].change, controller, controls)
        _combine_after(controls[f"{name}_prompt"].blur, controller, controls)
    _refresh_events(controller, controls)
    _swap_event(controller, controls)
    recall_event(controller, controls)
    return picked


def _constant(updates: Updates, _given: Values) -> Updates:
    return updates


def _pick(controller: TabController, slot: Slot, given: Values) -> Updates:
    name = given[slot.name]
    prompt = controller.loras.prompt(name)
    updates = {f"{slot.name}_facts": controller.loras.card(name)}
    updates |= prefilled(given, f"{slot.name}_prompt", prompt, placeholder=prompt or WORDS)
    if not slot.optional:
        updates |= prefilled(given, "output", controller.output_name(given["subject"], given["style"]))
    return updates


def _combine_after(event: Any, controller: TabController, controls: Controls) -> Any:
    """The combined prompt follows the picks and the prompts, until the user writes their own or empties it."""

    def combine(given: Values) -> Updates:
        chosen = [slot for slot in SLOTS if given[slot.name]]
        suggestion = combined_prompt(
            [
                Prompted(
                    slot.role(given),
                    given[f"{slot.name}_prompt"] or controller.loras.prompt(given[slot.name]),
                    controller.loras.trigger(given[slot.name]),
                )
                for slot in chosen
            ]
        )
        return prefilled(given, "combined_prompt", suggestion, empty=False, placeholder=suggestion)

    names = [name for slot in SLOTS for name in slot.value_names() if not name.endswith("_weight")]
    both = ("combined_prompt", "combined_prompt_filled")
    return controls.on(event, combine, (*both, *names), both)


def _refresh_events(controller: TabController, controls: Controls) -> None:
    names = [slot.name for slot in SLOTS]
    lists = [name for name in MERGE_LISTS if name in controls]

    def refresh(given: Values) -> Updates:
        updates: Updates = {"catalog": controller.loras.refresh(), "recent": recent_merges(controller)}
        updates |= {f"{name}_facts": controller.loras.card(given[name]) for name in names}
        return updates | dict.fromkeys(lists, gr.update(choices=controller.merges()))

    for button in ("refresh", *(f"{name}_refresh" for name in names)):
        outputs = ("catalog", "recent", *(f"{name}_facts" for name in names), *lists)
        controls.on(controls[button].click, refresh, names, outputs)
    controls.on(
        controls["picture"].click,
        lambda given: {"pictures": controller.loras.pictures(given["pictures_asked"])},
        ("pictures_asked",),
        ("pictures",),
        js="() => ziploraPictures.asked()",
    )
    controls.on(
        controls["inspect"].click, lambda _: {"catalog": controller.loras.inspect_more()}, (), ("catalog",)
    )


def _swap_event(controller: TabController, controls: Controls) -> None:
    parts = [
        (f"subject{part}", f"style{part}") for part in ("", "_prompt", "_prompt_filled", "_weight", "_blocks")
    ]
    names = ("output", "output_filled", *(name for pair in parts for name in pair))

    def swap(given: Values) -> Updates:
        swapped = {one: given[other] for pair in parts for one, other in (pair, pair[::-1])}
        name = controller.output_name(swapped["subject"], swapped["style"])
        cards = {f"{slot.name}_facts": controller.loras.card(swapped[slot.name]) for slot in PAIR}
        return {**swapped, **prefilled(given, "output", name), **cards}

    controls.on(controls["swap"].click, swap, names, (*names, "subject_facts", "style_facts"))
