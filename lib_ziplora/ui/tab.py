"""The tab's layout, the same for the WebUI and for ``python -m lib_ziplora serve``.

Values and decisions are ``handlers.Desk``'s; here and in the panels are only controls and their events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ..config import setting_defaults
from ..hosts import Host
from . import text
from .compare import compare_events, compare_panel
from .comparing import Comparisons
from .compat import accepted, javascript, unsaved
from .controls import setting_controls
from .explain import explain_events, explain_panel
from .guide import guide_panel
from .handlers import Desk
from .matrix import matrix_events, matrix_panel
from .pickers import Controls, more_sides, pair_of_sides, picker_events
from .running import check_events, task_events
from .steer import steering_events, steering_panel

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = tuple(
    ROOT / "javascript" / f"{name}.js" for name in ("ziplora", "ziplora_pickers", "ziplora_pictures")
)
STYLE = ROOT / "style.css"
FONTS = ["system-ui", "sans-serif"]


def build(host: Host, desk: Desk | None = None, defaults: Mapping[str, Any] | None = None) -> gr.Blocks:
    """The whole tab over a host.

    Args:
        host: where LoRAs are installed and a checkpoint is loaded.
        desk: the merges' bookkeeping, if the caller wants to stop them too.
        defaults: field name of ``MergeSettings`` -> what its control begins with; its own by default.
    """
    desk = desk or Desk(host)
    comparisons = Comparisons(desk)
    with gr.Blocks(analytics_enabled=False, title="ZipLoRA", **looks(gr.Blocks.__init__)) as tab:
        with gr.Column(elem_id="ziplora_root"):
            controls = _controls(desk, defaults or setting_defaults())
            controls |= compare_panel(host, comparisons)
        check_events(desk, controls, picker_events(desk, controls))
        steering_events(desk, controls)
        explain_events(desk, controls)
        matrix_events(desk, controls)
        compare_events(host, comparisons, controls, task_events(host, desk, controls))
        scripts = "\n".join(script.read_text(encoding="utf-8") for script in SCRIPTS)
        tab.load(None, None, None, **javascript(f"() => {{\n{scripts}\n}}"))
    return tab


def refusal(message: str) -> gr.Blocks:
    """A tab that only says why there is no other."""
    with gr.Blocks(analytics_enabled=False, title="ZipLoRA") as tab, gr.Column(elem_id="ziplora_root"):
        gr.HTML(text.error(message))
    return tab


def looks(function: Callable[..., Any]) -> dict[str, Any]:
    """Style and theme, for the function that takes them: ``gr.Blocks``, or later what shows the page."""
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    return accepted(function, css=STYLE.read_text(encoding="utf-8"), theme=theme)


def _controls(desk: Desk, defaults: Mapping[str, Any]) -> Controls:
    controls: Controls = {}
    controls |= pair_of_sides(desk, defaults["combined_prompt"])
    controls |= more_sides()
    with gr.Row(elem_id="ziplora_body"):
        with gr.Column(elem_id="ziplora_settings", elem_classes=["ziplora-side"]):
            controls |= setting_controls(defaults, elsewhere=("combined_prompt",))
        with gr.Column(elem_classes=["ziplora-side"]):
            controls |= _output()
            controls |= steering_panel(desk)
            controls |= explain_panel(desk)
            controls |= matrix_panel(desk)
            guide_panel()
    controls["running"] = gr.HTML("", elem_id="ziplora_running", elem_classes=["ziplora-hidden"])
    for name in ("refresh", "poll", "watch", "restore", "ask", "recheck"):
        controls[name] = unsaved(
            gr.Button(f"ZipLoRA {name}", elem_id=f"ziplora_{name}", elem_classes=["ziplora-hidden"])
        )
    return controls


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
    made["report"] = unsaved(
        gr.Checkbox(True, label="Write a report beside the file (HTML and JSON)", elem_id="ziplora_report")
    )
    made["ticket"] = unsaved(gr.Textbox(visible=False, label="ZipLoRA task"))
    with gr.Row(elem_classes=["ziplora-buttons"]):
        made["generate"] = unsaved(gr.Button("Merge", variant="primary", elem_id="ziplora_generate"))
        made["check"] = unsaved(gr.Button("Check", elem_id="ziplora_check"))
        made["skip"] = unsaved(gr.Button("Finish now", elem_id="ziplora_skip"))
        made["interrupt"] = unsaved(gr.Button("Interrupt", variant="stop", elem_id="ziplora_interrupt"))
    with gr.Column(elem_id="ziplora_progress"):
        made["bar"] = gr.HTML(text.bar("unknown", None), elem_id="ziplora_bar")
    made["verdict"] = gr.HTML("", elem_id="ziplora_verdict")
    made["curves"] = gr.HTML("", elem_id="ziplora_curves")
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
    return made
