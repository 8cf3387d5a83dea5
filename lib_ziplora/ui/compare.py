"""The panel that draws a merge beside what it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..hosts import Draws, Host, Sampler
from ..hosts.pictures import LARGEST_GUIDANCE, LARGEST_SIDE, MOST_STEPS, SIDE_STEP
from ..pictures.comparison import MOST_SEEDS
from .comparing import COMPARE_VALUES, Comparisons
from .compat import accepted, javascript, quiet, unsaved
from .pickers import Controls, prefilled
from .steer import TAG_NAME

SHOWN = ("compare_result", "log")
"""What a comparison's outcome is shown in."""
NOTHING_CHOSEN = -1


def compare_panel(host: Host, comparisons: Comparisons) -> Controls:
    """What to draw and how, the pictures, and the button that makes one of them the preview; nothing
    where the host can't draw."""
    if not isinstance(host, Draws):
        return {}
    made: Controls = {}
    panel = gr.Accordion("Compare", open=False, elem_id="ziplora_comparison")
    with panel, gr.Row(elem_classes=["ziplora-row"]):
        with gr.Column(elem_classes=["ziplora-side"]):
            made |= _what(comparisons)
            made |= _how(host, host.default_sampler())
            made["compare"] = unsaved(gr.Button("Compare", variant="primary", elem_id="ziplora_compare"))
        with gr.Column(elem_classes=["ziplora-side"], scale=2):
            made |= _pictures()
    return {**made, "comparison": panel}


def _what(comparisons: Comparisons) -> Controls:
    made: Controls = {}
    made["compare_merge"] = unsaved(
        gr.Dropdown(
            comparisons.merges(), value=None, label="Merge to compare", elem_id="ziplora_compare_merge"
        )
    )
    made["compare_prompts"] = unsaved(
        gr.Textbox(
            label="Prompts to compare with",
            info="One a line; every row of pictures is drawn with each of them",
            placeholder="The subject's, the style's, and one for both",
            lines=3,
            elem_id="ziplora_compare_prompts",
        )
    )
    made["compare_filled"] = gr.State("")
    made["compare_task"] = unsaved(gr.Textbox(visible=False, label="ZipLoRA comparison"))
    made["compare_seeds"] = gr.Slider(
        1, MOST_SEEDS, value=1, step=1, label="Seeds of each prompt", elem_id="ziplora_compare_seeds"
    )
    made["compare_after"] = gr.Checkbox(
        False, label="Compare after each merge", elem_id="ziplora_compare_after"
    )
    made["compare_preview"] = gr.Checkbox(
        True,
        label="Make the merge's picture the preview of its card, where you have none of your own",
        elem_id="ziplora_compare_preview",
    )
    return made


def _how(host: Draws, sampler: Sampler) -> Controls:
    made: Controls = {}
    names = list(host.samplers())
    side = {"minimum": 0, "maximum": LARGEST_SIDE, "step": SIDE_STEP}
    with gr.Accordion("How the pictures are drawn", open=False, elem_id="ziplora_compare_how"):
        made["compare_sampler"] = gr.Dropdown(
            names,
            value=sampler.name or names[0],
            label="Sampler of the pictures",
            elem_id="ziplora_compare_sampler",
        )
        made["compare_steps"] = gr.Slider(
            1,
            MOST_STEPS,
            value=sampler.steps,
            step=1,
            label="Steps of a picture",
            elem_id="ziplora_compare_steps",
        )
        made["compare_guidance"] = gr.Slider(
            1,
            LARGEST_GUIDANCE,
            value=sampler.guidance_scale,
            step=0.5,
            label="CFG scale of the pictures",
            elem_id="ziplora_compare_guidance",
        )
        with gr.Row(elem_classes=["ziplora-row"]):
            for edge, value in (("width", sampler.width), ("height", sampler.height)):
                made[f"compare_{edge}"] = gr.Slider(
                    value=value,
                    label=f"Picture {edge}",
                    info="0 is the checkpoint's own",
                    elem_id=f"ziplora_compare_{edge}",
                    **side,
                )
        made["compare_seed"] = gr.Number(0, label="First seed", precision=0, elem_id="ziplora_compare_seed")
        made["compare_negative"] = gr.Textbox(
            sampler.negative_prompt,
            label="Negative prompt of the pictures",
            elem_id="ziplora_compare_negative",
        )
    return made


def _pictures() -> Controls:
    made: Controls = {}
    made["compare_result"] = gr.HTML("", elem_id="ziplora_compare_result")
    looks = accepted(gr.Gallery.__init__, columns=4, height="auto", object_fit="contain")
    made["compare_gallery"] = unsaved(
        gr.Gallery(label="Pictures", show_label=False, elem_id="ziplora_compare_gallery", **looks)
    )
    made["compare_ticket"], made["compare_chosen"] = gr.State(""), gr.State(NOTHING_CHOSEN)
    with gr.Row(elem_classes=["ziplora-row"]):
        made["compare_use"] = unsaved(gr.Button("Use as preview", elem_id="ziplora_compare_use"))
        made["compare_replace"] = unsaved(
            gr.Checkbox(False, label="Replace a picture of my own", elem_id="ziplora_compare_replace")
        )
    made["compare_note"] = gr.HTML("", elem_id="ziplora_compare_note")
    return made


