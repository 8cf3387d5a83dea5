"""Prompts to start from: of one LoRA, and of a merge."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import Role
from ..names import TAG, readable

# Where the words for a style begin, in the order in which they are looked for.
STYLE_WORDS = (
    re.compile(r"\bin (?:an? |the )?(?:(?!in )[\w<>.'-]+ ){0,5}style\b.*", re.IGNORECASE),
    re.compile(r"\b(?:in )?(?:the )?style of\b.+", re.IGNORECASE),
    re.compile(r"\b(?:drawn |painted |made |art )?by (?!(?:the|a|an)\b).+", re.IGNORECASE),
    re.compile(r"(?<![\w<>.'-])(?!(?:an?|the)\b)[\w<>.'-]+[ -]style\b", re.IGNORECASE),
)
JOINED_BY_A_SPACE = re.compile(r"(?:in|by|drawn by|painted by|made by|art by)\b", re.IGNORECASE)
EDGES = " ,.;"
BRACKETED = re.compile(r"(?<!\\)\[([^\[\]\\]*)\]")
AND = re.compile(r"\bAND\b")


@dataclass(frozen=True)
class Prompted:
    """A LoRA's part in a combined prompt.

    Attributes:
        role: what it brings.
        prompt: that draws it alone.
        trigger: its activation text, or "".
    """

    role: Role
    prompt: str
    trigger: str = ""


def suggested_prompt(card: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """A LoRA's prompt: activation text, else the trainer's trigger phrase, its most frequent tag, its output name.

    Args:
        card: what the user wrote on the LoRA's card.
        metadata: the strings of the file's header.
    """
    for text in (card.get("activation text"), metadata.get("modelspec.trigger_phrase"), _top_tag(metadata)):
        if isinstance(text, str) and text.strip():
            return readable(text.strip())
    return metadata.get("ss_output_name", "").replace("_", " ").strip()


def combined_prompt(loras: Sequence[Prompted]) -> str:
    """A prompt for all LoRAs of a merge together, or "" while a subject's or a style's prompt is missing.

    The subjects' prompts, then the words of each style that its subject hasn't: "a sks icon" and
    "a bell icon in szn style" become "a sks icon in szn style".
    """
    subjects = [lora.prompt.strip(EDGES) for lora in loras if lora.role == "subject"]
    styles = [style_words(lora.prompt, lora.trigger) for lora in loras if lora.role == "style"]
    if not any(subjects) or not any(styles):
        return ""
    text = " and ".join(dict.fromkeys(filter(None, subjects)))
    for words in filter(None, styles):
        if words.casefold() not in text.casefold():
            text += f" {words}" if JOINED_BY_A_SPACE.match(words) else f", {words}"
    return text


def style_words(prompt: str, trigger: str = "") -> str:
    """Those words of a style's prompt that mean the style, not what is drawn in it.

    Args:
        prompt: that draws the style, such as "a cat in szn style".
        trigger: its activation text, which counts where the prompt has no such turn of phrase.
    """
    for pattern in STYLE_WORDS:
        found = pattern.search(prompt)
        if found:
            return found.group().strip(EDGES)
    words = trigger.strip(EDGES)
    return words if words and words.casefold() in prompt.casefold() else prompt.strip(EDGES)


def prompt_notes(prompt: str) -> list[str]:
    """Sentences on what a prompt says to a picture and not to a merge: tags, prompt editing, AND."""
    notes = []
    tags = [tag.group() for tag in TAG.finditer(prompt)]
    if tags:
        notes.append(f"{' '.join(tags)} in a prompt is left out: a merge knows no LoRAs but its own.")
    edited = [text for text in BRACKETED.findall(prompt) if "|" in text or _ends_in_number(text)]
    if edited:
        notes.append(
            f"[{edited[0]}] in a prompt is read as plain words: a merge has no steps to change it at."
        )
    if AND.search(prompt):
        notes.append("AND in a prompt is read as a plain word: a merge learns from one prompt at a time.")
    return notes


def _ends_in_number(text: str) -> bool:
    """Whether ``[text]`` is edited at a step of the sampling, as in ``[from:to:0.5]``."""
    number = text.rpartition(":")[2].strip()
    return ":" in text and number.replace(".", "", 1).isdecimal()


def _top_tag(metadata: Mapping[str, str]) -> str:
    """The tag that most training captions have (kohya: {"folder": {"tag": count}})."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: dict[str, int] = {}
        for tags in folders.values():
            for tag, count in tags.items():
                counts[tag] = counts.get(tag, 0) + int(count)
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return ""
    return max(counts, key=lambda tag: counts[tag], default="")
