"""Textual inversion embeddings that a LoRA's file brings along, and files of their own for them.

A bundled one is two tensors, ``bundle_emb.<word>.clip_l`` and ``.clip_g`` (vectors, width); on its own it is a
safetensors file of these two alone, as every WebUI and ComfyUI reads it, whose name is its word in prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from ...names import free_name
from .atomic import atomic_write

BUNDLE = "bundle_emb."
PARTS = ("clip_l", "clip_g")
AROUND = "<>[](){} ."
"""What may stand around a word, and prompts or file names can't hold."""


def bundled(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Word -> part -> the tensor's name, of the embeddings among a file's tensors."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if name.startswith(BUNDLE):
            word, _, part = name.removeprefix(BUNDLE).rpartition(".")
            found.setdefault(word or part, {})[part] = name
    return found


def save_embeddings(file: Path, names: Iterable[str], folder: Path) -> Iterator[str]:
    """Save the embeddings among a LoRA's tensors, each under a name that is free in a folder and its subfolders.

    Yields:
        What became of each, as a sentence.

    Raises:
        OutputError: one can't be written.
        OSError: the LoRA can't be read, or the folder can't be made.
    """
    for word, parts in sorted(bundled(names).items()):
        data = _file_of(file, parts)
        if not data:
            yield f"{file.stem}: the embedding {word} is not saved: it is no pair of clip_l and clip_g, as SDXL's are."
            continue
        folder.mkdir(parents=True, exist_ok=True)
        taken = {path.stem.casefold(): path for path in folder.rglob("*")}
        path = next((path for path in taken.values() if _holds(path, data)), None)
        if path is None:
            path = folder / f"{free_name(word.strip(AROUND) or 'embedding', taken)}.safetensors"
            with atomic_write(path, overwrite=False) as temporary:
                temporary.write_bytes(data)
        yield f"{file.stem}: the embedding {word} is saved as {path}; its word in prompts is {path.stem}."


def _file_of(file: Path, parts: Mapping[str, str]) -> bytes:
    """The content of an embedding's own file; empty where the bundled one is none of SDXL."""
    if not parts.keys() >= set(PARTS):
        return b""
    with safe_open(file, framework="pt") as stream:
        vectors = {part: stream.get_tensor(parts[part]).to(torch.float32) for part in PARTS}
    whole = all(t.ndim == 2 and t.numel() and t.isfinite().all() for t in vectors.values())
    return save(vectors) if whole and len({len(t) for t in vectors.values()}) == 1 else b""


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
