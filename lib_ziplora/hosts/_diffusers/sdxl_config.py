"""Configuration of SDXL base 1.0 as a diffusers folder, for single-file checkpoints, which hold none.

``sdxl/files.json`` has the configuration files, ``sdxl/merges.txt.xz`` the byte pairs of CLIP's tokenizer (OpenAI, MIT
license), from which its vocabulary follows.
"""

from __future__ import annotations

import json
import lzma
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).parent / "sdxl"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


@contextmanager
def sdxl_folder() -> Iterator[Path]:
    """A folder of SDXL's configuration files, without weights, that is there inside the block."""
    merges = lzma.decompress((SOURCE / "merges.txt.xz").read_bytes()).decode("utf-8")
    texts = {
        name: json.dumps(content)
        for name, content in json.loads((SOURCE / "files.json").read_text(encoding="utf-8")).items()
    }
    for tokenizer in ("tokenizer", "tokenizer_2"):
        texts[f"{tokenizer}/merges.txt"] = merges
        texts[f"{tokenizer}/vocab.json"] = json.dumps(vocabulary(merges))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, text in texts.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        yield folder


def vocabulary(merges: str) -> dict[str, int]:
    """CLIP's tokens and their numbers: every byte, every byte at a word's end, what the merges make, two of its own."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters = [chr(code) for code in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    pairs = merges.splitlines()[1:]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(pair.replace(" ", "") for pair in pairs),
        *SPECIAL,
    ]
    return {token: number for number, token in enumerate(tokens)}
