"""Tensor names of every dialect <-> canonical module names.

A tensor's name is a lead (who wrote it), a section (which model), a path (which module) and a part
(which tensor of the module's low-rank pair, or of another family). Each is one table; a name
that the tables don't know is reported, never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from torch import Tensor, nn

from .families import FAMILIES
from .sdxl import is_norm, text_paths, unet_paths

# Who wrote the name. The first that fits counts.
LEADS = {
    "lora_": "kohya",
    "oft_": "kohya",
    "lycoris_": "lycoris",
    "base_model_model_": "peft",
    "": "diffusers",
}

# What PEFT puts before the path of the model that it wraps; also after the section: unet.base_model.model.
WRAPPER = "base_model.model."
# The same in a path, and what distributed training puts there.
WRAPPERS = ("base_model_model_", "module_")

# Which model the rest of the name belongs to. The first that fits counts.
SECTIONS = {
    "unet_": "unet",
    "te1_": "te1",
    "te2_": "te2",
    "te_": "te",
    "text_encoder_2_": "te2",
    "text_encoder_": "te1",
    # ComfyUI's names, as OneTrainer writes them, and those of its own OMI layout.
    "text_encoders_clip_l_transformer_": "te1",
    "text_encoders_clip_g_transformer_": "te2",
    "text_encoders_clip_l_": "te1",
    "text_encoders_clip_g_": "te2",
    "clip_l_": "te1",
    "clip_g_": "te2",
    "model_diffusion_model_": "unet",
    "diffusion_model_": "unet",
    "text_model_": "text_model",
    "encoder_layers_": "text_model",
    "text_projection": "text_model",
    "": "unet",
}

# Tensors of a low-rank pair.
LOW_RANK_PARTS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A": "down",
    "lora_B": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
    "scale": "scale",
}

# Tensors that only other families have -> the family.
FAMILY_PARTS = {tail: name for name, family in FAMILIES.items() for tail in family.tails}

# Tensors of a module itself: a checkpoint, or (IA)3 beside its on_input.
MODULE_PARTS = {"weight": "weight", "bias": "bias"}

PARTS = {**LOW_RANK_PARTS, **FAMILY_PARTS, **MODULE_PARTS}

# ComfyUI and LyCORIS write the differences of norm layers as those of any other layer.
NORM_PARTS = {"diff": "w_norm", "diff_b": "b_norm"}

# Tails that several trainers spell differently -> one part.
PART_NAMES = {
    **LOW_RANK_PARTS,
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector": "magnitude",  # and ai-toolkit's own word, magnitude
    "lora_B.bias": "up_bias",
    "lora_up.bias": "up_bias",
}

UNKNOWN = "unknown"
"""The family of a tensor that belongs to a layer of SDXL, but is of a kind that no table has."""

# Parts that PEFT writes with an adapter's name inside: lora_A.default.weight.
ADAPTER_PARTS = frozenset(("lora_A", "lora_B", "lora_magnitude_vector"))

# Old diffusers: attn1.processor.to_q_lora.down.weight; torch.compile, FSDP.
REWRITES = (
    (".processor.", "."),
    ("_lora.down.", ".lora.down."),
    ("_lora.up.", ".lora.up."),
    ("_orig_mod.", ""),
    ("_fsdp_wrapped_module.", ""),
)


@dataclass(frozen=True)
class TensorName:
    """One tensor's name, taken apart.

    Attributes:
        dialect: ``kohya``, ``kohya-diffusers``, ``lycoris``, ``peft`` or ``diffusers``.
        section: ``unet``, ``te1``, ``te2`` or ``te`` (the only text encoder of an older model).
        path: the module's path as the file has it, with underscores.
        module: the canonical module name, or None when SDXL has no such module.
        part: the tensor's place in its module, as in ``PART_NAMES``, or the tail of another
            family's name; None when no table has it.
        family: ``lora``, ``module``, one of the other families, ``unknown`` (of a layer that SDXL has), or None.
        dotted: the module's path as PEFT knows it, with dots.
        adapter: the adapter's name, where a name has one.
    """

    dialect: str
    section: str
    path: str
    module: str | None
    part: str | None
    family: str | None
    dotted: str = ""
    adapter: str = ""


@dataclass(frozen=True)
class ParsedKeys:
    """All tensor names of a file, sorted by module.

    Attributes:
        modules: canonical module name -> {part: tensor name}, of every family.
        dialect: the most frequent dialect among them.
        names: tensor name -> its pieces.
        families: other family -> first tensor name that shows it.
        unknown: tensor names that belong to no layer we know.
        duplicates: (canonical module, tensor name, tensor name) said twice in different words.
        starts: section (``unet``, ``te1``, ``te2``) -> ``AdapterConfig.start``.
    """

    modules: Mapping[str, Mapping[str, str]]
    dialect: str
    names: Mapping[str, TensorName]
    families: Mapping[str, str]
    unknown: tuple[str, ...]
    duplicates: tuple[tuple[str, str, str], ...]
    starts: Mapping[str, str] = field(default_factory=dict)

    def start(self, module: str) -> str:
        """How a module's adapter began where that has changed the checkpoint's weights, or ""."""
        return self.starts.get(module.split("_", 2)[1], "")


def canonical_unet_name(module_path: str) -> str | None:
    """Canonical name of a UNet module's path, or None when SDXL's UNet has no such module.

    Args:
        module_path: in sgm's or diffusers' naming, with dots or underscores, without a prefix.
    """
    path = module_path.replace(".", "_")
    sgm, diffusers = unet_paths()
    canonical = sgm.get(path) or diffusers.get(path)
    return None if canonical is None else f"lora_unet_{canonical}"


def canonical_text_name(module_path: str, encoder: int) -> str | None:
    """Canonical name of a text encoder module's path, or None when SDXL has no such module.

    Args:
        module_path: in transformers' naming, ``text_model.encoder.layers.0.self_attn.q_proj``,
            with dots or underscores.
        encoder: 1 or 2.
    """
    canonical = text_paths(encoder).get(module_path.replace(".", "_"))
    return None if canonical is None else f"lora_te{encoder}_{canonical}"


def canonical_modules(unet: nn.Module) -> dict[str, nn.Module]:
    """The submodules that a LoRA can change, by canonical name.

    They are told by their weight (2 or 4 dimensions), not by their class: some hosts' linear
    layers are no ``nn.Linear``.
    """
    modules = {}
    for path, module in unet.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim in (2, 4):
            name = canonical_unet_name(path)
            if name is not None:
                modules[name] = module
    return modules


@lru_cache(maxsize=65536)
def parse_key(key: str, text_encoder: int = 1) -> TensorName:
    """Take one tensor name apart. Cached: a folder of LoRAs has the same names over and over.

    Args:
        key: the name.
        text_encoder: which one is meant by a name that leaves it open.
    """
    for old, new in REWRITES:
        key = key.replace(old, new)
    owner, tail, adapter = _split_part(key)
    place = _place(owner, text_encoder)
    family = _family(tail)
    pieces = key.split(".")
    for count in range(1, min(4, len(pieces))) if place.module is None else ():
        other = _place(".".join(pieces[:-count]), text_encoder)
        if other.module is not None:
            place, tail, family = other, ".".join(pieces[-count:]), UNKNOWN
    part = PART_NAMES.get(tail, tail) if tail else None
    if part in NORM_PARTS and place.module is not None and is_norm(place.module):
        part, family = NORM_PARTS[part], "norm"
    return replace(place, part=part, family=family, adapter=adapter)


def _place(owner: str, text_encoder: int) -> TensorName:
    """Which module a tensor belongs to, by what stands before its part."""
    path = owner.replace(".", "_")
    lead = next(lead for lead in LEADS if path.startswith(lead))
    dialect = "peft" if WRAPPER in owner else LEADS[lead]
    path = _unwrapped(path[len(lead) :])
    prefix = next(prefix for prefix in SECTIONS if path.startswith(prefix))
    section = SECTIONS[prefix]
    if section == "text_model":
        section = "te1"
    else:
        path = _unwrapped(path[len(prefix) :])
    if section != "unet" and text_encoder == 2:
        section = "te2"
    if dialect == "kohya" and section == "unet" and path in unet_paths()[1]:
        dialect = "kohya-diffusers"
    dotted = owner.rpartition(WRAPPER)[2] if WRAPPER in owner else owner[len(owner) - len(path) :]
    return TensorName(dialect, section, path, _canonical(section, path), None, None, dotted)


def _unwrapped(path: str) -> str:
    while found := next((wrapper for wrapper in WRAPPERS if path.startswith(wrapper)), ""):
        path = path[len(found) :]
    return path


def parse(keys: Iterable[str], text_encoder: int = 1) -> ParsedKeys:
    """Sort a file's tensor names by module, and say which are unknown or said twice.

    Args:
        keys: the names.
        text_encoder: which one is meant where a name leaves it open, as PEFT's do (see ``sole_text_encoder``).
    """
    names = {key: parse_key(key, text_encoder) for key in keys}
    scaled_inputs = {name.module for name in names.values() if name.part == "on_input"}
    modules: dict[str, dict[str, str]] = {}
    families: dict[str, str] = {}
    unknown: list[str] = []
    duplicates: list[tuple[str, str, str]] = []
    dialects: Counter[str] = Counter()
    for key, name in names.items():
        stray = name.family == "module" and (name.part == "bias" or name.module not in scaled_inputs)
        if name.family not in ("lora", None) and (name.family != "module" or (stray and name.module)):
            families.setdefault(str(name.family), key)
        if name.module is None or name.part is None or stray or name.family == UNKNOWN:
            unknown.append(key)
            continue
        dialects[name.dialect] += 1000 if name.section == "unet" else 1
        parts = modules.setdefault(name.module, {})
        if name.part in parts:
            duplicates.append((name.module, parts[name.part], key))
        parts.setdefault(name.part, key)
    dialect = dialects.most_common(1)[0][0] if dialects else "unknown"
    return ParsedKeys(modules, dialect, names, families, tuple(unknown), tuple(duplicates))


def _canonical(section: str, path: str) -> str | None:
    if section == "unet":
        return canonical_unet_name(path)
    return canonical_text_name(path, 2 if section == "te2" else 1)


def _family(tail: str) -> str | None:
    if tail in LOW_RANK_PARTS:
        return "lora"
    return "module" if tail in MODULE_PARTS else FAMILY_PARTS.get(tail)


def _split_part(key: str) -> tuple[str, str, str]:
    """(module path, tail, adapter's name) of a tensor name; the tail is "" when no table has it."""
    pieces = key.rsplit(".", 3)
    if len(pieces) == 4 and pieces[1] in ADAPTER_PARTS and pieces[3] in ("weight", "bias"):
        return pieces[0], f"{pieces[1]}.{pieces[3]}", pieces[2]
    for count in (3, 2, 1):
        tail = ".".join(pieces[-count:])
        if len(pieces) > count and tail in PARTS:
            return key[: -len(tail) - 1], tail, ""
    owner, _, adapter = key.rpartition(".")
    family_tail = owner.rpartition(".")[2]
    if (
        family_tail in FAMILY_PARTS or family_tail in ADAPTER_PARTS
    ):  # hada_w1_a.default, lora_magnitude_vector.default
        return owner[: -len(family_tail) - 1], family_tail, adapter
    return key, "", ""
