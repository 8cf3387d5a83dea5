"""The merges that were made last, as a row of buttons: one click fills the form."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from ..config import LoraInput
from ..library.prompts import Prompted, combined_prompt
from ..library.recent import RecentMerge
from .compat import javascript, quiet, unsaved
from .forms import SLOTS, Slot
from .handlers import Desk

Controls = dict[str, Any]


def recent_row(desk: Desk) -> Controls:
    """The buttons, and the hidden ones that the page's script presses."""
    made: Controls = {"recent": gr.HTML(shown(desk), elem_id="ziplora_recent")}
    made["recent_key"] = unsaved(gr.Textbox(visible=False, label="ZipLoRA recent merge"))
    made["recall"] = unsaved(
        gr.Button("ZipLoRA recall", elem_id="ziplora_recall", elem_classes=["ziplora-hidden"])
    )
    return made


def recall_event(desk: Desk, controls: Controls) -> Any:
    """A button fills the form with its merge; the event of it."""
    names = [name for slot in SLOTS for name in _names(slot)]
    outputs = [controls[name] for name in (*names, "combined_prompt", "combined_filled")]
    return controls["recall"].click(
        lambda key: _filled(desk, key),
        [controls["recent_key"]],
        outputs,
        **quiet(),
        **javascript("() => ziploraPickers.recalled()"),
    )


def shown(desk: Desk) -> str:
    """The buttons; nothing before the first merge."""
    return buttons(desk.recent.merges(), desk.shelf.names()) if desk.recent.merges() else ""


def buttons(merges: Sequence[RecentMerge], installed: Sequence[str]) -> str:
    """A button for each merge; one whose LoRAs are not all installed can't be pressed and says why."""
    made = []
    for merge in merges:
        label = " × ".join(lora.lora for lora in merge.loras)
        missing = merge.missing(installed)
        if missing:
            state = f'disabled title="{escape(" and ".join(missing))}: not installed any more"'
        else:
            state = f'title="{escape(_told(merge))}"'
        made.append(f'<button type="button" data-recent="{merge.key}" {state}>{escape(label)}</button>')
    return f'<div class="ziplora-recent"><span>Recently merged</span> {"".join(made)}</div>'


def _told(merge: RecentMerge) -> str:
    return "\n".join(f"{lora.role} {lora.weight:g}: {lora.prompt or lora.lora}" for lora in merge.loras)


def _names(slot: Slot) -> tuple[str, ...]:
    return (*slot.value_names(), f"{slot.name}_filled")


def _filled(desk: Desk, key: str) -> list[Any]:
    """Updates of every place for a LoRA and of the combined prompt; none when the merge is forgotten."""
    merge = desk.recent.find(str(key or ""))
    if merge is None:
        return [gr.update() for slot in SLOTS for _ in _names(slot)] + [gr.update(), gr.update()]
    updates: list[Any] = []
    placed = dict(zip(_slots(merge), merge.loras, strict=False))
    for slot in SLOTS:
        lora = placed.get(slot)
        values = {"": "", "_prompt": "", "_weight": 1.0, "_role": gr.update(), "_filled": ""}
        if lora is not None:
            values |= {"": lora.lora, "_prompt": lora.prompt, "_weight": lora.weight, "_role": lora.role}
        updates += [values[name.removeprefix(slot.name)] for name in _names(slot)]
    return [*updates, merge.combined_prompt, _suggested(desk, merge)]


def _slots(merge: RecentMerge) -> list[Slot]:
    """The place of each LoRA: the first subject and the first style have theirs, the others follow."""
    free = list(SLOTS)
    return [_take(free, lora) for lora in merge.loras if free]


def _take(free: list[Slot], lora: LoraInput) -> Slot:
    own = next((slot for slot in free if slot.name == lora.role), None)
    slot = own or next((slot for slot in free if slot.optional), free[0])
    free.remove(slot)
    return slot


def _suggested(desk: Desk, merge: RecentMerge) -> str:
    """The combined prompt if it is the one that the tab would suggest, so that it goes on following the prompts."""
    parts = [Prompted(lora.role, lora.prompt, desk.shelf.trigger(lora.lora)) for lora in merge.loras]
    return merge.combined_prompt if merge.combined_prompt == combined_prompt(parts) else ""
