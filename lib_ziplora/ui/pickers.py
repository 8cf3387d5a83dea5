"""The places for LoRAs: picker, facts, role, prompt and weight of each, and what happens on a pick."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from ..config import ROLES
from . import text
from .compat import quiet, unsaved
from .forms import MORE, PAIR, SLOTS, Slot
from .handlers import Desk

Controls = dict[str, Any]


def pair_of_sides(desk: Desk) -> Controls:
    """The subject's and the style's place, with the button that exchanges them."""
    names = desk.installed()
    controls: Controls = {}
    subject, style = PAIR
    with gr.Row(elem_id="ziplora_sides"):
        controls |= _side(subject, names)
        controls["swap"] = unsaved(gr.Button("⇄", elem_id="ziplora_swap", min_width=40))
        controls |= _side(style, names)
    return controls


def more_sides(desk: Desk) -> Controls:
    """Places for LoRAs beside the two, in an accordion."""
    names = desk.installed()
    controls: Controls = {}
    with gr.Accordion("More LoRAs", open=False, elem_id="ziplora_more"), gr.Row(elem_classes=["ziplora-row"]):
        for slot in MORE:
            controls |= _side(slot, names)
    return controls


def _side(slot: Slot, names: Sequence[str]) -> Controls:
    side, title, made = slot.name, slot.name.capitalize(), {}
    with gr.Column(elem_classes=["ziplora-side"]):
        with gr.Row(elem_classes=["ziplora-pick"]):
            made[side] = unsaved(
                gr.Dropdown(
                    list(names), value=None, label=f"{title} LoRA", elem_id=f"ziplora_{side}", scale=1
                )
            )
            made[f"{side}_refresh"] = _tool("↻", f"{side}_refresh")
            if slot.optional:
                made[f"{side}_clear"] = _tool("✕", f"{side}_clear")
        made[f"{side}_facts"] = gr.HTML(text.facts(None, "", ""), elem_id=f"ziplora_{side}_facts")
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
    """Facts, prompts and a name follow the picks; lists are read anew; the two sides can be exchanged.

    Returns:
        The events after which other LoRAs are chosen than before.
    """

    def pick(name: str, prompt: str, filled: str) -> list[Any]:
        return [desk.facts(name), *prefilled(prompt, filled, desk.prompt(name))]

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
        picked.append(
            picker.change(
                handler,
                [picker, *prompt, *inputs],
                [controls[f"{slot.name}_facts"], *prompt, *outputs],
                **quiet(),
            )
        )
        if slot.optional:
            controls[f"{slot.name}_clear"].click(
                partial(lambda cleared: cleared, [None, text.facts(None, "", ""), "", ""]),
                [],
                [picker, controls[f"{slot.name}_facts"], *prompt],
                **quiet(),
            )
    _refresh_events(desk, controls)
    _swap_event(desk, controls)
    return picked


def _refresh_events(desk: Desk, controls: Controls) -> None:
    def refresh() -> list[Any]:
        names = desk.refresh()
        return [*[gr.update(choices=names) for _ in SLOTS], gr.update(choices=desk.steerables())]

    lists = [*[controls[slot.name] for slot in SLOTS], controls["steer"]]
    for name in ("refresh", *(f"{slot.name}_refresh" for slot in SLOTS)):
        controls[name].click(refresh, [], lists, **quiet())


def _swap_event(desk: Desk, controls: Controls) -> None:
    def swap(*values: Any) -> list[Any]:
        *sides, output, output_filled = values
        swapped = [sides[index ^ 1] for index in range(len(sides))]
        name = prefilled(output, output_filled, desk.output_name(*swapped[:2]))
        return [*swapped, *name, *map(desk.facts, swapped[:2])]

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
