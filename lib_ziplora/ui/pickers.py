"""The places for LoRAs: picker, card, role, prompt and weight of each, and what happens on a pick.

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
from .compat import javascript, quiet, unsaved
from .controls import setting_control
from .forms import MORE, PAIR, SLOTS, Slot
from .handlers import Desk
from .recents import recall_event, recent_row, shown

Controls = dict[str, Any]


def pair_of_sides(desk: Desk, combined: str = "") -> Controls:
    """Recent merges, the subject's and the style's place with the button that exchanges them, and the
    prompt for both, which begins with ``combined``."""
    controls = recent_row(desk)
    subject, style = PAIR
    with gr.Row(elem_id="ziplora_sides"):
        controls |= _side(subject)
        controls["swap"] = unsaved(gr.Button("⇄", elem_id="ziplora_swap", min_width=40))
        controls |= _side(style)
    controls["combined_prompt"] = setting_control("combined_prompt", combined)
    controls["combined_filled"] = gr.State("")
    controls["catalog"] = gr.HTML(
        listing([], known=False), elem_id="ziplora_catalog", elem_classes=["ziplora-hidden"]
    )
    controls["pictures"] = gr.HTML("", elem_id="ziplora_pictures", elem_classes=["ziplora-hidden"])
    controls["pictures_asked"] = unsaved(gr.Textbox(visible=False, label="ZipLoRA pictures"))
    controls["picture"] = unsaved(
        gr.Button("ZipLoRA picture", elem_id="ziplora_picture", elem_classes=["ziplora-hidden"])
    )
    controls["judge"] = unsaved(
        gr.Button("ZipLoRA judge", elem_id="ziplora_judge", elem_classes=["ziplora-hidden"])
    )
    return controls


def more_sides() -> Controls:
    """Places for LoRAs beside the two, in an accordion."""
    controls: Controls = {}
    with gr.Accordion("More LoRAs", open=False, elem_id="ziplora_more"), gr.Row(elem_classes=["ziplora-row"]):
        for slot in MORE:
            controls |= _side(slot)
    return controls


def _side(slot: Slot) -> Controls:
    side, title, made = slot.name, slot.name.capitalize(), {}
    with gr.Column(elem_classes=["ziplora-side"]):
        with gr.Row(elem_classes=["ziplora-pick"]):
            made[side] = unsaved(
                gr.Textbox(
                    label=f"{title} LoRA",
                    placeholder="Type to search",
                    max_lines=1,
                    elem_id=f"ziplora_{side}",
                    elem_classes=["ziplora-picker"],
                    scale=1,
                )
            )
            made[f"{side}_refresh"] = _tool("↻", f"{side}_refresh")
            if slot.optional:
                made[f"{side}_clear"] = _tool("✕", f"{side}_clear")
        made[f"{side}_facts"] = gr.HTML(card(None, ""), elem_id=f"ziplora_{side}_facts")
        if slot.optional:
            made[f"{side}_role"] = unsaved(
                gr.Radio(
                    list(ROLES), value=ROLES[0], label=f"{title} LoRA is a", elem_id=f"ziplora_{side}_role"
                )
            )
        made[f"{side}_prompt"] = unsaved(
            gr.Textbox(
                label=f"{title} prompt",
                placeholder="The trigger words, as you would prompt this LoRA alone",
                lines=2,
                elem_id=f"ziplora_{side}_prompt",
            )
        )
        made[f"{side}_filled"] = gr.State("")
        made[f"{side}_weight"] = gr.Slider(
            0.05, 2.0, value=1.0, step=0.05, label=f"{title} weight", elem_id=f"ziplora_{side}_weight"
        )
    return made


def _tool(sign: str, name: str) -> Any:
    return unsaved(gr.Button(sign, elem_id=f"ziplora_{name}", elem_classes=["ziplora-tool"], min_width=40))


def picker_events(desk: Desk, controls: Controls) -> list[Any]:
    """Cards, prompts and a name follow the picks; lists are read anew; the two sides can be exchanged.

    Returns:
        The events after which other LoRAs are chosen than before.
    """

    def pick(name: str, prompt: str, filled: str) -> list[Any]:
        return [desk.shelf.card(name), *prefilled(prompt, filled, desk.shelf.prompt(name))]

    def pick_side(name: str, prompt: str, filled: str, *names: str) -> list[Any]:
        subject, style, output, output_filled = names
        return [
            *pick(name, prompt, filled),
            *prefilled(output, output_filled, desk.output_name(subject, style)),
        ]

    pair = [controls[slot.name] for slot in PAIR]
    output = [controls["output"], controls["output_filled"]]
    picked = []
    for slot in SLOTS:
        picker = controls[slot.name]
        prompt = [controls[f"{slot.name}_prompt"], controls[f"{slot.name}_filled"]]
        handler, inputs, outputs = (pick, [], []) if slot.optional else (pick_side, [*pair, *output], output)
        event = picker.change(
            handler,
            [picker, *prompt, *inputs],
            [controls[f"{slot.name}_facts"], *prompt, *outputs],
            **quiet(),
        )
        picked.append(_combine_after(event.then, desk, controls))
        if slot.optional:
            controls[f"{slot.name}_clear"].click(
                partial(lambda cleared: cleared, ["", card(None, ""), "", ""]),
                [],
                [picker, controls[f"{slot.name}_facts"], *prompt],
                **quiet(),
            )
            _combine_after(controls[f"{slot.name}_role"].change, desk, controls)
        _combine_after(prompt[0].blur, desk, controls)
    _refresh_events(desk, controls)
    _swap_event(desk, controls)
    recall_event(desk, controls)
    return picked


def _combine_after(event: Any, desk: Desk, controls: Controls) -> Any:
    """The prompt for both together follows the picks and the prompts, until the user writes their own."""

    def combine(combined: str, filled: str, *values: str) -> list[str]:
        if (combined or "") != (filled or ""):
            return [combined, filled]
        given = dict(zip((name for name, _ in parts), values, strict=True))
        loras = []
        for slot in SLOTS:
            name, prompt = given[slot.name], given[f"{slot.name}_prompt"] or ""
            if name:
                loras.append(Prompted(slot.role(given), prompt, desk.shelf.trigger(name)))
        return [combined_prompt(loras)] * 2

    names = [name for slot in SLOTS for name in slot.value_names() if not name.endswith("_weight")]
    parts = [(name, controls[name]) for name in names]
    both = [controls["combined_prompt"], controls["combined_filled"]]
    return event(combine, [*both, *(control for _, control in parts)], both, **quiet())


def _refresh_events(desk: Desk, controls: Controls) -> None:
    def refresh() -> list[Any]:
        return [desk.shelf.refresh(), shown(desk), gr.update(choices=desk.steerables())]

    lists = [controls["catalog"], controls["recent"], controls["steer"]]
    for name in ("refresh", *(f"{slot.name}_refresh" for slot in SLOTS)):
        controls[name].click(refresh, [], lists, **quiet())
    controls["picture"].click(
        desk.shelf.pictures,
        controls["pictures_asked"],
        controls["pictures"],
        **quiet(),
        **javascript("() => ziploraPictures.asked()"),
    )
    controls["judge"].click(desk.shelf.judge_more, [], controls["catalog"], **quiet())


def _swap_event(desk: Desk, controls: Controls) -> None:
    def swap(*values: Any) -> list[Any]:
        *sides, output, output_filled = values
        swapped = [sides[index ^ 1] for index in range(len(sides))]
        name = prefilled(output, output_filled, desk.output_name(*swapped[:2]))
        return [*swapped, *name, *map(desk.shelf.card, swapped[:2])]

    parts = [
        f"{side}{part}" for part in ("", "_prompt", "_filled", "_weight") for side in ("subject", "style")
    ]
    both = [controls[name] for name in (*parts, "output", "output_filled")]
    facts = [controls["subject_facts"], controls["style_facts"]]
    controls["swap"].click(swap, both, both + facts, **quiet())


def prefilled(current: str, filled: str, suggestion: str) -> list[str]:
    """A box and what was last filled into it; what the user typed stays."""
    if (current or "") not in ("", filled):
        return [current, filled]
    return [suggestion, suggestion]
