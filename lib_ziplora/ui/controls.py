"""A control for every setting, made from what ``config`` says of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import gradio as gr

from ..config import Option, setting_defaults, setting_fields
from .compat import unsaved

FINEST_SLIDER = 1000
"""Ranges with more steps than this get a number field; a slider could not hit its values."""
MOST_RADIO_BUTTONS = 4


def setting_controls(values: Mapping[str, Any], elsewhere: Collection[str] = ()) -> dict[str, Any]:
    """A control for every setting, the advanced ones in an accordion.

    Args:
        values: field name of ``MergeSettings`` -> what its control begins with.
        elsewhere: the fields whose controls stand in another place.
    """
    fields = {name: option for name, option in setting_fields().items() if name not in elsewhere}
    made = {name: setting_control(name, values[name]) for name, o in fields.items() if not o.advanced}
    with gr.Accordion("Advanced settings", open=False, elem_id="ziplora_advanced"):
        made |= {name: setting_control(name, values[name]) for name, o in fields.items() if o.advanced}
    return made


def setting_control(name: str, value: Any) -> Any:
    """The control of one setting, which begins with a value."""
    option = setting_fields()[name]
    kind, arguments = control_of(name, option)
    shown = {"label": option.label, "info": option.help, "elem_id": f"ziplora_{name}"}
    return unsaved(kind(value=value, **shown, **arguments))


def control_of(name: str, option: Option) -> tuple[type[Any], dict[str, Any]]:
    """The kind of control that a setting gets, and the arguments that bound its values."""
    default = setting_defaults()[name]
    if option.choices:
        kind = gr.Radio if len(option.choices) <= MOST_RADIO_BUTTONS else gr.Dropdown
        return kind, {"choices": list(option.choices)}
    if isinstance(default, bool):
        return gr.Checkbox, {}
    if isinstance(default, str):
        return gr.Textbox, {}
    low, high, step = option.minimum, option.maximum, option.step
    if low is None or high is None or step is None or (high - low) / step > FINEST_SLIDER:
        return gr.Number, {"precision": 0} if isinstance(default, int) else {}
    return gr.Slider, {"minimum": low, "maximum": high, "step": step}