def compare_events(host: Host, comparisons: Comparisons, controls: Controls, merged: Any) -> None:
    """The panel follows its picker and the merges; its button, and a merge, start a comparison.

    Args:
        host: queues it.
        comparisons: draws it.
        controls: of the whole tab.
        merged: the event after which a merge has ended.
    """
    if "compare" not in controls:
        return
    values = [controls[name] for name in COMPARE_VALUES]
    admission = [controls[name] for name in ("compare_task", "compare_result", "compare_note")]

    def admit(*given: Any) -> list[Any]:
        return [*comparisons.prepare(given), ""]

    def admit_after(wanted: bool, ticket: str, tag: str, *given: Any) -> list[Any]:
        return admit(*given) if wanted and ticket and tag else ["", gr.update(), gr.update()]

    asked = [controls[name] for name in ("compare_after", "ticket", "tag")]
    offered = _picker_events(comparisons, controls, merged)
    _performed_by(controls["compare"].click(admit, values, admission, **quiet()), host, comparisons, controls)
    _performed_by(
        offered.then(admit_after, [*asked, *values], admission, **quiet()), host, comparisons, controls
    )
    controls["restore"].click(
        lambda ticket: _pictures_of(comparisons, ticket),
        controls["compare_task"],
        _gallery(controls),
        **quiet(),
        **javascript("() => ziplora.ticket()"),
    )
    _preview_events(comparisons, controls)


def _performed_by(admitted: Any, host: Host, comparisons: Comparisons, controls: Controls) -> None:
    """An event that has asked for a ticket is followed by the comparison, its outcome and its pictures."""
    ticket, shown = controls["compare_task"], [controls[name] for name in SHOWN]
    values = [controls[name] for name in COMPARE_VALUES]
    wrapped = host.wrap_task(lambda ticket, *given: [comparisons.work(ticket, given).html, ""], len(shown))

    def performed(ticket: str, *given: Any) -> Sequence[Any]:
        return wrapped(ticket, *given) if ticket else [gr.update() for _ in shown]

    done = admitted.then(
        performed,
        [ticket, *values],
        shown,
        show_progress="hidden",
        api_name=False,
        **javascript(f"(...values) => submit_ziplora({len(values) + 1}, ...values)"),
    )
    done.then(None, ticket, None, **javascript("(ticket) => { if (ticket) ziplora.finished(); return []; }"))
    done.then(lambda ticket: _pictures_of(comparisons, ticket), ticket, _gallery(controls), **quiet())


def _gallery(controls: Controls) -> list[Any]:
    """What changes when pictures are shown."""
    return [controls[name] for name in ("comparison", "compare_gallery", "compare_ticket", "compare_chosen")]


def _pictures_of(comparisons: Comparisons, ticket: str) -> list[Any]:
    """Updates of ``_gallery``; none where there are no pictures."""
    pictures = comparisons.gallery(ticket)
    if not pictures:
        return [gr.update() for _ in range(4)]
    return [gr.update(open=True), pictures, ticket, NOTHING_CHOSEN]


def _picker_events(comparisons: Comparisons, controls: Controls, merged: Any) -> Any:
    """The prompts follow the merge that is picked, which is the newest; the event that has offered it."""
    prompts = [controls["compare_prompts"], controls["compare_filled"]]

    def pick(merge: str, current: str, filled: str) -> list[str]:
        return prefilled(current, filled, comparisons.prompts(merge))

    def offer(tag: str, current: str, filled: str) -> list[Any]:
        choices, name = comparisons.merges(), tag[TAG_NAME] if tag else ""
        if name not in choices:
            return [gr.update(choices=choices), gr.update(), gr.update()]
        return [gr.update(choices=choices, value=name), *pick(name, current, filled)]

    picker = controls["compare_merge"]
    picker.input(pick, [picker, *prompts], prompts, **quiet())
    controls["refresh"].click(lambda: gr.update(choices=comparisons.merges()), None, picker, **quiet())
    return merged.then(offer, [controls["tag"], *prompts], [picker, *prompts], **quiet())


def _preview_events(comparisons: Comparisons, controls: Controls) -> None:
    def choose(chosen: gr.SelectData) -> int:
        return int(chosen.index)

    controls["compare_gallery"].select(choose, None, controls["compare_chosen"], **quiet())
    controls["compare_use"].click(
        comparisons.use_as_preview,
        [controls[name] for name in ("compare_ticket", "compare_chosen", "compare_replace")],
        controls["compare_note"],
        **quiet(),
    )
