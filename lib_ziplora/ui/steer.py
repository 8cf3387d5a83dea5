"""The panel that writes a finished merge again with other strengths, rank or precision."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..config import setting_fields
from . import text
from .compat import quiet, unsaved
from .forms import STRENGTHS
from .handlers import Desk
from .pickers import Controls, prefilled

TAG_NAME = slice(len("<lora:"), -len(":1>"))


def steering_panel(desk: Desk) -> Controls:
    """Picker of merges, a strength for each of a merge's LoRAs, and what the new file is to be like."""
    made: Controls = {}
    with gr.Accordion("Steer afterwards", open=False, elem_id="ziplora_steering") as made["steering"]:
        made["steer"] = unsaved(
            gr.Dropdown(desk.steerables(), value=None, label="Merged LoRA", elem_id="ziplora_steer")
        )
        made["steer_about"] = gr.HTML(text.steering(None), elem_id="ziplora_steer_about")
        for number in range(1, STRENGTHS + 1):
            name = f"steer_strength_{number}"
            made[name] = unsaved(
                gr.Slider(
                    0.05,
                    2.0,
                    value=1.0,
                    step=0.05,
                    label=f"Strength {number}",
                    elem_id=f"ziplora_{name}",
                    visible=False,
                )
            )
        made |= _file()
        made["reexport"] = unsaved(gr.Button("Re-export", variant="primary", elem_id="ziplora_reexport"))
    return made


def _file() -> Controls:
    fields, made = setting_fields(), {}
    with gr.Row(elem_classes=["ziplora-row"]):
        made["steer_rank"] = unsaved(
            gr.Textbox(
                label="Rank of the new file",
                info="exact, a highest rank such as 64, or a share of energy such as 0.995",
                max_lines=1,
                elem_id="ziplora_steer_rank",
            )
        )
        made["steer_precision"] = unsaved(
            gr.Radio(
                list(fields["precision"].choices),
                label="Precision of the new file",
                elem_id="ziplora_steer_precision",
            )
        )
    made["steer_split"] = unsaved(
        gr.Checkbox(False, label="Write each part as a file of its own too", elem_id="ziplora_steer_split")
    )
    made["steer_output"] = unsaved(
        gr.Textbox(label="Name of the new file", max_lines=1, elem_id="ziplora_steer_output")
    )
    made["steer_output_filled"] = gr.State("")
    made["steer_overwrite"] = unsaved(
        gr.Checkbox(False, label="Replace a LoRA of the new name", elem_id="ziplora_steer_overwrite")
    )
    return made


def steering_events(desk: Desk, controls: Controls) -> None:
    """The panel follows its picker."""
    controls["steer"].input(
        lambda name, *output: _shown(desk, name, *output),
        [controls[name] for name in ("steer", "steer_output", "steer_output_filled")],
        _panel(controls),
        **quiet(),
    )


def steer_to(desk: Desk, controls: Controls, finished: Any) -> None:
    """Offer a merge to be steered once an event has put its tag into the tab."""

    def offer(tag: str, *output: str) -> list[Any]:
        name = tag[TAG_NAME] if tag else ""
        choices = desk.steerables()
        if name not in choices:
            return [gr.update(choices=choices), gr.update(), *[gr.update() for _ in _panel(controls)]]
        return [
            gr.update(choices=choices, value=name),
            gr.update(open=True),
            *_shown(desk, name, *output),
        ]

    finished.then(
        offer,
        [controls[name] for name in ("tag", "steer_output", "steer_output_filled")],
        [controls["steer"], controls["steering"], *_panel(controls)],
        **quiet(),
    )


def _panel(controls: Controls) -> list[Any]:
    """What changes with the merge that is picked."""
    strengths = [f"steer_strength_{number}" for number in range(1, STRENGTHS + 1)]
    names = (
        "steer_about",
        *strengths,
        "steer_rank",
        "steer_precision",
        "steer_output",
        "steer_output_filled",
    )
    return [controls[name] for name in names]


def _shown(desk: Desk, name: str | None, output: str, filled: str) -> list[Any]:
    """Updates of ``_panel``; every strength begins at 1."""
    steering = desk.steering(name)
    unused = STRENGTHS - len(steering.labels)
    return [
        steering.about,
        *[gr.update(label=label, value=1.0, visible=True) for label in steering.labels],
        *[gr.update(value=1.0, visible=False)] * unused,
        steering.rank,
        steering.precision or None,
        *prefilled(output, filled, steering.output),
    ]
