"""LoRA files written whole and verified, or not at all; nothing replaced unless asked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...errors import LoraFileError, OutputError
from ...names import validate_name
from ..layer import LoraLayer, StackedLayer, Term
from .atomic import atomic_write, clean_leftovers, probe, taken, unwritable
from .cast import cast_extra, cast_layer
from .container import header_of
from .digest import Digest
from .inspect import describe, parse_header, unsupported_reason
from .serialize import (
    FORMATS,
    TEXT_PREFIX,
    Entry,
    file_entries,
    header_bytes,
    missing_text_attention,
    own_strings,
    text_rank,
)
from .size import shapes_of
from .verified import VerifiedFile, different

EXTENSION = ".safetensors"


def check_output(path: str | os.PathLike[str], overwrite: bool = False, size: int = 0) -> None:
    """Find out beforehand what would keep a file from being written; folders of it that are missing can be made.

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
    folder = next(parent for parent in file.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise OutputError(f"{folder} is no folder. Choose another.")
    if file.is_dir():
        raise OutputError(f"{file} is a folder. Choose another name.")
    if not overwrite and os.path.lexists(file):
        raise taken(file)
    try:
        clean_leftovers(folder)
        with probe(folder / file.name) as temporary:
            temporary.open("xb").close()
        _require_room(file, size)
    except OSError as error:
        raise unwritable(file, error) from error


def write_lora(
    path: str | os.PathLike[str],
    layers: Mapping[str, LoraLayer],
    metadata: Mapping[str, str] | None = None,
    precision: str = "fp16",
    overwrite: bool = False,
    extras: Mapping[str, Tensor] | None = None,
) -> str:
    """Write layers as a kohya file that WebUI, Forge and ComfyUI load in full.

    The file appears under its name only after every byte was read back and compared, and all was flushed to
    the disk; until then, and after any failure, what was there before is untouched.
    ``ss_output_name`` is set to the file's stem, the hashes to the tensors' own.

    Args:
        path: ``<name>.safetensors``; its folder is made.
        layers: by canonical name; one of the second text encoder's q, k, v, out brings the others, as zeros.
            Alphas that differ become one (see ``as_written``); the delta weights stay.
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
    check_output(file, overwrite)
    make_folder(file)
    with atomic_write(file, overwrite) as temporary:
        return write_unnamed(temporary, file, layers, metadata, precision, extras)


def make_folder(file: Path) -> None:
    """Make the folder that a file is to be written to, unless it is there; OutputError when that can't be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(file, error) from error


def write_unnamed(
    temporary: Path,
    file: Path,
    layers: Mapping[str, LoraLayer],
    metadata: Mapping[str, str] | None = None,
    precision: str = "fp16",
    extras: Mapping[str, Tensor] | None = None,
) -> str:
    """``write_lora`` to a new file of ``atomic_writes`` that gets the name ``file`` later."""
    if precision not in FORMATS:
        raise OutputError(f"The precision {precision!r} doesn't exist. Choose {', '.join(FORMATS)}.")
    if not layers:
        raise OutputError(f"There is no layer to write to {file.name}. Merge LoRAs that have some.")
    complete = as_written(layers)
    extras = extras or {}
    entries = file_entries(complete, precision, {name: tuple(t.shape) for name, t in extras.items()})
    strings = own_strings(file.stem, metadata or {})
    size = len(header_bytes(entries, strings)) + sum(entry.size for entry in entries.values())
    _require_room(file, size)
    try:
        with VerifiedFile(temporary, file.name) as stream:
            stream.write(memoryview(header_bytes(entries, strings)))
            with Digest() as digest:
                for tensor in _tensors(complete, extras, precision):
                    data = tensor.reshape(-1).view(torch.uint8).numpy().data
                    digest.update(data)
                    stream.write(data)
                data_sha256 = digest.hexdigest()
            stream.rewind()
            stream.write(
                memoryview(header_bytes(entries, own_strings(file.stem, metadata or {}, data_sha256)))
            )
        _check_readable(temporary, file, complete)
        with temporary.open("rb+") as flushed:
            os.fsync(flushed.fileno())
    except OSError as error:
        raise unwritable(file, error) from error
    return data_sha256


def copy_lora(source: Path, temporary: Path, strings: Mapping[str, str]) -> None:
    """Copy a LoRA to a new file of ``atomic_writes``, with other strings in its header; tensors stay, byte for byte."""
    raw = header_of(source)
    places = sorted(raw.tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    entries = {name: Entry(one.dtype, one.shape, one.end - one.begin) for name, one in places}
    with source.open("rb") as given, temporary.open("xb") as copied:
        copied.write(header_bytes(entries, {**raw.metadata, **strings}))
        given.seek(raw.data_start)
        shutil.copyfileobj(given, copied)
        copied.flush()
        os.fsync(copied.fileno())


def _tensors(
    layers: Mapping[str, LoraLayer], extras: Mapping[str, Tensor], precision: str
) -> Iterator[Tensor]:
    """The data of the file, in the order of ``file_entries``."""
    yield torch.tensor([layer.alpha for layer in layers.values()], dtype=torch.float32)
    for layer in layers.values():
        yield from cast_layer(layer, precision)
    for name, tensor in extras.items():
        yield cast_extra(name, tensor, precision)


def as_written(layers: Mapping[str, LoraLayer]) -> dict[str, LoraLayer]:
    """The layers as they stand in the file, sorted by name: attention in full, one alpha, as loaders need it.

    Diffusers gives all of a text encoder's layers, and all attention layers of the UNet, the alpha that most
    have. So the layers of each have one alpha where they differ (the rest of their scaling goes into the
    factors), and the text encoders' one rank.
    """
    zeros = {name: _zero_layer(name, like) for name, like in missing_text_attention(layers).items()}
    complete = dict(sorted({**layers, **zeros}.items()))
    text = {name: layer for name, layer in complete.items() if name.startswith(TEXT_PREFIX)}
    unet = {name: layer for name, layer in complete.items() if name not in text}
    if len({(layer.rank, layer.alpha) for layer in text.values()}) > 1:
        complete.update({name: _padded(layer, text_rank(text)) for name, layer in text.items()})
    if len({layer.alpha for layer in unet.values()}) > 1:
        alpha = float(max(layer.rank for layer in unet.values()))
        complete.update({name: StackedLayer(name, unet[name].terms(), alpha) for name in unet})
    return complete


def _padded(layer: LoraLayer, rank: int) -> LoraLayer:
    """The same delta weight with this rank and alpha, by rows and columns of zeros."""
    missing = rank - layer.rank
    zeros = Term(torch.zeros(missing, *layer.weight_shape[1:]), torch.zeros(layer.out_features, missing), 1.0)
    return StackedLayer(layer.name, (*layer.terms(), zeros))


def _zero_layer(name: str, like: LoraLayer) -> LoraLayer:
    """Rank 1, both factors zero; CLIP's attention projections are square."""
    width = like.in_features
    return LoraLayer(name, torch.zeros(1, width), torch.zeros(width, 1), 1.0)


def _require_room(file: Path, size: int) -> None:
    free = shutil.disk_usage(next(folder for folder in file.parents if folder.is_dir())).free
    if size > free:
        raise OutputError(
            f"{file.name} needs {-(-size >> 20)} MB, but {file.parent} has {free >> 20} MB left. Make room."
        )


def _check_readable(temporary: Path, file: Path, layers: Mapping[str, LoraLayer]) -> None:
    """Raise OutputError unless our own reader finds the layers that were meant, and nothing else."""
    try:
        raw = header_of(temporary)
    except LoraFileError as error:
        raise OutputError(f"{file.name} could not be read back, so it was not kept: {error}") from error
    parsed = parse_header(temporary, raw)
    found = shapes_of(raw, parsed).layers.items()
    same = {name: (shape.rank, shape.weight_shape) for name, shape in found} == {
        name: (layer.rank, layer.weight_shape) for name, layer in layers.items()
    }
    if (
        not same
        or parsed.unknown
        or parsed.duplicates
        or unsupported_reason(describe(temporary, raw, parsed))
    ):
        raise different(file.name)
