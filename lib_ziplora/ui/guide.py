"""A short guide in the tab, in the words of its own controls.

Every step, question and answer is one text node, so that a localisation of the WebUI can translate it whole.
"""

from __future__ import annotations

from html import escape

import gradio as gr

STEPS = (
    "Choose a Subject LoRA and a Style LoRA. Both must be made for Stable Diffusion XL; others are grey in the list.",
    "Look at both prompts. Each is what you would write to draw with that LoRA alone, its trigger words included.",
    "Look at Prompt for both together: the subject's words, and only those of the style's words that mean the style.",
    "Press Merge. Finish now stops early and keeps the coefficients learnt so far; Interrupt writes nothing.",
    "Put the tag into a prompt, together with the trigger words of both LoRAs.",
)
ANSWERS = (
    (
        "What to write as prompts?",
        "Short ones, as in the LoRA's own examples: what it draws, and its trigger words. A subject's prompt names no "
        "style; a style's prompt names something common, such as a cat, and then the style.",
    ),
    (
        "When the style fades",
        "Open Steer afterwards and raise the strength of the style, which takes a second. For the next merge, see that "
        "Prompt for both together has the style's trigger words, and lower Balance of the combined prompt.",
    ),
    (
        "When the subject fades",
        "Open Steer afterwards and raise the strength of the subject, or lower that of the style. For the next merge, "
        "see that Subject prompt has the exact trigger words, and raise Balance of the combined prompt.",
    ),
    (
        "When nothing changes",
        "If Mean travel stays near 0, the merge is the plain sum: raise Updates or the Learning rate. If the LoRAs "
        "hardly overlap, as Check then says, the plain sum is all that is needed: the method direct gives it at once.",
    ),
    (
        "When the picture falls apart",
        "Lower both strengths in Steer afterwards to about 0.8, or lower the weight of the tag. Two LoRAs that were "
        "each made for a strength of 0.7 are too strong at 1 and 1.",
    ),
)
SHORTCUTS = (
    ("Ctrl+Enter", "Merge"),
    ("Alt+Enter", "Finish now"),
    ("Esc", "Interrupt"),
    ("Alt+S", "Exchange subject and style"),
)
"""Key -> what it does while the tab is seen; the page's script has the same ones."""


def guide_panel() -> None:
    """The guide, closed at first."""
    with gr.Accordion("Guide", open=False, elem_id="ziplora_guide"):
        gr.HTML(guide())


def guide() -> str:
    """The guide as HTML."""
    steps = "".join(f"<li>{escape(step)}</li>" for step in STEPS)
    answers = "".join(f"<dt>{escape(asked)}</dt><dd>{escape(told)}</dd>" for asked, told in ANSWERS)
    keys = "".join(
        f"<tr><td><kbd>{escape(key)}</kbd></td><td>{escape(does)}</td></tr>" for key, does in SHORTCUTS
    )
    return f'<div class="ziplora-guide"><ol>{steps}</ol><dl>{answers}</dl><table>{keys}</table></div>'
