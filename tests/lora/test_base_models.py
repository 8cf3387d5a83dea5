"""Which base model a file is for, from names and shapes alone."""

from __future__ import annotations

import pytest
import torch

from lib_ziplora.errors import LoraFileError, UnsupportedLoraError
from lib_ziplora.lora.io.inspect import inspect_header, require_sdxl, unsupported_reason
from lib_ziplora.lora.io.read import read_lora

from .files import DIALECTS, layer, layers, save, tensors
from .sdxl_names import attention_modules, canonical


def pairs(paths, width=4):
    content = {}
    for path in paths:
        tail = ("lora_A.weight", "lora_B.weight") if "." in path else ("lora_down.weight", "lora_up.weight")
        content[f"{path}.{tail[0]}"] = torch.zeros(2, width)
        content[f"{path}.{tail[1]}"] = torch.zeros(8, 2)
    return content


def sd(width, place="down_blocks_0_attentions_0"):
    """kohya's layers of an older model around one attention place, whose text conditioning is ``width`` wide."""
    block = f"lora_unet_{place}_transformer_blocks_0"
    return pairs([f"{block}_attn2_to_k", f"{block}_attn2_to_v"], width) | pairs([f"{block}_attn1_to_q"], 320)


OTHERS = {
    "sd1": [
        sd(768),
        sd(768, "input_blocks_1_1"),
        sd(768, "up_blocks_3_attentions_2"),
        sd(768, "mid_block_attentions_0"),
        pairs(["lora_te_text_model_encoder_layers_0_mlp_fc1"], 768),
        {"lora_unet_input_blocks_2_1_transformer_blocks_0_attn1_to_q.hada_w1_a": torch.zeros(2, 2)},
    ],
    "sd2": [sd(1024), sd(1024, "output_blocks_4_1")],
    "sdxl-refiner": [sd(1280, "input_blocks_4_1"), sd(1280, "input_blocks_10_1")],
    "sd3": [
        pairs(["lora_unet_joint_blocks_0_x_block_attn_qkv"]),
        pairs(["transformer.transformer_blocks.0.attn.add_k_proj"]),
    ],
    "flux": [
        pairs(["lora_unet_double_blocks_0_img_attn_qkv", "lora_te1_text_model_encoder_layers_0_mlp_fc1"]),
        pairs(
            [
                "transformer.single_transformer_blocks.0.attn.to_q",
                "transformer.transformer_blocks.0.attn.add_k_proj",
            ]
        ),
        pairs(["diffusion_model.double_blocks.0.img_mlp.0"]),
    ],
    "wan": [pairs(["diffusion_model.blocks.0.cross_attn.q"])],
    "qwen": [pairs(["transformer_blocks.0.img_mlp.net.2", "transformer_blocks.0.attn.add_k_proj"])],
    "unknown": [pairs(["lora_unet_layers_0_attention_qkv"])],
}


@pytest.mark.parametrize(("base", "content"), [(base, c) for base, cs in OTHERS.items() for c in cs])
def test_other_models_are_recognised_and_refused(tmp_path, base, content):
    file = save(tmp_path / "other.safetensors", content)
    header = inspect_header(file)
    assert header.base == base
    with pytest.raises(
        UnsupportedLoraError, match=r"other\.safetensors is a LoRA for .*not for Stable Diffusion XL"
    ):
        require_sdxl(header)
    with pytest.raises(UnsupportedLoraError, match="SDXL model"):
        read_lora(file)


@pytest.mark.parametrize(
    ("dialect", "context"),
    [*((dialect, 2048) for dialect in sorted(DIALECTS)), ("kohya", 128), ("kohya", 768)],
)
def test_sdxl_is_told_by_its_layout_at_any_width(tmp_path, dialect, context):
    items = layers(
        *(layer(canonical(m), 2, context if "attn2.to_k" in m.sgm else 2, 1) for m in attention_modules())
    )
    header = inspect_header(save(tmp_path / "a.safetensors", tensors(items, DIALECTS[dialect])))
    assert (header.base, unsupported_reason(header)) == ("sdxl", "")


def test_a_shallow_model_with_sdxls_places_is_sdxl(tmp_path):
    names = [
        f"lora_unet_{p}_1_transformer_blocks_0_attn2_to_k" for p in ("input_blocks_4", "output_blocks_5")
    ]
    header = inspect_header(
        save(tmp_path / "a.safetensors", tensors(layers(*(layer(n, 4, 128) for n in names))))
    )
    assert header.base == "sdxl"


def test_a_lora_of_two_text_encoders_is_sdxl(tmp_path):
    content = pairs(["lora_te2_text_model_encoder_layers_0_mlp_fc1"])
    assert inspect_header(save(tmp_path / "a.safetensors", content)).base == "sdxl"


def test_a_checkpoint_is_no_lora_of_its_model(tmp_path):
    content = {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": torch.zeros(2, 2)
    }
    file = save(tmp_path / "a.safetensors", content)
    assert unsupported_reason(inspect_header(file)) == ""
    with pytest.raises(LoraFileError, match="whole checkpoint"):
        read_lora(file)
