"""Layout of the tab, the same for the WebUI and for ``python -m lib_ziplora serve``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ..config import setting_defaults
from ..jobs.service import Service
from . import jobs, text
from .adjust import adjust_events, adjust_panel
from .compare import after_merge, compare_events, compare_panel, drawn_pictures
from .compat import accepted, javascript
from .controller import TabController
from .controls import Controls
from .events import job_events, preflight_events
from .explain import explain_events, explain_panel
from .guide import guide_panel, introduction, self_test_panel
from .matrix import matrix_events, matrix_panel
from .pickers import more_sides, pair_of_sides, picker_events

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = tuple(
    ROOT / "javascript" / f"{name}.js" for name in ("ziplora", "ziplora_pickers", "ziplora_pictures")
)
STYLE = ROOT / "style.css"
FONTS = ["system-ui", "sans-serif"]


def build(service: Service, defaults: Mapping[str, Any] | None = None, folder: str = "") -> gr.Blocks:
    """The whole tab over a host.

    Args:
        service: the host's jobs, those of other front ends too.
        defaults: field name of ``MergeSettings`` -> what its control begins with; its own by default.
        folder: as in ``TabController``.
    """
    controller, controls = TabController(service, folder), Controls()
    with gr.Blocks(analytics_enabled=False, title="ZipLoRA", **looks(gr.Blocks.__init__)) as tab:
        with gr.Column(elem_id="ziplora_root"):
            _layout(controller, controls, defaults or setting_defaults())
        preflight_events(controller, controls, picker_events(controller, controls))
        adjust_events(controller, controls)
        explain_events(controller, controls)
        matrix_events(controller, controls)
        compare_events(controller, controls)
        job_events(controller, controls)
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


def _layout(controller: TabController, controls: Controls, defaults: Mapping[str, Any]) -> None:
    introduction()
    guide_panel()
    pair_of_sides(controller, controls, defaults["combined_prompt"])
    more_sides(controls)
    with gr.Row(elem_id="ziplora_body"):
        with gr.Column(elem_id="ziplora_settings", elem_classes=["ziplora-side"]):
            controls.add_settings(defaults, elsewhere=("combined_prompt",))
        with gr.Column(elem_id="ziplora_making", elem_classes=["ziplora-side"]):
            _output(controller, controls)
        with gr.Column(elem_id="ziplora_panels", elem_classes=["ziplora-side"]):
            adjust_panel(controller, controls)
            explain_panel(controller, controls)
            matrix_panel(controller, controls)
            self_test_panel(controller, controls)
    compare_panel(controller, controls)
    controls.add(gr.Textbox, "job", visible=False, label="ZipLoRA job")
    controls.add_hidden("refresh", "poll", "outcome", "recheck")


def _output(controller: TabController, controls: Controls) -> None:
    placeholder = "Filled in once both LoRAs are chosen"
    controls.add(gr.Textbox, "output", label="Output name", placeholder=placeholder, max_lines=1)
    controls.add_states("output_filled")
    controls.add(gr.Checkbox, "overwrite", False, label="Overwrite an existing LoRA with this name")
    controls.add(gr.Checkbox, "report", False, label="Save a report next to the file (HTML and JSON)")
    after_merge(controller, controls)
    with gr.Row(elem_classes=["ziplora-buttons"]):
        controls.add(gr.Button, "generate", "Merge", variant="primary")
        controls.add(gr.Button, "check", "Check")
        controls.add(gr.Button, "skip", "Finish now")
        controls.add(gr.Button, "interrupt", "Interrupt", variant="stop")
    controls.add(gr.HTML, "bar", jobs.bar(None))
    for name in ("preflight", "curves", "note", "result"):
        controls.add(gr.HTML, name, "")
    drawn_pictures(controller, controls)
    with gr.Column(visible=False, elem_id="ziplora_tag_panel") as controls["tag_panel"]:
        controls.add(gr.Textbox, "tag", label="Tag and trigger words", interactive=False)
        with gr.Row(elem_classes=["ziplora-buttons"]):
            controls.add(gr.Button, "copy", "Copy")
            controls.add(gr.Button, "send", "Send to txt2img")
            controls.add(gr.Button, "send_img2img", "Send to img2img")
