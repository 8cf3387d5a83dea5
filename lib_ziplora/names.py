"""LoRA names: what every loader, prompt parser and file system takes, and ``<lora:name:1>`` tags in prompts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from pathlib import PurePath

from .errors import OutputError

LONGEST = 120
LONGEST_BYTES = 200
LONGEST_STEM = 160
"""Bytes of a suggested name, so that a number and an extension still fit."""
# The prompt parser's own words for "no network" and the upscaler that shares its table.
RESERVED_BY_PROMPTS = frozenset(("none", "addams"))
RESERVED_BY_WINDOWS = frozenset(
    ("con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"))
)
IN_NO_TAG, IN_NO_FILE = frozenset(":=<>,"), frozenset('"|?*')
"""Characters that end or split a ``<lora:…>`` tag or an infotext, and those that Windows refuses besides."""
_UNSEEN = frozenset(("Cc", "Cs", "Zl", "Zp"))
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
TAG = re.compile(r"<\w+:[^<>]+>")
"""An extra network in a prompt, as the WebUI finds it."""
_EXTENSIONS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_SLASHES = re.compile(r"[/\\]")


def untagged(prompt: str) -> str:
    """A prompt without ``<lora:name:1>`` and other tags."""
    return TAG.sub("", prompt)


def validate_name(name: str) -> str:
    """The name, unchanged, if it can be a LoRA's file stem and stand in a ``<lora:name:1>`` tag.

    Args:
        name: a stem, without folder and extension.

    Raises:
        OutputError: what is wrong with it and what to do.
    """
    reason = _objection(name)
    if reason:
        raise OutputError(f"{name!r} can't be the name of a LoRA: {reason}.")
    return name


def validate_output(output: str) -> PurePath:
    """An output name, which may stand in subfolders of the LoRA folder (``merges/name``), as a path without ending.

    Raises:
        OutputError: a name or a folder that can't be used; what is wrong with it and what to do.
    """
    *folders, name = _SLASHES.split(output)
    validate_name(name)
    for folder in folders:
        reason = (
            _objection(folder) if folder else "it is empty. Begin with the first folder below the LoRA folder"
        )
        if reason:
            raise OutputError(f"{folder!r} can't be a folder of the output {output!r}: {reason}.")
    return PurePath(*folders, name)


def lora_name(output: str) -> str:
    """What a prompt calls the LoRA of an output name: its last part."""
    return _SLASHES.split(output)[-1]


def folder_of(output: str) -> str:
    """The folders of an output name with a slash at their end, or ""."""
    return output[: len(output) - len(lora_name(output))]


def _objection(name: str) -> str:
    if not name.strip():
        return "it is empty. Type a name"
    if "/" in name or "\\" in name or name in (".", ".."):
        return "it has a folder in it. Give the name alone"
    bad = sorted(filter(_unusable, set(name)))
    if bad:
        return f"{' '.join(map(repr, bad))} doesn't work in prompts or in file names. Leave it out"
    if name.lower().endswith(_EXTENSIONS):
        return "it ends in a file extension. Leave that out"
    if name[0] in " ." or name[-1] in " .":
        return "it starts or ends with a space or a dot. Leave that out"
    if len(name) > LONGEST or len(name.encode()) > LONGEST_BYTES:
        return f"it is longer than {LONGEST} letters. Choose a shorter one"
    if name.lower() in RESERVED_BY_PROMPTS:
        return "the WebUI uses this word itself. Choose another"
    if name.lower().split(".")[0].rstrip() in RESERVED_BY_WINDOWS:
        return "Windows uses this word for a device. Choose another"
    return ""


def _unusable(character: str) -> bool:
    forbidden = IN_NO_TAG | IN_NO_FILE | _TURNING
    return character in forbidden or unicodedata.category(character) in _UNSEEN


def readable(text: str) -> str:
    """A file name in which bytes that are no UTF-8, and halves of letters, show as replacement characters."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def free_name(wish: str, taken: Collection[str]) -> str:
    """A name like ``wish`` that no LoRA has yet, numbered if need be.

    Only characters that file systems and ``<lora:name:1>`` pass on unharmed are kept.
    """
    stem = re.sub(r"[^\w .+-]+", "_", wish)
    stem = stem.encode()[:LONGEST_STEM].decode(errors="ignore").strip(" .")
    used = {lora_name(name).casefold() for name in taken}
    number, name = 2, stem
    while name.casefold() in used:
        number, name = number + 1, f"{stem}_{number}"
    return name
