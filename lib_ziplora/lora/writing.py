"""Write a LoRA file: whole and verified, or not there; nothing replaced unless asked."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LoraFileError, OutputError, UnsupportedLoraError
from ..names import validate_name
from .layer import LoraLayer
from .reading import read_lora
from .serialize import (
    FORMATS,
    complete_text_attention,
    data_pieces,
    data_sha256,
    header_bytes,
    stored_tensors,
)

EXTENSION = ".safetensors"
# What the factors' rounding may leave in a delta weight's entry that is far below any weight's own rounding.
NEGLIGIBLE = 1e-7


def output_size(layers: Mapping[str, LoraLayer], precision: str) -> int:
    """Bytes that a file of these layers will take, to a few per cent."""
    numbers = sum(layer.up.numel() + layer.down.numel() for layer in layers.values())
    return numbers * FORMATS[precision].dtype.itemsize + 500 * len(layers) + 4096


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
        raise _taken(file)
    try:
        with _temporary(file) as temporary:
            temporary.open("xb").close()
        free = shutil.disk_usage(file.parent).free
    except OSError as error:
        raise _unwritable(file, error) from error
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

    The file appears under its name only after it was written to disk, read back and compared
    with the layers; until then, and after any failure, what was there before is untouched.
    ``ss_output_name`` is set to the file's stem, the hashes to the tensors' own.

    Args:
        path: ``<name>.safetensors`` in an existing folder.
        layers: by canonical name; one of the second text encoder's q, k, v, out brings the others, as zeros.
        metadata: header strings.
        precision: ``fp16``, ``bf16`` or ``fp32``.
        overwrite: replace an existing file.
        extras: what no low-rank layer holds, as in ``Lora.extras``.

    Returns:
        sha256 of the file, lower-case hex.

    Raises:
        OutputError: it can't be written, or what was read back is not what was meant.
    """
    file = Path(path)
    if precision not in FORMATS:
        raise OutputError(f"The precision {precision!r} doesn't exist. Choose {', '.join(FORMATS)}.")
    if not layers:
        raise OutputError(f"There is no layer to write to {file.name}. Merge LoRAs that have some.")
    check_output(file, overwrite, output_size(layers, precision))
    complete = complete_text_attention(layers)
    tensors = stored_tensors(complete, precision, extras)
    strings = _own_strings(file, tensors, metadata or {})
    try:
        with _temporary(file) as temporary:
            sha256 = _write(temporary, header_bytes(tensors, strings), tensors)
            del tensors
            _verify(file, temporary, (complete, extras or {}), precision, sha256)
            _publish(temporary, file, overwrite)
    except FileExistsError as error:
        raise _taken(file) from error
    except OSError as error:
        raise _unwritable(file, error) from error
    return sha256


def _own_strings(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The header's strings, with those that follow from the file itself."""
    data_hash = data_sha256(tensors)
    return {
        **metadata,
        "ss_output_name": file.stem,
        "sshs_model_hash": data_hash,
        "modelspec.hash_sha256": f"0x{data_hash}",
    }


@contextlib.contextmanager
def _temporary(file: Path) -> Iterator[Path]:
    """A free name beside the file, hidden from LoRA listings; whatever gets it is gone afterwards."""
    temporary = file.with_name(f".{file.stem}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write(temporary: Path, header: bytes, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header)
    with temporary.open("xb") as stream:
        stream.write(header)
        for piece in data_pieces(tensors):
            stream.write(piece)
            digest.update(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _verify(
    file: Path,
    temporary: Path,
    whole: tuple[Mapping[str, LoraLayer], Mapping[str, Tensor]],
    precision: str,
    sha256: str,
) -> None:
    """Read the new file back and compare every delta weight with the intended one, on random inputs."""
    try:
        written = read_lora(temporary)
    except (LoraFileError, UnsupportedLoraError) as error:
        raise OutputError(f"{file.name} could not be read back, so it was not kept: {error}") from error
    intended, extras = whole
    names = (set(written.layers), set(written.extras)) == (set(intended), set(extras))
    if written.sha256 != sha256 or written.unknown or not names:
        raise OutputError(
            f"{file.name} was read back differently from what was written, so it was not kept. "
            "Check the disk and try again."
        )
    for name, tensor in extras.items():
        difference = (written.extras[name] - tensor.detach().cpu().float()).norm()
        if difference > 2 * FORMATS[precision].roundoff * tensor.float().norm().cpu() + NEGLIGIBLE:
            raise OutputError(f"{name} of {file.name} loses too much in {precision}. Choose bf16 or fp32.")
    generator = torch.Generator().manual_seed(0)
    for name, layer in intended.items():
        if not _same_delta(layer, written.layers[name], FORMATS[precision].roundoff, generator):
            raise OutputError(
                f"Layer {name} of {file.name} loses too much in {precision}, so the file was not kept. "
                "Choose bf16 or fp32."
            )


def _same_delta(a: LoraLayer, b: LoraLayer, roundoff: float, generator: torch.Generator) -> bool:
    """Whether two delta weights agree, up to the rounding of b's factors, on two random inputs.

    Rounding each factor by u changes the product by at most (2u + u^2) |up| |down|.
    """
    if a.weight_shape != b.weight_shape:
        return False
    probe = torch.randn(a.columns, 2, generator=generator)
    up, down = a.up.detach().cpu().float(), a.down.detach().cpu().float().flatten(1)
    ours = a.scaling * (up @ (down @ probe))
    theirs = b.scaling * (b.up.float() @ (b.down.float().flatten(1) @ probe))
    bound = abs(a.scaling) * (up.abs() @ (down.abs() @ probe.abs())).norm()
    allowed = (2.5 * roundoff + 2.0**-18) * bound + NEGLIGIBLE * a.out_features**0.5 * probe.norm()
    return bool((ours - theirs).norm() <= allowed)


def _publish(temporary: Path, file: Path, overwrite: bool) -> None:
    """Give the finished file its name, in one step that either happens or doesn't."""
    if overwrite:
        _replace(temporary, file)
    else:
        _claim(temporary, file)
    with contextlib.suppress(OSError):
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _claim(temporary: Path, file: Path) -> None:
    """Name the file only if the name is free, also when somebody takes it at this moment.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(temporary, file)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError, AttributeError):
        # A file system without hard links: an empty file claims the name, then is replaced.
        file.open("xb").close()
        try:
            _replace(temporary, file)
        except BaseException:
            file.unlink()
            raise


def _replace(temporary: Path, file: Path) -> None:
    """A rename over the old file, patient with programs that hold the old file open for a moment (Windows)."""
    for pause in (0.05, 0.2, 0.5):
        try:
            temporary.replace(file)
            return
        except PermissionError:
            time.sleep(pause)
    temporary.replace(file)


def _taken(file: Path) -> OutputError:
    return OutputError(f"{file.name} exists already. Choose another name, or allow it to be replaced.")


def _unwritable(file: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return OutputError(f"The disk is full: {file.name} was not written. Make room in {file.parent}.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"{file.parent} can't be written to ({error.strerror}). Choose another folder or its owner."
        )
    return OutputError(f"{file.name} can't be written to {file.parent} ({error.strerror or error}).")
