"""Panel Compare: draws a merge beside what it was made of."""

from __future__ import annotations

import gradio as gr

from ..hosts import Draws, Sampler
from ..hosts.pictures import LARGEST_GUIDANCE, LARGEST_SIDE, MOST_STEPS, SIDE_STEP
from ..pictures.comparison import MOST_SEEDS
from .compat import accepted
from .controller import TabController
from .controls import Controls, Updates, Values, prefilled
from .forms import AFTER_MERGE, TWO_PICTURES

INFO = "Two pictures: the merge beside the plain sum, with the prompt for both and the settings of the panel Compare"
PROMPTS = ("compare_prompts", "compare_prompts_filled")


def compare_panel(controller: TabController, controls: Controls) -> None:
    """What to draw and how, the pictures, and the button that makes one of them the preview; nothing
    where the host can't draw."""
    host = controller.host
    if not isinstance(host, Draws):
        return
    controls["comparison"] = gr.Accordion("Compare", open=False, elem_id="ziplora_comparison")
    with controls["comparison"], gr.Row(elem_classes=["ziplora-row"]):
        with gr.Column(elem_classes=["ziplora-side"]):
            _what(controller, controls)
            with gr.Accordion("How the pictures are drawn", open=False, elem_id="ziplora_compare_how"):
                _how(list(host.samplers()), host.default_sampler(), controls)
            controls.add(gr.Button, "compare", "Compare", variant="primary")
        with gr.Column(elem_classes=["ziplora-side"], scale=2):
            _pictures(controls)


def _what(controller: TabController, controls: Controls) -> None:
    controls.add(gr.Dropdown, "compare_source", controller.merges(), value=None, label="Merge to compare")
    controls.add(
        gr.Textbox,
        "compare_prompts",
        label="Prompts to compare with",
        info="One per line; every row of pictures is drawn with each of them",
        placeholder="The subject's, the style's, and one for both",
        lines=3,
    )
    controls.add_states("compare_prompts_filled")
    seeds = {"value": 1, "step": 1, "label": "Seeds of each prompt"}
    controls.add(gr.Slider, "compare_seeds", 1, MOST_SEEDS, saved=True, **seeds)
    preview = "Use the merge's picture as the preview on its card, unless you have one of your own"
    controls.add(gr.Checkbox, "compare_preview", True, label=preview, saved=True)


def _how(samplers: list[str], sampler: Sampler, controls: Controls) -> None:
    name = sampler.name or samplers[0]
    label = "Sampler of the pictures"
    controls.add(gr.Dropdown, "compare_sampler", samplers, value=name, label=label, saved=True)
    steps = {"value": sampler.steps, "step": 1, "label": "Steps of a picture"}
    controls.add(gr.Slider, "compare_steps", 1, MOST_STEPS, saved=True, **steps)
    guidance = {"value": sampler.guidance_scale, "step": 0.5, "label": "CFG scale of the pictures"}
    controls.add(gr.Slider, "compare_guidance_scale", 1, LARGEST_GUIDANCE, saved=True, **guidance)
    with gr.Row(elem_classes=["ziplora-row"]):
        for edge, value in (("width", sampler.width), ("height", sampler.height)):
            words = {"label": f"Picture {edge}", "info": "0 is the checkpoint's own"}
            size = {"value": value, "step": SIDE_STEP, **words}
            controls.add(gr.Slider, f"compare_{edge}", 0, LARGEST_SIDE, saved=True, **size)
    seed = {"label": "First seed", "info": "-1 is random", "precision": 0}
    controls.add(gr.Number, "compare_seed", 0, saved=True, **seed)
    negative = {"label": "Negative prompt of the pictures", "saved": True}
    controls.add(gr.Textbox, "compare_negative_prompt", sampler.negative_prompt, **negative)


def _pictures(controls: Controls) -> None:
    controls.add(gr.HTML, "compare_result", "")
    looks = accepted(gr.Gallery.__init__, columns=4, height="auto", object_fit="contain")
    controls.add(gr.Gallery, "compare_gallery", label="Pictures", show_label=False, **looks)
    controls.add_states("compare_job")
    controls.add(gr.Textbox, "compare_chosen", visible=False, label="ZipLoRA picture that is chosen")
    with gr.Row(elem_classes=["ziplora-row"]):
        controls.add(gr.Button, "compare_use", "Use as preview")
        controls.add(gr.Checkbox, "compare_replace", False, label="Replace a picture of my own")
    controls.add(gr.HTML, "compare_note", "")


def after_merge(controller: TabController, controls: Controls) -> None:
    """What to draw once a merge is made; nothing where the host can't draw."""
    if isinstance(controller.host, Draws):
        words = {"label": "After a merge, draw", "info": INFO}
        controls.add(gr.Radio, "after_merge", list(AFTER_MERGE), value=TWO_PICTURES, saved=True, **words)
        controls.add_hidden("follow_up")


def drawn_pictures(controller: TabController, controls: Controls) -> None:
    """The pictures of a merge that was just made."""
    if isinstance(controller.host, Draws):
        looks = accepted(gr.Gallery.__init__, columns=2, height="auto", object_fit="contain")
        controls.add(gr.Gallery, "drawn", label="Merge, and plain sum", visible=False, **looks)
        controls.add(gr.HTML, "drawn_note", "")


def compare_events(controller: TabController, controls: Controls) -> None:
    """The prompts follow the merge that is picked; a picture becomes the preview."""
    if "compare" not in controls:
        return

    def use(given: Values) -> Updates:
        job, chosen, replace = given["compare_job"], given["compare_chosen"], given["compare_replace"]
        return {"compare_note": controller.use_as_preview(job, int(chosen), bool(replace))}

    controls.on(
        controls["compare_source"].input,
        lambda given: compare_prompts(controller, given["compare_source"], given),
        ("compare_source", *PROMPTS),
        PROMPTS,
    )
    used = controls.on(
        controls["compare_use"].click,
        use,
        ("compare_chosen", "compare_job", "compare_replace"),
        ("compare_note",),
        js="(chosen, ...values) => [ziplora.chosenPicture(), ...values]",
    )
    controls.script(used.then, "() => ziplora.previewed()")


def compare_prompts(controller: TabController, name: str | None, given: Values) -> Updates:
    """Updates of ``PROMPTS`` for a merge."""
    return prefilled(given, "compare_prompts", controller.compare_prompts(name))
