"""Introduction and guide in the tab, in the words of its own controls.

Every step, question and answer is one text node, so that a localisation of the WebUI can translate it whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import gradio as gr

from .controller import TabController
from .controls import Controls

PURPOSE = "Merges a subject LoRA and a style LoRA into one new LoRA that draws your subject in that style."
STEPS = (
    "Choose a Subject LoRA and a Style LoRA. Both must be made for Stable Diffusion XL.",
    "Read the prompts that are filled in, and correct them where they don't fit.",
    "Press Merge, and use the tag of the new LoRA in your prompts.",
)
ANSWERS = (
    (
        "What should the prompts say?",
        "Keep them short, as in the LoRA's own examples: what it draws, and its trigger words. A subject's prompt "
        "names no style; a style's prompt names something common, such as a cat, and then the style.",
    ),
    (
        "What is the Combined prompt?",
        "What you will draw with the merge: the subject's words, and only those of the style's words that describe the "
        "style. It is made of the two prompts until you write your own.",
    ),
    (
        "How do I stop a merge?",
        "Finish now stops early and keeps the coefficients learnt so far. Interrupt writes nothing.",
    ),
    (
        "The style fades",
        "Open Adjust strengths and raise the strength of the style, which takes a second. For the next merge, make "
        "sure that the Combined prompt has the style's trigger words, and lower Balance of the combined prompt.",
    ),
    (
        "The subject fades",
        "Open Adjust strengths and raise the strength of the subject, or lower that of the style. For the next merge, "
        "make sure that Subject prompt has the exact trigger words, and raise Balance of the combined prompt.",
    ),
    (
        "Nothing changes",
        "If Mean travel stays near 0, the merge is the plain sum: raise Updates or the Learning rate. If the LoRAs "
        "hardly overlap, as Check then says, the plain sum is all you need: the method direct gives it at once.",
    ),
    (
        "The picture falls apart",
        "Lower both strengths in Adjust strengths to about 0.8, or lower the weight in the tag. Two LoRAs that were "
        "each made for a strength of 0.7 are too strong at 1 and 1.",
    ),
)
SELF_TEST = (
    "Tries the loaded checkpoint: whether gradients reach every layer, and whether its weights stay what they are. It "
    "takes a moment and writes nothing. Copy the paragraph into a bug report."
)
TESTING = "Testing…"
SHORTCUTS = (
    ("Ctrl+Enter", "Merge"),
    ("Alt+Enter", "Finish now"),
    ("Esc", "Interrupt"),
    ("Alt+S", "Swap subject and style"),
)
"""Key -> what it does while the tab is seen; the page's script has the same ones."""


def introduction() -> None:
    """What the tab is for, and how to begin."""
    steps = "".join(_items("li", STEPS))
    gr.HTML(
        f'<div class="ziplora-introduction"><p>{escape(PURPOSE)}</p><ol>{steps}</ol></div>',
        elem_id="ziplora_introduction",
    )


def guide_panel() -> None:
    """The guide, closed at first."""
    with gr.Accordion("Guide", open=False, elem_id="ziplora_guide"):
        gr.HTML(guide())


def self_test_panel(controller: TabController, controls: Controls) -> None:
    """A button and the paragraph for a bug report, closed at first."""
    with gr.Accordion("Self-test", open=False, elem_id="ziplora_self_testing"):
        gr.HTML(f"<p>{escape(SELF_TEST)}</p>")
        controls.add(gr.Button, "self_test", "Run the self-test")
        controls.add(gr.Textbox, "self_tested", label="Result", interactive=False, lines=3)
    begun = controls.on(
        controls["self_test"].click, lambda _: {"self_tested": TESTING}, outputs=("self_tested",)
    )
    controls.on(begun.then, lambda _: {"self_tested": controller.self_test()}, outputs=("self_tested",))


def guide() -> str:
    """The guide as HTML."""
    answers = "".join(f"<dt>{escape(asked)}</dt><dd>{escape(told)}</dd>" for asked, told in ANSWERS)
    keys = "".join(
        f"<tr><td><kbd>{escape(key)}</kbd></td><td>{escape(does)}</td></tr>" for key, does in SHORTCUTS
    )
    return f'<div class="ziplora-guide"><dl>{answers}</dl><table>{keys}</table></div>'


def _items(tag: str, sentences: Iterable[str]) -> list[str]:
    return [f"<{tag}>{escape(sentence)}</{tag}>" for sentence in sentences]
