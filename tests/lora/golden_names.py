"""How trainers and tools name a module's tensors, and which modules they train: the pieces of the golden layouts.

A docstring names the code that a function follows where its layout doesn't say it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

from .sdxl_names import Module, text_modules, unet_modules

RANK = 16
PLACES = ("input_blocks.4.1", "middle_block.1", "output_blocks.0.1", "output_blocks.5.1")
BLOCKS = ("input_blocks.4.0", "middle_block.0", "output_blocks.8.0")
BOTH_LAYERS = {1: ("layers.0.", "layers.11."), 2: ("layers.0.", "layers.31.")}

Shapes = dict[str, list[int]]
Naming = Callable[[Module, str], str]
Form = Callable[[str, tuple[int, ...]], Shapes]


@dataclass(frozen=True)
class Layout:
    """One trainer's way: where its naming code is, and what our reader should find."""

    name: str
    source: str
    dialect: str
    modules: list[tuple[Module, str]]
    naming: Naming
    form: Form
    families: tuple[str, ...] = ()
    stray: Shapes = field(default_factory=dict)

    def tensors(self) -> Shapes:
        found: Shapes = {}
        for module, section in self.modules:
            found |= self.form(self.naming(module, section), module.shape)
        return found | self.stray


def chosen(module: Module) -> bool:
    """The part of the UNet that the lists hold."""
    attention = module.sgm.startswith(PLACES) and (
        "transformer_blocks" not in module.sgm or "blocks.0." in module.sgm
    )
    return attention or module.sgm.startswith(BLOCKS) or module.sgm in OTHER_PLACES


OTHER_PLACES = (
    "input_blocks.0.0",
    "time_embed.0",
    "label_emb.0.2",
    "input_blocks.3.0.op",
    "output_blocks.2.2.conv",
    "out.2",
)


def is_attention(module: Module) -> bool:
    return module.sgm.startswith(PLACES)


def is_cross(module: Module) -> bool:
    return ".attn2." in module.sgm


def is_projection(module: Module) -> bool:
    return ".attn1.to_" in module.sgm or ".attn2.to_" in module.sgm


def is_resnet(module: Module) -> bool:
    return module.sgm.startswith(BLOCKS) or module.sgm.endswith((".op", ".conv"))


def unet(*wanted: Callable[[Module], bool]) -> list[tuple[Module, str]]:
    return [(m, "unet") for m in unet_modules() if chosen(m) and any(test(m) for test in wanted)]


def text(encoder: int, *parts: str) -> list[tuple[Module, str]]:
    found = [m for m in text_modules(encoder) if any(layer in m.sgm for layer in BOTH_LAYERS[encoder])]
    return [(m, f"te{encoder}") for m in found if not parts or any(part in m.sgm for part in parts)]


def both_texts(*parts: str) -> list[tuple[Module, str]]:
    return text(1, *parts) + text(2, *parts)


def kohya(module: Module, section: str) -> str:
    return f"lora_{section}_{module.sgm.replace('.', '_')}"


def kohya_diffusers(module: Module, section: str) -> str:
    return f"lora_{section}_{module.diffusers.replace('.', '_')}"


def kohya_oft(module: Module, section: str) -> str:
    return f"oft_{section}_{module.sgm.replace('.', '_')}"


def lycoris(module: Module, section: str) -> str:
    return f"lycoris_{module.diffusers.replace('.', '_')}"


def dotted(module: Module, section: str) -> str:
    return f"{ {'unet': 'unet', 'te1': 'text_encoder', 'te2': 'text_encoder_2'}[section] }.{module.diffusers}"


def processors(module: Module, section: str) -> str:
    """Old diffusers: the LoRA belongs to the attention's processor, and to_out.0 is to_out."""
    if section != "unet":
        return dotted(module, section)
    head, _, tail = f"unet.{module.diffusers}".rpartition(".to_")
    return f"{head}.processor.to_{tail.removesuffix('.0')}"


def peft_unet(module: Module, section: str) -> str:
    return f"base_model.model.{module.diffusers}"


def comfy(module: Module, section: str) -> str:
    """OneTrainer StableDiffusionXLModel.lora_text_encoders names the text encoders so."""
    if section == "unet":
        return f"diffusion_model.{module.sgm}"
    return f"text_encoders.clip_{'l' if section == 'te1' else 'g'}.transformer.{module.sgm}"


def omi(module: Module, section: str) -> str:
    """OneTrainer's former modules/util/convert/lora/convert_sdxl_lora.py."""
    return f"{ {'unet': 'unet', 'te1': 'clip_l', 'te2': 'clip_g'}[section] }.{module.sgm}"


