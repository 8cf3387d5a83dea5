"""Tensor names: every dialect to one canonical name and nothing guessed."""

from __future__ import annotations

import pytest
import torch

from lib_ziplora.lora.formats.keys import (
    canonical_modules,
    canonical_text_name,
    canonical_unet_name,
    parse,
    parse_key,
)

from .files import DIALECTS, TEXT, UNET, Q
from .sdxl_names import attention_modules, canonical, text_modules, unet_modules

NORMS_PER_UNET = 256


def test_the_full_unet_has_a_name_for_every_layer_in_both_namings():
    modules = unet_modules()
    assert len(modules) == 794
    for module in modules:
        for path in (module.sgm, module.diffusers):
            assert canonical_unet_name(path) == canonical(module)
            assert canonical_unet_name(path.replace(".", "_")) == canonical(module)


def test_canonical_names_are_a_bijection():
    modules = unet_modules()
    assert len({canonical_unet_name(module.sgm) for module in modules}) == len(modules)
    assert len({canonical_unet_name(module.diffusers) for module in modules}) == len(modules)


def test_diffusers_own_unet_is_named_in_full():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        )
    found = {name: tuple(module.weight.shape) for name, module in canonical_modules(unet).items()}
    assert found == {canonical(module): module.shape for module in unet_modules()}
    weighted = [n for n, m in unet.named_modules() if isinstance(getattr(m, "weight", None), torch.Tensor)]
    assert (
        len({canonical_unet_name(name) for name in weighted} - {None})
        == len(weighted)
        == 794 + NORMS_PER_UNET
    )


def test_modules_are_told_by_their_weight_and_not_by_their_class():
    class HostLinear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3, 2))

    unet = torch.nn.Module()
    unet.time_embed = torch.nn.ModuleList([HostLinear(), torch.nn.SiLU(), torch.nn.Linear(2, 2)])
    unet.out = torch.nn.ModuleList([torch.nn.GroupNorm(1, 2), torch.nn.SiLU(), torch.nn.Conv2d(2, 2, 3)])
    unet.something_else = torch.nn.Linear(2, 2)
    assert canonical_modules(unet) == {
        "lora_unet_time_embed_0": unet.time_embed[0],
        "lora_unet_time_embed_2": unet.time_embed[2],
        "lora_unet_out_2": unet.out[2],
    }


@pytest.mark.parametrize(
    "path",
    [
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.3.resnets.0.conv1",
        "output_blocks.9.0.in_layers.2",
        "output_blocks.2.1.conv",
        "double_blocks.0.img_attn.qkv",
        "attn1.to_q",
        "",
    ],
)
def test_a_path_that_sdxl_does_not_have_gets_no_name(path):
    assert canonical_unet_name(path) is None


@pytest.mark.parametrize("encoder", [1, 2])
def test_text_encoder_names(encoder):
    names = [canonical_text_name(module.sgm, encoder) for module in text_modules(encoder)]
    assert names == [canonical(module, f"te{encoder}") for module in text_modules(encoder)]
    depth = {1: 12, 2: 32}[encoder]
    assert canonical_text_name(f"text_model.encoder.layers.{depth}.mlp.fc1", encoder) is None


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_every_layer_is_found_in_every_dialect(dialect):
    naming = DIALECTS[dialect]
    names = [*UNET, *TEXT]
    keys = [key for name in names for key in naming(name)]
    parsed = parse(keys)
    assert set(parsed.modules) == set(names)
    assert not parsed.unknown
    assert not parsed.duplicates
    for name in names:
        down, up, alpha = naming(name)
        assert parsed.modules[name] == {"down": down, "up": up, "alpha": alpha}


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        ("kohya", "kohya"),
        ("kohya-diffusers", "kohya-diffusers"),
        ("lycoris", "lycoris"),
        ("diffusers", "diffusers"),
        ("diffusers-down-up", "diffusers"),
        ("peft", "peft"),
    ],
)
def test_the_dialect_is_named(dialect, expected):
    names = [canonical(module) for module in attention_modules()]
    assert parse([key for name in names for key in DIALECTS[dialect](name)]).dialect == expected


def test_golden_layouts_of_real_files():
    """Numbers of tensors that the trainers print for SDXL: kohya 722 + 72 + 192 modules, diffusers 560."""
    kohya = [
        f"{canonical(m)}.{p}"
        for m in attention_modules()
        for p in ("alpha", "lora_down.weight", "lora_up.weight")
    ]
    text = [f"{name}.lora_up.weight" for name in TEXT]
    assert len(kohya) == 3 * 722
    assert (len(parse(kohya).modules), len(parse(text).modules)) == (722, 72 + 192)
    trained = [
        m for m in attention_modules() if m.diffusers.rsplit(".to_", 1)[-1] in ("q", "k", "v", "out.0")
    ]
    script = [f"unet.{m.diffusers}.lora.{p}.weight" for m in trained for p in ("down", "up")]
    assert len(parse(script).modules) == 560


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight", "down"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight", "up"),
        ("base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight", "down"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.my_adapter.weight", "up"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_linear_layer.up.weight", "up"),
        ("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.lora_mid.weight", "mid"),
    ],
)
def test_other_spellings_of_one_layer(key, part):
    name = parse_key(key)
    assert (name.module, name.part, name.family) == (Q, part, "lora")


def test_old_processors_call_the_output_projection_to_out():
    key = "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.processor.to_out_lora.down.weight"
    assert parse_key(key).module == "lora_unet_output_blocks_5_1_transformer_blocks_0_attn2_to_out_0"


def test_unknown_names_and_duplicates_are_reported():
    keys = [
        f"{Q}.lora_down.weight",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "lora_unet_nothing_like_it.lora_down.weight",
        f"{Q}.surprise",
        "bundle_emb.word.emb",
    ]
    parsed = parse(keys)
    assert parsed.duplicates == ((Q, keys[0], keys[1]),)
    assert parsed.unknown == tuple(keys[2:])


@pytest.mark.parametrize(
    ("tail", "family"),
    [
        ("hada_w1_a", "loha"),
        ("lokr_w2", "lokr"),
        ("on_input", "ia3"),
        ("diff", "full"),
        ("w_norm", "norm"),
        ("a1.weight", "glora"),
        ("oft_blocks", "oft"),
        ("dora_scale", "dora"),
        ("lora_magnitude_vector.default.weight", "dora"),
    ],
)
def test_other_families_are_recognised(tail, family):
    assert parse([f"{Q}.{tail}"]).families == {family: f"{Q}.{tail}"}
