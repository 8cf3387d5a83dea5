"""What a LoRA file is, judged by its header and PEFT's configuration alone: base model, family, dialect, ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...errors import UnsupportedLoraError
from ..formats.base_models import BASE_NAMES, detect_base, sole_text_encoder
from ..formats.families import FAMILIES, MAGNITUDES, RANK_PARTS, family_of, needs_weight
from ..formats.keys import ParsedKeys, parse
from ..formats.peft_config import SIDECAR, STARTS, AdapterConfigs
from .container import RawHeader, header_of
from .embeddings import BUNDLE

TEXT_ENCODER_2 = "text_encoder_2"


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
        relative: ``unet`` and ``te``, where their layers can't be read without the checkpoint's weights -> the first
            such family and the tensor that shows it.
        problem: why its adapter or PEFT configuration keeps it from being merged, as half a sentence, or "".
        remarks: sentences about what is in it and is taken otherwise than its tensors alone would say.
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
    relative: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    problem: str = ""
    remarks: tuple[str, ...] = ()

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

    def relative_family(self, text: bool = True) -> str:
        """A family in it that needs the checkpoint's weight to be read, or "".

        Args:
            text: whether its text encoder layers are wanted.
        """
        return next((family for kind, (family, _) in self.relative.items() if text or kind == "unet"), "")


def inspect_header(path: str | os.PathLike[str]) -> LoraHeader:
    """Judge a file by its header; no tensor data is read.

    Raises:
        LoraFileError: not a whole safetensors file.
    """
    file = Path(path)
    raw = header_of(file)
    return describe(file, raw, parse_header(file, raw))


def parse_header(file: Path, raw: RawHeader) -> ParsedKeys:
    """The tensor names of a file, with what its folder and its PEFT configuration say of them."""
    configs = AdapterConfigs(file, raw.metadata)
    shapes = {key: entry.shape for key, entry in raw.tensors.items()}
    named = TEXT_ENCODER_2 in file.parent.name or TEXT_ENCODER_2 in file.stem
    encoder = sole_text_encoder(shapes, named or configs.beside.text_encoder_2)
    parsed = parse(shapes, encoder)
    starts = {name.section: configs.of(name).start for name in parsed.names.values() if name.module}
    return replace(parsed, starts={section: start for section, start in starts.items() if start in STARTS})


def describe(file: Path, raw: RawHeader, parsed: ParsedKeys) -> LoraHeader:
    """The summary of a header whose tensor names have been parsed."""
    shapes = {key: entry.shape for key, entry in raw.tensors.items()}
    ranked = [parts[part] for parts in parsed.modules.values() for part in RANK_PARTS if part in parts]
    unet = sum(name.startswith("lora_unet_") for name in parsed.modules)
    relative: dict[str, tuple[str, str]] = {}
    for name, parts in parsed.modules.items():
        family = parsed.start(name) or needs_weight(parts)
        if family:
            first = next((parts[part] for part in parts if part in MAGNITUDES), next(iter(parts.values())))
            relative.setdefault("unet" if name.startswith("lora_unet_") else "te", (family, first))
    configs = AdapterConfigs(file, raw.metadata).every(parsed.names.values())
    kinds = {kind for parts in parsed.modules.values() if (kind := family_of(parts))}
    magnitudes = any(MAGNITUDES & parts.keys() for parts in parsed.modules.values())
    return LoraHeader(
        path=file,
        size=raw.size,
        dialect=parsed.dialect,
        base=detect_base(parsed, shapes),
        families={**parsed.families, **dict(relative.values())},
        ranks=tuple(sorted({shapes[key][0] for key in ranked if shapes[key]})),
        unet_layers=unet,
        text_layers=len(parsed.modules) - unet,
        unknown=parsed.unknown,
        metadata=raw.metadata,
        plain_layers=sum("down" in parts or "up" in parts for parts in parsed.modules.values()),
        relative=relative,
        problem=_several_adapters(parsed)
        or next((problem for config in configs if (problem := config.problem(kinds, magnitudes))), ""),
        remarks=tuple(
            f"{file.stem}: {remark}" for remark in _remarks(parsed, shapes, any(c.values for c in configs))
        ),
    )


def _several_adapters(parsed: ParsedKeys) -> str:
    """That one model's layers belong to several adapters, and what to do; "" where they don't."""
    owners = {(name.section, name.adapter) for name in parsed.names.values() if name.module and name.adapter}
    sections = [section for section, _ in owners]
    several = sorted(adapter for section, adapter in owners if sections.count(section) > 1)
    if not several:
        return ""
    return (
        f"it holds several adapters ({' and '.join(several)}). Save the one that you want with PEFT's "
        "save_pretrained(selected_adapters=...)"
    )


def _remarks(parsed: ParsedKeys, shapes: Mapping[str, tuple[int, ...]], configured: bool) -> Iterator[str]:
    """What people should know of a file's tensors, without its name."""
    every = set().union(*parsed.modules.values())
    if every & MAGNITUDES:
        scales = [shapes[parts["dora_scale"]] for parts in parsed.modules.values() if "dora_scale" in parts]
        if "magnitude" in every or any(shape and shape[0] == math.prod(shape) > 1 for shape in scales):
            yield (
                "it is DoRA with one magnitude for every output, which is merged as it was trained. Automatic1111 and "
                "the Forges read such files otherwise, so what they draw with the original is not what was trained."
            )
    for start in sorted(set(parsed.starts.values())):
        yield (
            f"it began as {FAMILIES[start].label}, so it is relative to the checkpoint "
            "that it was trained on; with another one chosen it will be something else."
        )
    if parsed.dialect == "peft" and not configured and not every & {"alpha", "scale"}:
        yield (
            f"PEFT's {SIDECAR} is not beside it, so its alpha is not known and taken to be its rank. Where it was "
            "trained with another, put that file there or change the weight."
        )
    others = [key for key in parsed.unknown if not key.startswith(BUNDLE)]
    if others:
        yield (
            f"tensors of none of the layers that a LoRA of SDXL changes are left out ({len(others)} of them; the first "
            f"is {others[0]})."
        )


