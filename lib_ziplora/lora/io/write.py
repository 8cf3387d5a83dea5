"""Write a LoRA file: whole and verified, or not there; nothing replaced unless asked."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import OutputError
from ...names import validate_name
from ..layer import LoraLayer
from .atomic import appearing, hidden, taken, unwritable
from .cast import NEGLIGIBLE, Caster, numbers
from .digest import Blocks
from .serialize import (
    FORMATS,
    HASH_LENGTH,
    Entry,
    file_entries,
    header_bytes,
    missing_text_attention,
    own_strings,
)
from .verify import ReadBack, Written, verify

EXTENSION = ".safetensors"


def check_output(path: str | os.PathLike[str], overwrite: bool = False, size: int = 0) -> None:
    """Find out beforehand what would keep a file from being written.

    Args:
        path: the file to be, ``<name>.safetensors``.
        overwrite: whether an existing file may be replaced.
        size: bytes that it will need.

    Raises:
        OutputError: its name, its folder, a file of that name, the disk; and what to do.
    """
    file = Path(path)
    if file.suffix != EXTENSION:
        raise OutputError(f"{file.name} must end in {EXTENSION}.")
    validate_name(file.stem)
    if not file.parent.is_dir():
        raise OutputError(f"The folder {file.parent} does not exist. Create it or choose another.")
    if file.is_dir():
        raise OutputError(f"{file} is a folder. Choose another name.")
    if not overwrite and os.path.lexists(file):
        raise taken(file)
    try:
        with hidden(file) as temporary:
            temporary.open("xb").close()
        free = shutil.disk_usage(file.parent).free
    except OSError as error:
        raise unwritable(file, error) from error
    if size > free:
        raise OutputError(
            f"{file.name} needs {-(-size >> 20)} MB, but {file.parent} has {free >> 20} MB left. Make room."
        )


def write_lora(
    path: str | os.PathLike[str],
    layers: Mapping[str, LoraLayer],
    metadata: Mapping[str, str] | None = None,
    precision: str = "fp16",
    overwrite: bool = False,
    extras: Mapping[str, Tensor] | None = None,
) -> str:
    """Write layers as a kohya file that WebUI, Forge and ComfyUI load in full.

    The file appears under its name only after its factors were compared with the layers, every byte was read
    back and compared, and all was flushed to the disk; until then, and after any failure, what was there before is
    untouched.
    ``ss_output_name`` is set to the file's stem, the hashes to the tensors' own.

    Args:
        path: ``<name>.safetensors`` in an existing folder.
        layers: by canonical name; one of the second text encoder's q, k, v, out brings the others, as zeros.
        metadata: header strings.
        precision: ``fp16``, ``bf16`` or ``fp32``.
        overwrite: replace an existing file.
        extras: what no low-rank layer holds, as in ``Lora.extras``.

    Returns:
        sha256 of the file's tensors, lower-case hex, as in its ``sshs_model_hash``. (That of the whole file
        would take a second pass over all of it: the header, which has this one, comes first.)

    Raises:
        OutputError: it can't be written, or what was read back is not what was meant.
    """
    file = Path(path)
    if precision not in FORMATS:
        raise OutputError(f"The precision {precision!r} doesn't exist. Choose {', '.join(FORMATS)}.")
    if not layers:
        raise OutputError(f"There is no layer to write to {file.name}. Merge LoRAs that have some.")
    content = _content(file, layers, precision, metadata or {}, extras or {})
    check_output(file, overwrite, content.size())
    with appearing(file, overwrite) as temporary:
        written = _write(temporary, content)
        verify(temporary, written)
        _flush(temporary)
    return written.data_sha256


@dataclass(frozen=True)
class _Content:
    """What a file will hold: see ``write_lora``."""

    file: Path
    layers: Mapping[str, LoraLayer]
    extras: Mapping[str, Tensor]
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    precision: str

    def header(self, data_sha256: str = "0" * HASH_LENGTH) -> bytes:
        return header_bytes(self.entries, own_strings(self.file.stem, self.metadata, data_sha256))

    def size(self) -> int:
        return len(self.header()) + sum(entry.size for entry in self.entries.values())

    def largest(self) -> int:
        """Bytes of the largest piece that is made at once: all alphas, a layer's two factors, an extra."""
        layer = FORMATS[self.precision].dtype.itemsize * max(map(numbers, self.layers.values()))
        extra = max((self.entries[name].size for name in self.extras), default=0)
        return max(4 * len(self.layers), layer, extra)


def _content(
    file: Path,
    layers: Mapping[str, LoraLayer],
    precision: str,
    metadata: Mapping[str, str],
    extras: Mapping[str, Tensor],
) -> _Content:
    zeros = {name: _zero_layer(name, like) for name, like in missing_text_attention(layers).items()}
    complete = {name: {**layers, **zeros}[name] for name in sorted({*layers, *zeros})}
    shapes = {name: tuple(tensor.shape) for name, tensor in extras.items()}
    return _Content(file, complete, extras, file_entries(complete, precision, shapes), metadata, precision)


def _zero_layer(name: str, like: LoraLayer) -> LoraLayer:
    """Rank 1, both factors zero; CLIP's attention projections are square."""
    width = like.columns
    return LoraLayer(name, torch.zeros(1, width), torch.zeros(width, 1), 1.0)


def _write(temporary: Path, content: _Content) -> Written:
    """Write the file, layer by layer; the header, which has the data's hash, comes last."""
    data_sha256 = hashlib.sha256()
    header = content.header()
    with temporary.open("xb") as stream, temporary.open("rb", buffering=0) as again:
        stream.write(header)
        again.seek(len(header))
        with Blocks(content.largest(), data_sha256, ReadBack(content.file.name, stream, again)) as blocks:
            _fill(blocks, content)
        header = content.header(data_sha256.hexdigest())
        stream.seek(0)
        stream.write(header)
    return Written(content.file.name, header, data_sha256.hexdigest(), content.layers)


def _flush(temporary: Path) -> None:
    """Wait until all of the file is on the disk."""
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())


def _fill(blocks: Blocks, content: _Content) -> None:
    """Make the data part of the file, piece by piece."""
    layers = content.layers
    itemsize = FORMATS[content.precision].dtype.itemsize
    caster = Caster(content.precision, max(map(numbers, layers.values())))
    alphas = torch.tensor([layer.alpha for layer in layers.values()], dtype=torch.float32)
    blocks.take(_bytes(alphas).numel()).copy_(_bytes(alphas))
    for layer in layers.values():
        caster.cast(layer, blocks.take(itemsize * numbers(layer)))
    for name, tensor in content.extras.items():
        stored = _bytes(_stored_extra(name, tensor, content.precision))
        blocks.take(stored.numel()).copy_(stored)


def _stored_extra(name: str, tensor: Tensor, precision: str) -> Tensor:
    form, meant = FORMATS[precision], tensor.detach().cpu().float()
    stored = meant.to(form.dtype).contiguous()
    if not bool(torch.isfinite(stored).all()):
        raise OutputError(f"{name} has numbers that {precision} can't hold. Choose bf16 or fp32.")
    if (stored.float() - meant).norm() > 2 * form.roundoff * meant.norm() + NEGLIGIBLE:
        raise OutputError(f"{name} loses too much in {precision}. Choose bf16 or fp32.")
    return stored


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
