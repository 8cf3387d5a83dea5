"""LoRA files of SDXL, of any dialect, into canonical layers."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from ...errors import LoraFileError
from ..formats.convert import Converted, Weights, check_result, convert, is_finite, is_plain, side_extras
from ..formats.keys import LOW_RANK_PARTS, ParsedKeys, parse
from ..formats.peft_config import AdapterAlphas
from ..formats.sdxl import largest_weight
from ..layer import Lora, LoraLayer
from ..lowrank import RankRule
from .container import DTYPES, RawHeader, TensorEntry, in_file_order, read_header, unreadable
from .digest import Background
from .inspect import LoraHeader, describe, require_sdxl
from .placing import Data, Placing, copied

# Bytes that are read at a time.
CHUNK = 1 << 22
_PAIR = frozenset(LOW_RANK_PARTS.values())


def read_lora(
    path: str | os.PathLike[str],
    weights: Weights | None = None,
    rule: RankRule | None = None,
    on_layer: Callable[[], None] | None = None,
) -> Lora:
    """Read a LoRA of SDXL into canonical layers: one file, ``copied``, see ``read_loras``."""
    return read_loras([path], weights, rule, on_layer=on_layer)[0]


def read_loras(
    paths: Sequence[str | os.PathLike[str]],
    weights: Weights | None = None,
    rule: RankRule | None = None,
    on_file: Callable[[Path], None] | None = None,
    on_layer: Callable[[], None] | None = None,
    placing: Placing = copied,
) -> list[Lora]:
    """Read LoRAs of SDXL into canonical layers.

    Every file is read once and closed; the factors of LoRA and LoCon keep their dtype
    (fp8 becomes fp16, which holds it exactly) and share its bytes. Layers of other families
    become low-rank layers in fp32, listed in ``approximations``; what no low-rank layer
    holds, norms and biases, is in ``extras``.

    Args:
        paths: the files.
        weights: canonical module name -> the checkpoint's weight, which (IA)3, GLoRA, OFT and
            DoRA need.
        rule: the rank of layers of other families; 99.5 % of the energy by default.
        on_file: called with each file before it is read; what it raises ends the reading.
        on_layer: called before each layer, which can take a second in some families; so does this.
        placing: where the bytes of the files lie.

    Raises:
        LoraFileError: not a whole, finite LoRA; the sentence names the file and the layer.
        UnsupportedLoraError: for another base model, or of a family that can't be read (so).
    """
    rule, begin, tick = rule or RankRule(), on_file or (lambda file: None), on_layer or (lambda: None)
    files = [Path(path) for path in paths]
    sums = [hashlib.sha256() for _ in files]
    loras = []
    with ExitStack() as digests:
        for file, whole in zip(files, sums, strict=True):
            begin(file)
            digest = digests.enter_context(Background(whole))
            loras.append(_read(file, weights, rule, tick, placing, digest))
    return [
        dataclasses.replace(lora, sha256=whole.hexdigest()) for lora, whole in zip(loras, sums, strict=True)
    ]


def _read(
    file: Path,
    weights: Weights | None,
    rule: RankRule,
    tick: Callable[[], None],
    placing: Placing,
    digest: Background,
) -> Lora:
    """One LoRA without its sha256, which the digest goes on counting."""
    found: dict[str, Converted] = {}
    with _opened(file) as (stream, raw):
        parsed = parse(raw.tensors)
        header = describe(file, raw, parsed)
        _refuse(header, parsed.duplicates, weights is not None)
        alphas = AdapterAlphas(file, raw.metadata)
        for name, parts in _modules(_tensors(placing(stream, file, raw.size), raw, digest), parsed):
            tick()
            down = parsed.modules[name].get("down")
            alphas.add_to(parts, None if down is None else parsed.names[down])
            found[name] = _converted(file, name, parts, weights, rule)
    ordered = {name: found[name] for name in parsed.modules}
    layers = {name: one.layer for name, one in ordered.items() if one.layer is not None}
    extras = {f"{name}.{part}": t for name, one in ordered.items() for part, t in one.extras.items()}
    nearly = tuple(one.approximation for one in ordered.values() if one.approximation is not None)
    about = (header.metadata, header.dialect, header.unknown, "", header.base)
    return Lora(file.stem, layers, *about, nearly, extras)


def _converted(
    file: Path, name: str, parts: Mapping[str, Tensor], weights: Weights | None, rule: RankRule
) -> Converted:
    if not is_plain(parts):
        return convert(file, name, parts, weights, rule)
    layer = _layer(file, name, {part: tensor for part, tensor in parts.items() if part in _PAIR})
    if "mid" in parts:
        check_result(file, layer)
    return Converted(layer, None, side_extras(file, name, parts, layer.out_features))


@contextmanager
def _opened(file: Path) -> Iterator[tuple[BufferedReader, RawHeader]]:
    """The open file, standing at its header's start again, and its checked header."""
    try:
        stream = file.open("rb")
    except OSError as error:
        raise unreadable(file, error) from error
    with stream:
        try:
            raw = read_header(stream, file)
            stream.seek(0)
        except OSError as error:
            raise unreadable(file, error) from error
        yield stream, raw


def _tensors(data: Data, raw: RawHeader, digest: Background) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in the file's order; the whole file goes by the digest."""
    ready = 0
    for key, entry in in_file_order(raw):
        begin, end = raw.data_start + entry.begin, raw.data_start + entry.end
        while ready < end:
            part = data.whole[ready : ready + CHUNK]
            data.make_ready(part)
            digest.update(part)
            ready += len(part)
        yield key, _tensor(data.whole[begin:end], entry)


