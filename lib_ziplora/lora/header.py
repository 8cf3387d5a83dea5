"""What a LoRA file is, judged by its header alone: base model, family, dialect, ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnsupportedLoraError
from .bases import BASE_NAMES, detect_base
from .container import RawHeader, read_header, unreadable
from .keys import ParsedKeys, parse

FAMILY_NAMES = {
    "dora": "DoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "ia3": "(IA)3",
    "full": "a full difference",
    "norm": "trained norm layers",
    "glora": "GLoRA",
    "oft": "OFT",
    "lora-bias": "LoRA with biases",
}


@dataclass(frozen=True)
class LoraHeader:
    """What a LoRA file is, judged by its header alone.

    Attributes:
        path: the file.
        size: of the file, bytes.
        dialect: the naming, as in ``Lora``.
        base: ``sdxl``, ``sd1``, ``sd2``, ``sd3``, ``flux``, ... or ``unknown``.
        families: other families than LoRA in it -> the first tensor that shows it.
        ranks: the distinct ranks, ascending.
        unet_layers: number of low-rank layers of the UNet.
        text_layers: number of low-rank layers of the text encoders.
        unknown: tensor names that belong to no layer we know.
        metadata: the header's strings.
    """

    path: Path
    size: int
    dialect: str
    base: str
    families: Mapping[str, str]
    ranks: tuple[int, ...]
    unet_layers: int
    text_layers: int
    unknown: tuple[str, ...]
    metadata: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def layers(self) -> int:
        return self.unet_layers + self.text_layers

    @property
    def rank(self) -> int:
        """The highest rank, 0 without layers."""
        return max(self.ranks, default=0)

    @property
    def family(self) -> str:
        """``lora``, another family, or several joined with ``+``."""
        own = ["lora"] if self.layers else []
        return "+".join(own + sorted(self.families)) or "none"


def inspect_header(path: str | os.PathLike[str]) -> LoraHeader:
    """Judge a file by its header; no tensor data is read.

    Raises:
        LoraFileError: not a whole safetensors file.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            raw = read_header(stream, file)
    except OSError as error:
        raise unreadable(file, error) from error
    return describe(file, raw, parse(raw.tensors))


def describe(file: Path, raw: RawHeader, parsed: ParsedKeys) -> LoraHeader:
    """The summary of a header whose tensor names have been parsed."""
    shapes = {key: entry.shape for key, entry in raw.tensors.items()}
    downs = [parts["down"] for parts in parsed.modules.values() if "down" in parts]
    unet = sum(name.startswith("lora_unet_") for name in parsed.modules)
    return LoraHeader(
        path=file,
        size=raw.size,
        dialect=parsed.dialect,
        base=detect_base(parsed, shapes),
        families=parsed.families,
        ranks=tuple(sorted({shapes[key][0] for key in downs if shapes[key]})),
        unet_layers=unet,
        text_layers=len(parsed.modules) - unet,
        unknown=parsed.unknown,
        metadata=raw.metadata,
    )


def unsupported_reason(header: LoraHeader) -> str:
    """Why a readable file can't be merged, as a sentence that says what to do; "" when it can."""
    name = header.path.name
    if header.base != "sdxl" and (header.base != "unknown" or header.layers or _has_pairs(header)):
        return (
            f"{name} is a LoRA for {BASE_NAMES[header.base]}, not for Stable Diffusion XL. "
            "Choose a LoRA that was trained on an SDXL model."
        )
    for family, tensor in header.families.items():
        return (
            f"{name} is or contains {FAMILY_NAMES[family]} (first seen at {tensor}), which can't be merged yet. "
            "Choose a plain LoRA or LoCon, or convert it to one."
        )
    return ""


def require_sdxl(header: LoraHeader) -> None:
    """Refuse what is not a plain low-rank LoRA of SDXL.

    Raises:
        UnsupportedLoraError: another base model or another family; the sentence names both.
    """
    reason = unsupported_reason(header)
    if reason:
        raise UnsupportedLoraError(reason)


def _has_pairs(header: LoraHeader) -> bool:
    return any(".lora_" in key or ".lora." in key for key in header.unknown)
