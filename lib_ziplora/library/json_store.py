"""Small things that are kept across restarts: JSON files in the host's data folder.

None of them is needed: what can't be read counts as absent, what can't be written is only logged.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..hosts import Host, KeepsData
from ..lora.io.atomic import atomic_text

log = logging.getLogger(__name__)

LARGEST_FILE = 64_000_000
"""Bytes; a larger file is none of ours."""


def data_folder(host: Host) -> Path | None:
    """Where the host lets us keep things; None where it has no such place."""
    return host.data_folder() if isinstance(host, KeepsData) else None


def read_json(path: Path) -> Any:
    """A file's content, or None when there is none or it is damaged."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s can't be read (%s) and is made anew.", path, error)
        return None


def write_json(path: Path, content: Any) -> None:
    """Write a file in one step, so that another program never finds half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_text(path, json.dumps(content), overwrite=True)
    except (OSError, OutputError) as error:
        log.warning("%s can't be written (%s); it is forgotten at the next start.", path, error)
