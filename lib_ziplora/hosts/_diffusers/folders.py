"""Folders of LoRAs: which files are in them, and a name for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .. import InstalledLora
from ..cards import user_metadata

SUFFIX = ".safetensors"


def installed(folders: Sequence[Path]) -> list[InstalledLora]:
    """The LoRA files below folders, linked folders included, each once, sorted by name.

    A file's name is its stem. Where several have the same, that is the one directly in the first
    folder; the others are named with as many folders as tell them apart: ``sub/name``.
    """
    groups: dict[str, list[Path]] = {}
    for path in _files(folders):
        groups.setdefault(path.stem, []).append(path)
    found: dict[str, Path] = {}
    for stem, paths in groups.items():
        first = next((path for path in paths if len(paths) == 1 or path.parent == folders[0]), None)
        found.update({stem: first} if first else {})
        found.update(_told_apart([path for path in paths if path != first]))
    names = sorted(found, key=lambda name: (name.casefold(), name))
    return [InstalledLora(name, found[name], user_metadata(found[name])) for name in names]


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


def _told_apart(paths: Sequence[Path]) -> dict[str, Path]:
    """Each file, once, under its name and as many folders as no other has: ``sub/name``."""
    different = list({path.resolve(): path for path in reversed(paths)}.values())
    whole = [path.absolute().with_suffix("").parts for path in different]
    for count in range(2, max(map(len, whole), default=0) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            return dict(zip(names, different, strict=True))
    return {str(path): path for path in different}  # equal but for the case of the ending


def there(test: Callable[[], bool]) -> bool:
    """``Path.is_file`` and ``is_dir`` raise OSError for names that no file system takes."""
    try:
        return test()
    except (OSError, ValueError):
        return False
