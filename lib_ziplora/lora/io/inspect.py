"""What a LoRA file is, judged by its header alone: base model, family, dialect, ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import UnsupportedLoraError
from ..formats.base_models import BASE_NAMES, detect_base
from ..formats.families import FAMILIES, RANK_PARTS, RELATIVE
from ..formats.keys import ParsedKeys, parse
from .container import RawHeader, header_of


@dataclass(frozen=True)
class LoraHeader:
    """What a LoRA file is, judged by its header alone.

    Attributes:
        path: the file.
        size: of the file, bytes.
        dialect: the naming, as in ``Lora``.
        base: ``sdxl``, ``sd1``, ``sd2``, ``sd3``, ``flux``, ... or ``unknown``.
        families: other families than LoRA in it -> the first tensor that shows it.
        ranks: the distinct ranks, ascending, as the families themselves count them.
        unet_layers: number of layers of the UNet, of any family.
        text_layers: number of layers of the text encoders.
        unknown: tensor names that belong to no layer we know.
        metadata: the header's strings.
        plain_layers: number of layers that have a low-rank pair.
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
    plain_layers: int = 0

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
        own = ["lora"] if self.plain_layers else []
        return "+".join(own + sorted(self.families)) or "none"

    @property
    def relative_family(self) -> str:
        """A family in it that needs the checkpoint's weight to be read, or ""."""
        return next((family for family in self.families if family in RELATIVE), "")


def inspect_header(path: str | os.PathLike[str]) -> LoraHeader:
    """Judge a file by its header; no tensor data is read.

    Raises:
        LoraFileError: not a whole safetensors file.
    """
    file = Path(path)
    raw = header_of(file)
    return describe(file, raw, parse(raw.tensors))


def describe(file: Path, raw: RawHeader, parsed: ParsedKeys) -> LoraHeader:
    """The summary of a header whose tensor names have been parsed."""
    shapes = {key: entry.shape for key, entry in raw.tensors.items()}
    ranked = [parts[part] for parts in parsed.modules.values() for part in RANK_PARTS if part in parts]
    unet = sum(name.startswith("lora_unet_") for name in parsed.modules)
    return LoraHeader(
        path=file,
        size=raw.size,
        dialect=parsed.dialect,
        base=detect_base(parsed, shapes),
        families=parsed.families,
        ranks=tuple(sorted({shapes[key][0] for key in ranked if shapes[key]})),
        unet_layers=unet,
        text_layers=len(parsed.modules) - unet,
        unknown=parsed.unknown,
        metadata=raw.metadata,
        plain_layers=sum("down" in parts or "up" in parts for parts in parsed.modules.values()),
    )


def unsupported_reason(header: LoraHeader, *, checkpoint: bool = True) -> str:
    """Why a readable file can't be merged, as a sentence that says what to do; "" when it can.

    Args:
        header: of the file.
        checkpoint: whether the checkpoint's weights are at hand, which some families need.
    """
    name = header.path.name
    if header.base != "sdxl" and (header.base != "unknown" or header.layers or _has_pairs(header)):
        return (
            f"{name} is a LoRA for {BASE_NAMES[header.base]}, not for Stable Diffusion XL. "
            "Choose a LoRA that was trained on an SDXL model."
        )
    for family, tensor in header.families.items():
        if FAMILIES[family].refused:
            return (
                f"{name} is or contains {FAMILIES[family].label} (first seen at {tensor}), which can't be merged. "
                "Choose a LoRA of another kind, or convert it to a plain one."
            )
        if family in RELATIVE and not checkpoint:
            return (
                f"{name} is or contains {FAMILIES[family].label} (first seen at {tensor}), which changes the "
                "checkpoint's own weights and can't be read without them. Choose a checkpoint "
                "(--checkpoint on the command line), or convert the file to a plain LoRA."
            )
    return ""


def require_sdxl(header: LoraHeader, *, checkpoint: bool = True) -> None:
    """Refuse what is not a LoRA of SDXL that can be read.

    Raises:
        UnsupportedLoraError: another base model, or a family that can't be read; the sentence
            names both.
    """
    reason = unsupported_reason(header, checkpoint=checkpoint)
    if reason:
        raise UnsupportedLoraError(reason)


def _has_pairs(header: LoraHeader) -> bool:
    return any(".lora_" in key or ".lora." in key for key in header.unknown)
