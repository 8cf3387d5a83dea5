"""Key lists as trainers and tools write them: names and shapes, no weights.

Each layout follows the naming code of its trainer. The lists in ``golden/`` hold a part of SDXL's
modules (one transformer block of some places, some residual blocks, the first and last text
layer), which has every kind of name. Written anew by ``python -m tests.lora.golden_layouts``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .sdxl_names import Module, text_modules, unet_modules

FOLDER = Path(__file__).parent / "golden"
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

    source: str
    dialect: str
    families: list[str]
    modules: list[tuple[Module, str]]
    naming: Naming
    form: Form
    stray: Shapes


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
    return f"diffusion_model.{module.sgm}"


def bare(module: Module, section: str) -> str:
    return module.diffusers


def pair(down: str, up: str, *, alpha: bool, pointwise: bool = True) -> Form:
    def form(name: str, shape: tuple[int, ...]) -> Shapes:
        ones = [1] * (len(shape) - 2) if pointwise else []
        tensors = {f"{name}.{down}": [RANK, *shape[1:]], f"{name}.{up}": [shape[0], RANK, *ones]}
        return tensors | ({f"{name}.alpha": []} if alpha else {})

    return form


plain = pair("lora_down.weight", "lora_up.weight", alpha=True)


def with_dora(name: str, shape: tuple[int, ...]) -> Shapes:
    return plain(name, shape) | {f"{name}.dora_scale": [1, *shape[1:2], *[1] * (len(shape) - 2)]}


def tucker(name: str, shape: tuple[int, ...]) -> Shapes:
    if shape[2:] in ((), (1, 1)):
        return plain(name, shape)
    down, up = [RANK, shape[1], 1, 1], [shape[0], RANK, 1, 1]
    names = {"lora_down": down, "lora_up": up, "lora_mid": [RANK, RANK, *shape[2:]]}
    return {f"{name}.{part}.weight": size for part, size in names.items()} | {f"{name}.alpha": []}


def loha(name: str, shape: tuple[int, ...]) -> Shapes:
    columns = shape[1]
    for size in shape[2:]:
        columns *= size
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


def layouts() -> dict[str, Layout]:
    """Every layout by name."""
    a_b = pair("lora_A.weight", "lora_B.weight", alpha=False)
    embedding: Shapes = {"bundle_emb.word.clip_l": [2, 768], "bundle_emb.word.clip_g": [2, 1280]}
    attention = unet(is_attention)
    everything = unet(lambda module: True)

    def layout(source, dialect, modules, naming, form, families=(), stray=None) -> Layout:
        return Layout(source, dialect, list(families), modules, naming, form, stray or {})

    return {
        "kohya-lora": layout(
            "sd-scripts networks/lora.py with sdxl_train_network.py",
            "kohya",
            attention + both_texts(),
            kohya,
            plain,
        ),
        "kohya-locon": layout(
            "sd-scripts networks/lora.py with conv_dim", "kohya", unet(is_attention, is_resnet), kohya, plain
        ),
        "kohya-lycoris-tucker": layout(
            "LyCORIS lycoris/kohya.py, locon with use_tucker",
            "kohya",
            unet(is_attention, is_resnet),
            kohya,
            tucker,
        ),
        "kohya-lycoris-loha": layout(
            "LyCORIS lycoris/kohya.py, loha",
            "kohya",
            unet(is_attention, is_resnet) + both_texts(),
            kohya,
            loha,
            ["loha"],
        ),
        "kohya-lycoris-full": layout(
            "LyCORIS lycoris/kohya.py, full", "kohya", attention, kohya, full, ["full"]
        ),
        "kohya-lycoris-ia3": layout(
            "LyCORIS lycoris/kohya.py, preset ia3",
            "kohya",
            unet(lambda m: m.sgm.endswith(("to_k", "to_v", "ff.net.2"))),
            kohya,
            ia3,
            ["ia3"],
        ),
        "kohya-lycoris-glora": layout(
            "LyCORIS lycoris/kohya.py, glora", "kohya", attention, kohya, glora, ["glora"]
        ),
        "kohya-oft": layout(
            "sd-scripts networks/oft.py", "kohya", unet(is_projection), kohya_oft, oft, ["oft"]
        ),
        "onetrainer-lora": layout(
            "OneTrainer StableDiffusionXLLoRASaver with a bundled embedding",
            "kohya-diffusers",
            attention + both_texts(),
            kohya_diffusers,
            plain,
            stray=embedding,
        ),
        "onetrainer-dora": layout(
            "OneTrainer with decompose", "kohya-diffusers", attention, kohya_diffusers, with_dora, ["dora"]
        ),
        "ai-toolkit": layout(
            "ai-toolkit toolkit/lora_special.py", "kohya-diffusers", everything, kohya_diffusers, plain
        ),
        "lcm-lora": layout(
            "consistency distillation, every kind of layer",
            "kohya-diffusers",
            everything,
            kohya_diffusers,
            plain,
        ),
        "sliders": layout(
            "sliders lora.py, train_method xattn", "kohya-diffusers", unet(is_cross), kohya_diffusers, plain
        ),
        "diffusers-processors": layout(
            "diffusers before 0.22: AttnProcsLayers and _modify_text_encoder",
            "diffusers",
            unet(is_projection) + both_texts("self_attn"),
            processors,
            old_processor,
        ),
        "diffusers-down-up": layout(
            "diffusers save_lora_weights, convert_state_dict_to_diffusers",
            "diffusers",
            unet(is_projection) + both_texts("self_attn"),
            dotted,
            new_diffusers,
        ),
        "diffusers-peft": layout(
            "diffusers save_lora_weights, PEFT names",
            "diffusers",
            unet(is_attention, is_resnet) + both_texts("self_attn"),
            dotted,
            a_b,
        ),
        "peft-unet": layout(
            "PEFT save_pretrained of the UNet alone", "peft", unet(is_projection), peft_unet, a_b
        ),
        "peft-unet-adapter-name": layout(
            "PEFT state dict with the adapter's name inside",
            "peft",
            unet(is_projection),
            peft_unet,
            pair("lora_A.default.weight", "lora_B.default.weight", alpha=False),
        ),
        "transformer-only": layout(
            "convert_state_dict_to_peft of the UNet without any prefix", "diffusers", attention, bare, a_b
        ),
        "lycoris-wrapper-lokr": layout(
            "LyCORIS wrapper.py create_lycoris, as SimpleTuner uses it",
            "lycoris",
            everything,
            lycoris,
            lokr,
            ["lokr"],
        ),
        "comfyui-extract": layout(
            "ComfyUI LoraSave",
            "diffusers",
            everything,
            comfy,
            pair("lora_down.weight", "lora_up.weight", alpha=False),
        ),
        "kohya-extract": layout(
            "sd-scripts networks/extract_lora_from_models.py --sdxl",
            "kohya",
            everything + both_texts(),
            kohya,
            plain,
        ),
    }


def tensors(layout: Layout) -> Shapes:
    found: Shapes = {}
    for module, section in layout.modules:
        found |= layout.form(layout.naming(module, section), module.shape)
    return found | layout.stray


def records() -> Iterator[tuple[str, str]]:
    """(file name, its text)."""
    for name, layout in layouts().items():
        head = {
            "source": layout.source,
            "dialect": layout.dialect,
            "families": layout.families,
            "modules": sorted(kohya(module, section) for module, section in layout.modules),
            "unknown": sorted(layout.stray),
        }
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        shapes = ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(size)}" for key, size in tensors(layout).items()
        )
        yield f"{name}.json", "{\n" + ",\n".join(lines) + ',\n "tensors": {\n' + shapes + "\n }\n}\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, content in records():
        (FOLDER / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
