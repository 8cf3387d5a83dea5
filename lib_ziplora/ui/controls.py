"""The tab's controls by name, and a control for every setting, made from what ``config`` says of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import gradio as gr

from ..config import Option, setting_defaults, setting_fields
from .compat import javascript, quiet

FINEST_SLIDER = 1000
"""Ranges with more steps than this get a number field; a slider could not hit its values."""
MOST_RADIO_BUTTONS = 5

Values = Mapping[str, Any]
"""Control's name -> its value: what a handler is given."""
Updates = dict[str, Any]
"""Control's name -> its new value or ``gr.update``: what a handler returns; the others stay as they are."""
Handler = Callable[[Values], Updates]


class Controls(dict[str, Any]):
    """The tab's controls; the element of ``name`` on the page has the id ``ziplora_name``."""

    def add(self, kind: type[Any], name: str, *values: Any, **options: Any) -> Any:
        """Make a control at this place of the layout.

        Args:
            kind: gradio's class.
            name: in this table and on the page.
            values: positional arguments of the class.
            options: its keyword arguments; ``saved`` lets the WebUI keep the value in ``ui-config.json``.
        """
        saved = options.pop("saved", False)
        self[name] = kind(*values, elem_id=f"ziplora_{name}", **options)
        if not saved:
            self[name].do_not_save_to_config = True
        return self[name]

    def add_hidden(self, *names: str) -> None:
        """Make buttons that only the page's script presses."""
        for name in names:
            self.add(gr.Button, name, f"ZipLoRA {name}", elem_classes=["ziplora-hidden"])

    def add_states(self, *names: str) -> None:
        """Make values that the page keeps and does not show."""
        for name in names:
            self[name] = gr.State("")

    def of(self, names: Iterable[str]) -> list[Any]:
        """The controls of some names, in their order."""
        return [self[name] for name in names]

    def on(
        self,
        event: Callable[..., Any],
        handler: Handler,
        inputs: Collection[str] = (),
        outputs: Collection[str] = (),
        js: str = "",
    ) -> Any:
        """Have an event run a handler, at once and without a spinner.

        Args:
            event: a control's ``click``, ``change``, ...; ``then`` of another event.
            handler: from the values of ``inputs`` to updates of ``outputs``.
            inputs: names of controls.
            outputs: names of controls.
            js: a function of the values of ``inputs`` that runs on the page first and returns those to use.
        """

        def run(*values: Any) -> Any:
            updates = handler(dict(zip(inputs, values, strict=True)))
            shown = [_own(updates.get(name, gr.update())) for name in outputs]
            return shown[0] if len(shown) == 1 else shown

        code = javascript(js) if js else {}
        return event(run, self.of(inputs), self.of(outputs), **quiet(), **code)

    def script(self, event: Callable[..., Any], js: str, inputs: Collection[str] = ()) -> Any:
        """Have an event run a function of the page, which must return a list."""
        return event(None, self.of(inputs), None, **javascript(js))

    def add_settings(self, values: Mapping[str, Any], elsewhere: Collection[str] = ()) -> None:
        """Make a control for every setting, the advanced ones in an accordion.

        Args:
            values: field name of ``MergeSettings`` -> what its control begins with.
            elsewhere: the fields whose controls stand in another place.
        """
        fields = {name: option for name, option in setting_fields().items() if name not in elsewhere}
        for name in (name for name, option in fields.items() if not option.advanced):
            self.add_setting(name, values[name])
        with gr.Accordion("Advanced settings", open=False, elem_id="ziplora_advanced"):
            for name in (name for name, option in fields.items() if option.advanced):
                self.add_setting(name, values[name])

    def add_setting(self, name: str, value: Any) -> None:
        """Make the control of one setting, which begins with a value."""
        option = setting_fields()[name]
        kind, options = control_of(name, option)
        self.add(kind, name, value=value, label=option.label, info=option.help, **options)


def _own(value: Any) -> Any:
    """An update of its own for every control: gradio 4 empties one as it reads it, so two can't share it."""
    return dict(value) if isinstance(value, dict) else value


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


def prefilled(
    given: Values, name: str, suggestion: str, *, empty: bool = True, placeholder: str | None = None
) -> Updates:
    """A box that follows a suggestion until the user types into it; ``<name>_filled`` is what it got last.

    Args:
        given: the values of both.
        name: of the box.
        suggestion: what it is to hold.
        empty: fill it also where it is empty, though something else was filled in.
        placeholder: what it shows while it is empty; as before when None.
    """
    current, filled = given[name] or "", given[f"{name}_filled"] or ""
    shown = {} if placeholder is None else {"placeholder": placeholder}
    if current == filled or (empty and not current):
        return {name: gr.update(value=suggestion, **shown), f"{name}_filled": suggestion}
    return {name: gr.update(**shown)}
