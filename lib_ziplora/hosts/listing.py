"""Installed LoRAs as a host lists them: a name for each file, also where several files have the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from . import InstalledLora
from .cards import user_metadata

SUFFIX = ".safetensors"


def listed(files: Iterable[Path], plain: Callable[[Sequence[Path]], Path | None]) -> list[InstalledLora]:
    """LoRA files, each once, sorted by name.

    A file's name is its stem. Where several have the same, that is the one that ``plain`` picks, if any; the
    others are named with as many folders as tell them apart, ``sub/name``, and each says which file it is.
    """
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(path.stem, []).append(path)
    found = []
    for stem, paths in groups.items():
        first = paths[0] if len(paths) == 1 else plain(paths)
        others = {}
        if len(paths) > 1:
            others = _told_apart([path for path in paths if not first or path.resolve() != first.resolve()])
        named = {**({stem: first} if first else {}), **others}
        said = f"{len(named)} files are named {stem}"
        said += f"; <lora:{stem}:1> means {first}." if first else "."
        for name, path in named.items():
            remark = f"{said} {name} is {path}." if len(named) > 1 else ""
            found.append(InstalledLora(name, path, user_metadata(path), remark))
    return sorted(found, key=lambda lora: (lora.name.casefold(), lora.name))


def _told_apart(paths: Sequence[Path]) -> dict[str, Path]:
    """Each file, once, under its name and as many folders as no other has: ``sub/name``."""
    different = list({path.resolve(): path for path in reversed(paths)}.values())
    whole = [path.absolute().with_suffix("").parts for path in different]
    for count in range(2, max(map(len, whole), default=0) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            return dict(zip(names, different, strict=True))
    return {str(path): path for path in different}  # equal but for the case of the ending
