"""What the user wrote on a LoRA's card, which the WebUI keeps beside the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..lora.untrusted_json import load_json


def user_metadata(path: Path) -> Mapping[str, Any]:
    """The WebUI's ``<stem>.json`` beside a LoRA; empty when there is none or it is malformed."""
    try:
        data = load_json(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
