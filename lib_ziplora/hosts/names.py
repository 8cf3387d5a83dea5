"""Which names a merged LoRA may have: those that every host can list and every prompt can call."""

from __future__ import annotations

import unicodedata

from ..errors import OutputError

MAX_BYTES = 200
"""Longest name in UTF-8; leaves room for ``.safetensors`` and a temporary suffix in 255 bytes."""

FORBIDDEN = '<>:"/\\|?*,()[]{}'
"""Characters that are separators, that Windows refuses, or that end a ``<lora:name:1>`` tag."""

RESERVED = frozenset(
    {"none", "con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}
)


def validate_name(name: str) -> str:
    """The name, unchanged, if it can be a LoRA's file stem and stand in a prompt.

    Raises:
        OutputError: empty, a path, reserved by an operating system, too long, or with
            characters that a file name or a ``<lora:name:1>`` tag can't hold.
    """
    if not name or name != name.strip() or name.startswith(".") or name.endswith("."):
        raise OutputError(
            f"The output name {name!r} is empty or begins or ends with a space or a dot; choose another name."
        )
    if "/" in name or "\\" in name:
        raise OutputError(f"The output name {name!r} has a path in it; give a name only, no folders.")
    bad = sorted({c for c in name if c in FORBIDDEN or unicodedata.category(c).startswith("C")})
    if bad:
        raise OutputError(
            f"The output name {name!r} holds {' '.join(map(repr, bad))}; leave such characters out."
        )
    if name.split(".")[0].casefold() in RESERVED:
        raise OutputError(f"The output name {name!r} is reserved; choose another name.")
    if len(name.encode("utf-8")) > MAX_BYTES:
        raise OutputError(f"The output name is longer than {MAX_BYTES} bytes; choose a shorter one.")
    return name