def sgm(module: Module, section: str) -> str:
    return module.sgm


def peft_text(module: Module, section: str) -> str:
    return f"base_model.model.{module.sgm}"


def bare(module: Module, section: str) -> str:
    return module.diffusers


def pair(down: str, up: str, *, alpha: bool, pointwise: bool = True) -> Form:
    def form(name: str, shape: tuple[int, ...]) -> Shapes:
        ones = [1] * (len(shape) - 2) if pointwise else []
        tensors = {f"{name}.{down}": [RANK, *shape[1:]], f"{name}.{up}": [shape[0], RANK, *ones]}
        return tensors | ({f"{name}.alpha": []} if alpha else {})

    return form


plain = pair("lora_down.weight", "lora_up.weight", alpha=True)


a_b = pair("lora_A.weight", "lora_B.weight", alpha=False)
a_b_alpha = pair("lora_A.weight", "lora_B.weight", alpha=True)
a_b_named = pair("lora_A.default.weight", "lora_B.default.weight", alpha=False)
without_alpha = pair("lora_down.weight", "lora_up.weight", alpha=False)


def a_b_magnitude(name: str, shape: tuple[int, ...]) -> Shapes:
    """OneTrainer convert_lora_suffix_ab with peft_convention: alpha is folded in, one magnitude an output."""
    return a_b(name, shape) | {f"{name}.lora_magnitude_vector.weight": [shape[0]]}


def with_dora(name: str, shape: tuple[int, ...]) -> Shapes:
    return plain(name, shape) | {f"{name}.dora_scale": [1, *shape[1:2], *[1] * (len(shape) - 2)]}


def tucker(name: str, shape: tuple[int, ...]) -> Shapes:
    if shape[2:] in ((), (1, 1)):
        return plain(name, shape)
    down, up = [RANK, shape[1], 1, 1], [shape[0], RANK, 1, 1]
    names = {"lora_down": down, "lora_up": up, "lora_mid": [RANK, RANK, *shape[2:]]}
    return {f"{name}.{part}.weight": size for part, size in names.items()} | {f"{name}.alpha": []}


def loha(name: str, shape: tuple[int, ...]) -> Shapes:
    columns = prod(shape[1:])
    halves = {
        f"{name}.hada_w{n}_{p}": s for n in "12" for p, s in (("a", [shape[0], 8]), ("b", [8, columns]))
    }
    return halves | {f"{name}.alpha": []}


def lokr(name: str, shape: tuple[int, ...]) -> Shapes:
    """factor 8, full second matrix where it is small, factorised otherwise."""
    a, c = (4 if size % 8 else 8 for size in shape[:2])
    second = [shape[0] // a, shape[1] // c]
    if max(second) > 200 and len(shape) == 2:
        halves = {f"{name}.lokr_w2_a": [second[0], RANK], f"{name}.lokr_w2_b": [RANK, second[1]]}
    else:
        halves = {f"{name}.lokr_w2": [*second, *shape[2:]]}
    return {f"{name}.lokr_w1": [a, c], **halves, f"{name}.alpha": []}


def full(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.diff": list(shape), f"{name}.diff_b": [shape[0]]}


def ia3(name: str, shape: tuple[int, ...]) -> Shapes:
    on_input = name.endswith("ff_net_2")
    return {f"{name}.weight": [shape[1] if on_input else shape[0]], f"{name}.on_input": []}


def glora(name: str, shape: tuple[int, ...]) -> Shapes:
    factors = {"a1": [shape[1], RANK], "a2": [RANK, shape[1]], "b1": [shape[0], RANK], "b2": [RANK, shape[1]]}
    return {f"{name}.{part}.weight": size for part, size in factors.items()} | {f"{name}.alpha": []}


def oft(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.oft_blocks": [4, shape[0] // 4, shape[0] // 4], f"{name}.alpha": []}


def old_processor(name: str, shape: tuple[int, ...]) -> Shapes:
    middle = "lora_linear_layer." if name.startswith("text") else "_lora."
    joint = "." if middle.startswith("lora") else ""
    return {
        f"{name}{joint}{middle}down.weight": [RANK, shape[1]],
        f"{name}{joint}{middle}up.weight": [shape[0], RANK],
    }


def new_diffusers(name: str, shape: tuple[int, ...]) -> Shapes:
    text_names = pair("lora_linear_layer.down.weight", "lora_linear_layer.up.weight", alpha=False)
    unet_names = pair("lora.down.weight", "lora.up.weight", alpha=False)
    return (text_names if name.startswith("text") else unet_names)(name, shape)
