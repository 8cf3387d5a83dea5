"""The tab's layout, the same for the WebUI and for ``python -m lib_ziplora serve``.

Values and decisions are ``handlers.Desk``'s; here are only controls and their events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ..config import Option, setting_defaults, setting_fields
from ..hosts import Host
from . import text
from .compat import accepted, javascript, quiet, unsaved
from .handlers import Desk, Outcome, value_names

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "javascript" / "ziplora.js"
STYLE = ROOT / "style.css"
FONTS = ["system-ui", "sans-serif"]
FINEST_SLIDER = 1000
"""Ranges with more steps than this get a number field; a slider could not hit its values."""
MOST_RADIO_BUTTONS = 4

Controls = dict[str, Any]


def build(host: Host, desk: Desk | None = None) -> gr.Blocks:
    """The whole tab over a host.

    Args:
        host: where LoRAs are installed and a checkpoint is loaded.
        desk: the merges' bookkeeping, if the caller wants to stop them too.
    """
    desk = desk or Desk(host)
    looks = accepted(gr.Blocks.__init__, css=STYLE.read_text(encoding="utf-8"), theme=_theme())
    with gr.Blocks(analytics_enabled=False, title="ZipLoRA", **looks) as tab:
        with gr.Column(elem_id="ziplora_root"):
            controls = _controls(desk)
        _picker_events(desk, controls)
        _merge_events(host, desk, controls)
        tab.load(None, None, None, **javascript(f"() => {{\n{SCRIPT.read_text(encoding='utf-8')}\n}}"))
    return tab


def refusal(message: str) -> gr.Blocks:
    """A tab that only says why there is no other."""
    with gr.Blocks(analytics_enabled=False, title="ZipLoRA") as tab, gr.Column(elem_id="ziplora_root"):
        gr.HTML(text.error(message))
    return tab


def _theme() -> gr.themes.Base:
    return gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])


def _controls(desk: Desk) -> Controls:
    names = desk.installed()
    controls: Controls = {}
    with gr.Row(elem_id="ziplora_sides"):
        controls |= _side("subject", names)
        controls["swap"] = unsaved(gr.Button("⇄", elem_id="ziplora_swap", min_width=40))
        controls |= _side("style", names)
    with gr.Row(elem_id="ziplora_body"):
        with gr.Column(elem_id="ziplora_settings", elem_classes=["ziplora-side"]):
            controls |= _settings()
        with gr.Column(elem_classes=["ziplora-side"]):
            controls |= _output()
    return controls


def _side(side: str, names: Sequence[str]) -> Controls:
    title, made = side.capitalize(), {}
    with gr.Column(elem_classes=["ziplora-side"]):
        with gr.Row(elem_classes=["ziplora-pick"]):
            made[side] = unsaved(
                gr.Dropdown(
                    list(names), value=None, label=f"{title} LoRA", elem_id=f"ziplora_{side}", scale=1
                )
            )
            made[f"{side}_refresh"] = unsaved(
                gr.Button("↻", elem_id=f"ziplora_{side}_refresh", elem_classes=["ziplora-tool"], min_width=40)
            )
        made[f"{side}_facts"] = gr.HTML(text.facts(None, "", ""), elem_id=f"ziplora_{side}_facts")
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


def _settings() -> Controls:
    fields = setting_fields()
    made = {name: _control(name, option) for name, option in fields.items() if not option.advanced}
    with gr.Accordion("Advanced settings", open=False, elem_id="ziplora_advanced"):
        made |= {name: _control(name, option) for name, option in fields.items() if option.advanced}
    return made


def _control(name: str, option: Option) -> Any:
    default = setting_defaults()[name]
    common = {"value": default, "label": option.label, "info": option.help, "elem_id": f"ziplora_{name}"}
    if option.choices:
        kind = gr.Radio if len(option.choices) <= MOST_RADIO_BUTTONS else gr.Dropdown
        return kind(list(option.choices), **common)
    if isinstance(default, bool):
        return gr.Checkbox(**common)
    if isinstance(default, str):
        return gr.Textbox(**common)
    low, high, step = option.minimum, option.maximum, option.step
    if low is None or high is None or step is None or (high - low) / step > FINEST_SLIDER:
        return gr.Number(**common, **({"precision": 0} if isinstance(default, int) else {}))
    return gr.Slider(low, high, step=step, **common)


def _output() -> Controls:
    made: Controls = {}
    made["output"] = unsaved(
        gr.Textbox(
            label="Output name",
            placeholder="Filled in once both LoRAs are chosen",
            max_lines=1,
            elem_id="ziplora_output",
        )
    )
    made["output_filled"] = gr.State("")
    made["overwrite"] = unsaved(
        gr.Checkbox(False, label="Overwrite a LoRA of that name", elem_id="ziplora_overwrite")
    )
    made["ticket"] = unsaved(gr.Textbox(visible=False, label="ZipLoRA task"))
    with gr.Row(elem_classes=["ziplora-buttons"]):
        made["generate"] = unsaved(gr.Button("Merge", variant="primary", elem_id="ziplora_generate"))
        made["skip"] = unsaved(gr.Button("Finish now", elem_id="ziplora_skip"))
        made["interrupt"] = unsaved(gr.Button("Interrupt", variant="stop", elem_id="ziplora_interrupt"))
    with gr.Column(elem_id="ziplora_progress"):
        made["bar"] = gr.HTML(text.bar("unknown", None), elem_id="ziplora_bar")
    made["note"] = gr.HTML("", elem_id="ziplora_note")
    made["result"] = gr.HTML("", elem_id="ziplora_result")
    with gr.Column(visible=False, elem_id="ziplora_tag_panel") as made["tag_panel"]:
        made["tag"] = unsaved(
            gr.Textbox(label="Tag for your prompts", interactive=False, elem_id="ziplora_tag")
        )
        with gr.Row(elem_classes=["ziplora-buttons"]):
            made["copy"] = unsaved(gr.Button("Copy tag", elem_id="ziplora_copy"))
            made["send"] = unsaved(gr.Button("Send to txt2img", elem_id="ziplora_send"))
    made["log"] = gr.HTML("", elem_id="ziplora_log")
    for name in ("refresh", "poll", "restore"):
        made[name] = unsaved(
            gr.Button(f"ZipLoRA {name}", elem_id=f"ziplora_{name}", elem_classes=["ziplora-hidden"])
        )
    return made


def _picker_events(desk: Desk, controls: Controls) -> None:
    def pick(side: str, name: str, prompt: str, filled: str, *names: str) -> list[Any]:
        suggestion = desk.prompt(name)
        subject, style, output, output_filled = names
        return [
            desk.facts(name),
            *_prefilled(prompt, filled, suggestion),
            *_prefilled(output, output_filled, desk.output_name(subject, style)),
        ]

    output = [controls["output"], controls["output_filled"]]
    for side in ("subject", "style"):
        prompt = [controls[f"{side}_prompt"], controls[f"{side}_filled"]]
        controls[side].change(
            partial(pick, side),
            [controls[side], *prompt, controls["subject"], controls["style"], *output],
            [controls[f"{side}_facts"], *prompt, *output],
            **quiet(),
        )

    def refresh() -> list[Any]:
        names = desk.refresh()
        return [gr.update(choices=names), gr.update(choices=names)]

    for name in ("refresh", "subject_refresh", "style_refresh"):
        controls[name].click(refresh, [], [controls["subject"], controls["style"]], **quiet())
    _swap_event(desk, controls)


def _swap_event(desk: Desk, controls: Controls) -> None:
    def swap(*values: Any) -> list[Any]:
        *sides, output, output_filled = values
        swapped = [sides[index ^ 1] for index in range(len(sides))]
        name = _prefilled(output, output_filled, desk.output_name(*swapped[:2]))
        return [*swapped, *name, *map(desk.facts, swapped[:2])]

    parts = [
        f"{side}{part}" for part in ("", "_prompt", "_filled", "_weight") for side in ("subject", "style")
    ]
    both = [controls[name] for name in (*parts, "output", "output_filled")]
    facts = [controls["subject_facts"], controls["style_facts"]]
    controls["swap"].click(swap, both, both + facts, **quiet())


def _prefilled(current: str, filled: str, suggestion: str) -> list[str]:
    """A box and what was last filled into it; what the user typed stays."""
    if (current or "") not in ("", filled):
        return [current, filled]
    return [suggestion, suggestion]


def _merge_events(host: Host, desk: Desk, controls: Controls) -> None:
    values = [controls[name] for name in value_names()]
    shown = [controls[name] for name in ("result", "tag", "tag_panel", "note", "log")]
    ticket = controls["ticket"]
    wrapped = host.wrap_task(lambda ticket, *values: _show(desk.work(ticket, values)), len(shown))

    def prepare(*values: Any) -> list[Any]:
        made, refused = desk.prepare(values)
        return [made, refused, gr.update(visible=False), "", ""]

    def merge(ticket: str, *values: Any) -> Sequence[Any]:
        return wrapped(ticket, *values) if ticket else [gr.update() for _ in shown]

    cleared = [ticket] + [controls[name] for name in ("result", "tag_panel", "note", "log")]
    count = len(values) + 1
    merged = (
        controls["generate"]
        .click(prepare, values, cleared, **quiet())
        .then(
            merge,
            [ticket, *values],
            shown,
            show_progress="hidden",
            api_name=False,
            **javascript(f"(...values) => submit_ziplora({count}, ...values)"),
        )
    )
    merged.then(None, None, None, **javascript("() => ziplora.finished()"))
    merged.then(
        lambda *names: _prefilled(*names[2:], desk.output_name(*names[:2])),
        [controls[name] for name in ("subject", "style", "output", "output_filled")],
        [controls["output"], controls["output_filled"]],
        **quiet(),
    )
    _task_events(desk, controls, shown)


def _task_events(desk: Desk, controls: Controls, shown: list[Any]) -> None:
    """Events of a running task; the script replaces the ticket by the one that it follows."""

    def on(button: str, handler: Callable[[str], Any], outputs: Any) -> None:
        controls[button].click(
            handler, [controls["ticket"]], outputs, **quiet(), **javascript("() => ziplora.ticket()")
        )

    on("poll", desk.bar, controls["bar"])
    on("restore", lambda ticket: _show(desk.outcome(ticket)), shown)
    on("interrupt", lambda ticket: text.notice(desk.interrupt(ticket)), controls["note"])
    on("skip", lambda ticket: text.notice(desk.finish_now(ticket)), controls["note"])
    controls["copy"].click(None, None, None, **javascript("() => ziplora.copyTag()"))
    controls["send"].click(None, None, None, **javascript("() => ziplora.sendToTxt2img()"))


def _show(outcome: Outcome | None) -> list[Any]:
    """Updates of result, tag, its panel, note and log; the WebUI adds its timing to the last."""
    if outcome is None:
        return [gr.update() for _ in range(4)] + [""]
    return [outcome.html, outcome.tag, gr.update(visible=bool(outcome.tag)), "", ""]
