"""Recent merges as a row of buttons: one click fills the form, as does a page that finds a merge running."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import gradio as gr

from ..config import LoraInput, MergeRequest, setting_fields
from ..errors import ZipLoraError
from ..library.prompts import Prompted, combined_prompt
from ..library.recent import RecentMerge
from ..report.recipe import read_recipe
from . import text
from .controller import TabController
from .controls import Controls, Updates, Values
from .forms import SLOTS, Slot


def recent_row(controller: TabController, controls: Controls) -> None:
    """The buttons, and the hidden ones that the page's script presses."""
    controls.add(gr.HTML, "recent", recent_merges(controller))
    controls.add(gr.Textbox, "recent_key", visible=False, label="ZipLoRA recent merge")
    controls.add_hidden("recall")


def recall_event(controller: TabController, controls: Controls) -> None:
    """A button fills the form with its merge; the key may also be the id of a job that merges."""

    def recall(given: Values) -> Updates:
        key = str(given["recent_key"] or "")
        job, merge = controller.service.get(key), controller.service.recent.find(key)
        if job is not None and isinstance(job.request, MergeRequest):
            request = job.request
            form = {"output": request.output, "overwrite": request.overwrite, "report": request.report}
            return {**form, **_form(controller, request)}
        return _filled(controller, merge.loras, merge.combined_prompt) if merge else {}

    sides = [f"{slot.name}_prompt_filled" for slot in SLOTS]
    sides += [name for slot in SLOTS for name in slot.value_names()]
    outputs = (*sides, "output", "overwrite", "report", "combined_prompt_filled", *setting_fields())
    controls.on(
        controls["recall"].click, recall, ("recent_key",), outputs, js="() => ziploraPickers.recalled()"
    )

    def fill(given: Values) -> Updates:
        try:
            request = read_recipe(given["recipe"] or "")
        except ZipLoraError as error:
            return {"recipe_note": text.error(str(error))}
        missing = [lora.lora for lora in request.loras if lora.lora not in controller.loras.names()]
        note = text.notice(f"Not installed: {', '.join(missing)}.") if missing else ""
        return {**_form(controller, request), "recipe_note": note}

    filled = (*sides, "combined_prompt_filled", *setting_fields(), "recipe_note")
    controls.on(controls["recipe_fill"].click, fill, ("recipe",), filled)


def recent_merges(controller: TabController) -> str:
    """The buttons; nothing before the first merge."""
    merges = controller.service.recent.merges()
    return buttons(merges, controller.loras.names()) if merges else ""


def buttons(merges: Sequence[RecentMerge], installed: Sequence[str]) -> str:
    """A button for each merge; one whose LoRAs are not all installed can't be pressed and says why."""
    made = []
    for merge in merges:
        label = " × ".join(lora.lora for lora in merge.loras)
        missing = merge.missing(installed)
        words = "\n".join(f"{lora.role} {lora.weight:g}: {lora.prompt or lora.lora}" for lora in merge.loras)
        state = f'title="{escape(words)}"'
        if missing:
            state = f'disabled title="{escape(" and ".join(missing))}: not installed any more"'
        made.append(f'<button type="button" data-recent="{merge.key}" {state}>{escape(label)}</button>')
    return f'<div class="ziplora-recent"><span>Recently merged</span> {"".join(made)}</div>'


def _form(controller: TabController, request: MergeRequest) -> Updates:
    """Every setting, and every place for a LoRA."""
    settings = {name: getattr(request.settings, name) for name in setting_fields()}
    return {**settings, **_filled(controller, request.loras, settings["combined_prompt"])}


def _filled(controller: TabController, loras: Sequence[LoraInput], combined: str) -> Updates:
    """Every place for a LoRA and the combined prompt."""
    updates: Updates = {}
    placed = dict(zip(_slots(loras), loras, strict=False))
    for slot in SLOTS:
        lora, name = placed.get(slot), slot.name
        updates |= {
            name: "",
            f"{name}_prompt": "",
            f"{name}_weight": 1.0,
            f"{name}_prompt_filled": "",
            f"{name}_blocks": "",
        }
        if lora is not None:
            updates |= {
                name: lora.lora,
                f"{name}_prompt": lora.prompt,
                f"{name}_weight": lora.weight,
                f"{name}_blocks": lora.blocks,
            }
            updates |= {f"{name}_role": lora.role} if slot.optional else {}
    # The suggested prompt goes on following the prompts; one of the user's own stays.
    parts = [Prompted(lora.role, lora.prompt, controller.loras.trigger(lora.lora)) for lora in loras]
    filled = combined if combined == combined_prompt(parts) else ""
    return {**updates, "combined_prompt": combined, "combined_prompt_filled": filled}


def _slots(loras: Sequence[LoraInput]) -> list[Slot]:
    """The place of each LoRA: the first subject and the first style have theirs, the others follow."""
    free = list(SLOTS)
    return [_take(free, lora) for lora in loras if free]


def _take(free: list[Slot], lora: LoraInput) -> Slot:
    own = next((slot for slot in free if slot.name == lora.role), None)
    slot = own or next((slot for slot in free if slot.optional), free[0])
    free.remove(slot)
    return slot