def unsupported_reason(header: LoraHeader, *, checkpoint: bool = True, text: bool = True) -> str:
    """Why a readable file can't be merged, as a sentence that says what to do; "" when it can.

    Args:
        header: of the file.
        checkpoint: whether the checkpoint's weights are at hand, which some families need.
        text: whether its text encoder layers are wanted.
    """
    name = header.path.name
    if header.base != "sdxl" and (header.base != "unknown" or header.layers or _has_pairs(header)):
        return (
            f"{name} is a LoRA for {BASE_NAMES[header.base]}, not for Stable Diffusion XL. "
            "Choose a LoRA that was trained on an SDXL model."
        )
    for family, tensor in header.families.items():
        row = FAMILIES[family]
        if row.refused and (header.layers or family != "module"):
            return (
                f"{name} is or contains {row.label} (first seen at {tensor}), which can't be merged: {row.refused}. "
                "Choose a LoRA of another kind, or convert it to a plain one."
            )
    if header.problem:
        return f"{name} can't be merged: {header.problem}."
    family = header.relative_family(text)
    if family and not checkpoint:
        seen = f"{FAMILIES[family].label} (first seen at {header.families[family]})"
        return (
            f"{name} is or contains {seen}, which changes the checkpoint's own weights and can't be read without "
            "them. Choose a checkpoint (--checkpoint on the command line), or convert the file to a plain LoRA."
        )
    return ""


def require_sdxl(header: LoraHeader, *, checkpoint: bool = True, text: bool = True) -> None:
    """Refuse what is not a LoRA of SDXL that can be read.

    Raises:
        UnsupportedLoraError: another base model, or a family that can't be read; the sentence
            names both.
    """
    reason = unsupported_reason(header, checkpoint=checkpoint, text=text)
    if reason:
        raise UnsupportedLoraError(reason)


def _has_pairs(header: LoraHeader) -> bool:
    return any(".lora_" in key or ".lora." in key for key in header.unknown)