def _modules(
    tensors: Iterable[tuple[str, Tensor]], parsed: ParsedKeys
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(canonical module, its tensors by part), each as soon as the last of them has been read."""
    places = {key: (name, part) for name, keys in parsed.modules.items() for part, key in keys.items()}
    waiting: dict[str, dict[str, Tensor]] = {name: {} for name in parsed.modules}
    for key, tensor in tensors:
        if key not in places:
            continue
        name, part = places[key]
        waiting[name][part] = tensor
        if len(waiting[name]) == len(parsed.modules[name]):
            yield name, waiting.pop(name)


def _refuse(header: LoraHeader, duplicates: tuple[tuple[str, str, str], ...], checkpoint: bool) -> None:
    """Everything that the header alone shows to be wrong."""
    require_sdxl(header, checkpoint=checkpoint)
    for module, first, second in duplicates:
        raise LoraFileError(
            f"{header.path.name} has layer {module} twice, as {first} and as {second}. "
            "Remove one of them, or save the LoRA again with its trainer."
        )
    if not header.layers:
        raise LoraFileError(
            f"{header.path.name} has no LoRA layer in it{_what_else(header)}. Choose a LoRA file."
        )


def _what_else(header: LoraHeader) -> str:
    keys = header.unknown
    if any(key.startswith(("model.diffusion_model.", "first_stage_model.", "conditioner.")) for key in keys):
        return ": it is a whole checkpoint"
    if any(key.startswith(("emb_params", "clip_l", "clip_g", "string_to_param")) for key in keys):
        return ": it is a textual inversion embedding"
    return f" (its first tensor is {keys[0]})" if keys else ""


def _tensor(data: memoryview, entry: TensorEntry) -> Tensor:
    dtype = DTYPES[entry.dtype]
    if not len(data):
        return torch.empty(entry.shape, dtype=dtype)
    bytes_ = torch.frombuffer(data, dtype=torch.uint8)
    if bytes_.data_ptr() % dtype.itemsize:
        bytes_ = bytes_.clone()
    tensor = bytes_.view(dtype).reshape(entry.shape)
    if dtype.itemsize == 1 and dtype.is_floating_point:
        return tensor.to(torch.float16)
    return tensor


def _layer(file: Path, name: str, parts: Mapping[str, Tensor]) -> LoraLayer:
    """One canonical layer of its tensors, or a LoraFileError that names it."""
    for part in ("down", "up"):
        if part not in parts:
            raise LoraFileError(
                f"{file.name}: layer {name} has no lora_{part}. Save it again with its trainer."
            )
    for part, tensor in parts.items():
        _check_numbers(file, name, part, tensor)
    down, up = _factors(file, name, parts["down"], parts["up"], parts.get("mid"))
    rank = down.shape[0]
    alpha = float(rank)
    if "scale" in parts:
        alpha = float(parts["scale"]) * rank
    elif "alpha" in parts:
        alpha = float(parts["alpha"]) * (rank / parts["down"].shape[0])
    return LoraLayer(name, down, up, alpha)


def _check_numbers(file: Path, name: str, part: str, tensor: Tensor) -> None:
    where = f"{file.name}: {part} of layer {name}"
    if part in ("alpha", "scale"):
        if tensor.numel() != 1:
            raise LoraFileError(
                f"{where} has {tensor.numel()} values instead of one. Save it again with its trainer."
            )
    elif not tensor.is_floating_point():
        raise LoraFileError(f"{where} is stored as {tensor.dtype}. Save it as fp16, bf16 or fp32.")
    elif tensor.ndim not in (2, 4) or not tensor.numel():
        shape = list(tensor.shape)
        raise LoraFileError(
            f"{where} has the shape {shape}, which no LoRA layer has. Save it again with its trainer."
        )
    if not is_finite(tensor):
        raise LoraFileError(
            f"{where} contains NaN or infinity: the training went wrong. Choose an earlier save of it."
        )


def _factors(file: Path, name: str, down: Tensor, up: Tensor, mid: Tensor | None) -> tuple[Tensor, Tensor]:
    """(down, up) in canonical shapes: 1x1 convolutions as matrices, ``mid`` folded into ``down``."""
    if up.ndim == 4:
        if up.shape[2:] != (1, 1):
            raise _mismatch(file, name, down, up)
        up = up.flatten(1)
    if mid is not None:
        numbers = mid.numel() // mid.shape[1] * down.shape[1]
        fits = mid.ndim == 4 and down.shape[2:] in ((), (1, 1)) and mid.shape[1] == down.shape[0]
        if not fits or numbers > largest_weight(name):
            raise _mismatch(file, name, down, mid)
        down = torch.einsum("nmkl,mj->njkl", mid.float(), down.flatten(1).float())
    if down.shape[2:] == (1, 1):
        down = down.flatten(1)
    if up.shape[1] != down.shape[0]:
        raise _mismatch(file, name, down, up)
    return down, up


def _mismatch(file: Path, name: str, down: Tensor, other: Tensor) -> LoraFileError:
    return LoraFileError(
        f"{file.name}: the tensors of layer {name} don't fit each other "
        f"({list(down.shape)} and {list(other.shape)}). Save it again with its trainer."
    )
