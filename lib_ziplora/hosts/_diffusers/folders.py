"""Folders of LoRAs: which files are in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .. import InstalledLora
from ..listing import SUFFIX as SUFFIX
from ..listing import listed


def installed(folders: Sequence[Path]) -> list[InstalledLora]:
    """The LoRA files below folders, linked folders included; of one stem, that directly in the first has it."""

    def plain(paths: Sequence[Path]) -> Path | None:
        return next((path for path in paths if path.parent == folders[0]), None)

    return listed(_files(folders), plain)


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    """LoRA files below folders; a folder that several links lead to is walked once, hidden ones are not."""
    walked: set[Path] = set()
    for folder in folders:
        for root, below, names in os.walk(folder, followlinks=True):
            real = Path(root).resolve()
            if real in walked:
                below.clear()
                continue
            walked.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            for path in (Path(root, name) for name in sorted(names)):
                if path.suffix.lower() == SUFFIX and not path.name.startswith(".") and there(path.is_file):
                    yield path


def there(test: Callable[[], bool]) -> bool:
    """``Path.is_file`` and ``is_dir`` raise OSError for names that no file system takes."""
    try:
        return test()
    except (OSError, ValueError):
        return False
