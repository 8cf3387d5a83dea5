"""Key lists as trainers and tools write them: names and shapes, no weights.

Each layout follows the naming code of its trainer, which ``source`` names. The lists in ``golden/`` hold a part of
SDXL's modules (one transformer block of some places, some residual blocks, the first and last text
layer), which has every kind of name. Written anew by ``python -m tests.lora.golden_layouts``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from . import golden_names as names
from .golden_names import Layout, Shapes, both_texts, kohya, text, unet
from .sdxl_names import Module

FOLDER = Path(__file__).parent / "golden"
ATTENTION = unet(names.is_attention)
CONVOLUTED = unet(names.is_attention, names.is_resnet)
PROJECTIONS = unet(names.is_projection)
EVERYTHING = unet(lambda module: True)
EMBEDDING: Shapes = {"bundle_emb.word.clip_l": [2, 768], "bundle_emb.word.clip_g": [2, 1280]}


def ending(*ends: str) -> Callable[[Module], bool]:
    return lambda module: module.sgm.endswith(ends)


SD_SCRIPTS = (
    Layout(
        "kohya-lora",
        "sd-scripts networks/lora.py with sdxl_train_network.py",
        "kohya",
        ATTENTION + both_texts(),
        kohya,
        names.plain,
    ),
    Layout(
        "kohya-locon", "sd-scripts networks/lora.py with conv_dim", "kohya", CONVOLUTED, kohya, names.plain
    ),
    Layout(
        "kohya-oft", "sd-scripts networks/oft.py", "kohya", PROJECTIONS, names.kohya_oft, names.oft, ("oft",)
    ),
    Layout(
        "kohya-extract",
        "sd-scripts networks/extract_lora_from_models.py --sdxl",
        "kohya",
        EVERYTHING + both_texts(),
        kohya,
        names.plain,
    ),
)
LYCORIS = (
    Layout(
        "kohya-lycoris-tucker",
        "LyCORIS lycoris/kohya.py, locon with use_tucker",
        "kohya",
        CONVOLUTED,
        kohya,
        names.tucker,
    ),
    Layout(
        "kohya-lycoris-loha",
        "LyCORIS lycoris/kohya.py, loha",
        "kohya",
        CONVOLUTED + both_texts(),
        kohya,
        names.loha,
        ("loha",),
    ),
    Layout(
        "kohya-lycoris-full",
        "LyCORIS lycoris/kohya.py, full",
        "kohya",
        ATTENTION,
        kohya,
        names.full,
        ("full",),
    ),
    Layout(
        "kohya-lycoris-ia3",
        "LyCORIS lycoris/kohya.py, preset ia3",
        "kohya",
        unet(ending("to_k", "to_v", "ff.net.2")),
        kohya,
        names.ia3,
        ("ia3",),
    ),
    Layout(
        "kohya-lycoris-glora",
        "LyCORIS lycoris/kohya.py, glora",
        "kohya",
        ATTENTION,
        kohya,
        names.glora,
        ("glora",),
    ),
    Layout(
        "lycoris-wrapper-lokr",
        "LyCORIS wrapper.py create_lycoris, as SimpleTuner uses it",
        "lycoris",
        EVERYTHING,
        names.lycoris,
        names.lokr,
        ("lokr",),
    ),
)
ONETRAINER = (
    Layout(
        "onetrainer-lora",
        "OneTrainer LoRASaverMixin LEGACY_LORA (convert_to_mixture), with a bundled embedding",
        "kohya-diffusers",
        ATTENTION + both_texts(),
        names.kohya_diffusers,
        names.plain,
        stray=EMBEDDING,
    ),
    Layout(
        "onetrainer-dora",
        "OneTrainer LoRASaverMixin LEGACY_LORA with decompose",
        "kohya-diffusers",
        ATTENTION,
        names.kohya_diffusers,
        names.with_dora,
        ("dora",),
    ),
    Layout(
        "onetrainer-omi",
        "OneTrainer modules/util/convert/lora/convert_sdxl_lora.py, target omi",
        "diffusers",
        CONVOLUTED + both_texts(),
        names.omi,
        names.plain,
        stray=EMBEDDING,
    ),
    Layout(
        "onetrainer-comfy",
        "OneTrainer LoRASaverMixin COMFY_LORA",
        "diffusers",
        CONVOLUTED + both_texts(),
        names.comfy,
        names.a_b_alpha,
    ),
    Layout(
        "onetrainer-original",
        "OneTrainer LoRASaverMixin ORIGINAL_LORA: the UNet alone, without a prefix",
        "diffusers",
        CONVOLUTED,
        names.sgm,
        names.a_b_alpha,
    ),
    Layout(
        "onetrainer-internal",
        "OneTrainer LoRASaverMixin INTERNAL: lora/lora.safetensors of a backup",
        "diffusers",
        ATTENTION + both_texts(),
        names.dotted,
        names.plain,
    ),
    Layout(
        "onetrainer-diffusers-dora",
        "OneTrainer LoRASaverMixin DIFFUSERS_LORA with decompose and dora_on_output",
        "diffusers",
        PROJECTIONS,
        names.dotted,
        names.a_b_magnitude,
        ("dora",),
    ),
)
DIFFUSERS = (
    Layout(
        "diffusers-processors",
        "diffusers before 0.22: AttnProcsLayers and _modify_text_encoder",
        "diffusers",
        PROJECTIONS + both_texts("self_attn"),
        names.processors,
        names.old_processor,
    ),
    Layout(
        "diffusers-down-up",
        "diffusers save_lora_weights, convert_state_dict_to_diffusers",
        "diffusers",
        PROJECTIONS + both_texts("self_attn"),
        names.dotted,
        names.new_diffusers,
    ),
    Layout(
        "diffusers-peft",
        "diffusers save_lora_weights, PEFT names",
        "diffusers",
        CONVOLUTED + both_texts("self_attn"),
        names.dotted,
        names.a_b,
    ),
    Layout(
        "peft-unet",
        "PEFT utils/save_and_load.py get_peft_model_state_dict of the UNet alone",
        "peft",
        PROJECTIONS,
        names.peft_unet,
        names.a_b,
    ),
    Layout(
        "peft-text-encoder",
        "PEFT utils/save_and_load.py get_peft_model_state_dict of the first text encoder alone",
        "peft",
        text(1, "self_attn"),
        names.peft_text,
        names.a_b,
    ),
    Layout(
        "peft-unet-adapter-name",
        "PEFT state dict with the adapter's name inside",
        "peft",
        PROJECTIONS,
        names.peft_unet,
        names.a_b_named,
    ),
    Layout(
        "transformer-only",
        "convert_state_dict_to_peft of the UNet without any prefix",
        "diffusers",
        ATTENTION,
        names.bare,
        names.a_b,
    ),
)
OTHERS = (
    Layout(
        "ai-toolkit",
        "ai-toolkit toolkit/lora_special.py: lora_unet, every layer of UNet2DConditionModel",
        "kohya-diffusers",
        EVERYTHING,
        names.kohya_diffusers,
        names.plain,
    ),
    Layout(
        "lcm-lora",
        "consistency distillation, every kind of layer",
        "kohya-diffusers",
        EVERYTHING,
        names.kohya_diffusers,
        names.plain,
    ),
    Layout(
        "sliders",
        "sliders trainscripts/textsliders/lora.py, train_method xattn",
        "kohya-diffusers",
        unet(names.is_cross),
        names.kohya_diffusers,
        names.plain,
    ),
    Layout(
        "sliders-noxattn",
        "sliders trainscripts/textsliders/lora.py, train_method noxattn: attention without attn2",
        "kohya-diffusers",
        unet(lambda module: names.is_projection(module) and not names.is_cross(module)),
        names.kohya_diffusers,
        names.plain,
    ),
    Layout("comfyui-extract", "ComfyUI LoraSave", "diffusers", EVERYTHING, names.comfy, names.without_alpha),
)
LAYOUTS = (*SD_SCRIPTS, *LYCORIS, *ONETRAINER, *DIFFUSERS, *OTHERS)


def records() -> Iterator[tuple[str, str]]:
    """(file name, its text)."""
    for layout in LAYOUTS:
        head = {
            "source": layout.source,
            "dialect": layout.dialect,
            "families": layout.families,
            "modules": sorted(kohya(module, section) for module, section in layout.modules),
            "unknown": sorted(layout.stray),
        }
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        shapes = ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(size)}" for key, size in layout.tensors().items()
        )
        yield f"{layout.name}.json", "{\n" + ",\n".join(lines) + ',\n "tensors": {\n' + shapes + "\n }\n}\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, content in records():
        (FOLDER / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
