"""The prompts of a finished merge: each LoRA's own, and one for all of them together."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import LoraFileError
from ..hosts import Host
from ..report.saved import SavedMerge
from .catalog import prompt_for
from .prompts import Prompted, combined_prompt


def prompts_of(saved: SavedMerge, host: Host) -> tuple[str, ...]:
    """What each LoRA was prompted with, in their order; "" where nothing is known."""
    return tuple(lora.prompt.strip() or _suggested(lora.lora, host) for lora in saved.loras)


def together(saved: SavedMerge, prompts: Sequence[str]) -> str:
    """The prompt for all LoRAs: the merge's own, else one made of theirs; "" where they have none."""
    own = saved.settings.combined_prompt.strip()
    parts = [Prompted(lora.role, prompt) for lora, prompt in zip(saved.loras, prompts, strict=True)]
    return own or combined_prompt(parts) or ", ".join(dict.fromkeys(filter(None, prompts)))


def _suggested(lora: str, host: Host) -> str:
    try:
        return prompt_for(host, lora)
    except LoraFileError:
        return ""
