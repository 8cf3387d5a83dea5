"""What other loaders make of a merged file, at all of SDXL's names: the same delta weights, layer by layer.

Diffusers loads it for real, into small models with SDXL's layers. ComfyUI's key map is restated here from
its rules (``model_lora_keys_unet`` and ``model_lora_keys_clip`` in ``comfy/lora.py``). The six
layers outside the blocks are left out for diffusers, which refuses any file of kohya's names that has one.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lib_ziplora.lora.algebra import merge_layers
from lib_ziplora.lora.io.write import write_lora
from lib_ziplora.pipeline.layers import loader_warnings

from . import webui_networks
from .sdxl_loras import CLIP_WIDTHS, UNET_WIDTHS, expected_deltas, two_loras
from .sdxl_names import OTHERS, TEXT_WIDTHS, canonical, text_modules, unet_modules

NOT_IN_DIFFUSERS = {
    module.sgm for module in OTHERS if module.sgm.startswith(("input_blocks.0", "time", "label", "out."))
}


@pytest.fixture(scope="module")
def pipeline():
    """Diffusers' pipeline over models that have all of SDXL's layers, a few numbers wide."""
    pytest.importorskip("peft")
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=tuple(UNET_WIDTHS[width] for width in (320, 640, 1280)),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[2, 4, 8],
        cross_attention_dim=UNET_WIDTHS[2048],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=40,
    )
    encoders = {}
    for number, kind in ((1, CLIPTextModel), (2, CLIPTextModelWithProjection)):
        width = CLIP_WIDTHS[number]
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
        depth = TEXT_WIDTHS[number][1]
        encoders[number] = kind(
            CLIPTextConfig(**sizes, num_attention_heads=2, num_hidden_layers=depth, vocab_size=10)
        )
    return StableDiffusionXLPipeline(
        vae=None,
        text_encoder=encoders[1],
        text_encoder_2=encoders[2],
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
    )


def weights(pipeline):
    """Canonical name -> the weight that pictures are drawn with, LoRA included."""
    owners = {"unet": pipeline.unet, "te1": pipeline.text_encoder, "te2": pipeline.text_encoder_2}
    found = {}
    for section, owner in owners.items():
        for module in unet_modules() if section == "unet" else text_modules(int(section[-1])):
            layer = owner.get_submodule(module.diffusers)
            weight = getattr(layer, "base_layer", layer).weight.detach().clone()
            for adapter in getattr(layer, "active_adapters", ()):
                weight += layer.get_delta_weight(adapter).detach()
            found[canonical(module, section)] = weight
    return found


def test_diffusers_adds_the_same_to_every_layer(tmp_path, pipeline):
    before = weights(pipeline)
    left_out = {canonical(module) for module in OTHERS if module.sgm in NOT_IN_DIFFUSERS}
    shapes = {name: tuple(weight.shape) for name, weight in before.items() if name not in left_out}
    loras = two_loras(shapes)
    write_lora(tmp_path / "merged.safetensors", merge_layers(loras, [0.75, -0.5]), precision="fp32")
    pipeline.load_lora_weights(tmp_path / "merged.safetensors")
    after = weights(pipeline)
    pipeline.unload_lora_weights()
    meant = expected_deltas(loras, [0.75, -0.5])
    assert set(meant) == set(shapes) and len(meant) == 794 - 6 + 72 + 192
    for name, delta in meant.items():
        added = after[name] - before[name]
        torch.testing.assert_close(added, delta.reshape(added.shape), rtol=1e-4, atol=1e-5, msg=name)
    assert all(torch.equal(after[name], before[name]) for name in left_out)


def comfy_keys():
    """kohya's name -> the weight that ComfyUI patches, of SDXL."""
    keys = {}
    for module in unet_modules():
        keys["lora_unet_" + module.sgm.replace(".", "_")] = f"diffusion_model.{module.sgm}.weight"
    for encoder, name in ((1, "clip_l"), (2, "clip_g")):
        for layer in range(TEXT_WIDTHS[encoder][1]):
            for path in ("mlp.fc1", "mlp.fc2", *(f"self_attn.{p}_proj" for p in ("k", "q", "v", "out"))):
                place = f"text_model.encoder.layers.{layer}.{path}"
                keys[f"lora_te{encoder}_{place.replace('.', '_')}"] = f"{name}.transformer.{place}.weight"
    return keys


def comfy_patches(file):
    """Weight -> what ComfyUI adds to it (``LoRAAdapter.calculate_weight``); every tensor must have been used."""
    tensors, found = load_file(file), {}
    for key, weight in comfy_keys().items():
        if f"{key}.lora_up.weight" in tensors:
            up, down = tensors.pop(f"{key}.lora_up.weight"), tensors.pop(f"{key}.lora_down.weight")
            scaling = tensors.pop(f"{key}.alpha").item() / down.shape[0]
            found[weight] = scaling * (up.flatten(1) @ down.flatten(1))
    assert not tensors
    return found


def test_comfyui_adds_the_same_to_every_layer(tmp_path):
    shapes = {canonical(module): (6, 5, *module.shape[2:]) for module in unet_modules()}
    shapes |= {canonical(m, f"te{n}"): (4, 4) for n in (1, 2) for m in text_modules(n)}
    loras = two_loras(shapes)
    write_lora(tmp_path / "merged.safetensors", merge_layers(loras, [0.75, -0.5]), precision="fp32")
    patches, keys = comfy_patches(tmp_path / "merged.safetensors"), comfy_keys()
    meant = {keys[name]: delta for name, delta in expected_deltas(loras, [0.75, -0.5]).items()}
    for weight, patch in patches.items():
        delta = meant.pop(weight, torch.zeros_like(patch))  # zeros complete the second encoder's attention
        torch.testing.assert_close(patch, delta.flatten(1), rtol=1e-4, atol=1e-5, msg=weight)
    assert not meant


def webui_layers(shapes):
    """(The WebUI's name -> module, kohya's name -> the WebUI's) of SDXL: sgm's UNet, CLIP, and open_clip's model."""
    layers, names = {}, {}
    for module in unet_modules():
        name = canonical(module)
        names[name] = f"diffusion_model_{module.sgm.replace('.', '_')}"
        out, columns, *kernel = shapes[name]
        layers[names[name]] = nn.Conv2d(columns, out, kernel) if kernel else nn.Linear(columns, out)
    for module in text_modules(1):
        name = canonical(module, "te1")
        names[name] = f"0_transformer_{module.diffusers.replace('.', '_')}"
        layers[names[name]] = nn.Linear(*shapes[name][::-1])
    mlp = {"mlp_fc1": "mlp_c_fc", "mlp_fc2": "mlp_c_proj"}
    for module in text_modules(2):
        name = canonical(module, "te2")
        number, _, part = name.removeprefix("lora_te2_text_model_encoder_layers_").partition("_")
        block, (out, columns) = f"1_model_transformer_resblocks_{number}", shapes[name]
        part = mlp.get(part, part.replace("self_attn", "attn"))
        names[name] = f"{block}_{part}"
        if part in ("mlp_c_fc", "mlp_c_proj", "attn_out_proj"):
            layers[names[name]] = nn.Linear(columns, out)
        else:
            layers[f"{block}_attn"] = nn.MultiheadAttention(columns, 1)
    return layers, names


@pytest.mark.webui
@pytest.mark.skipif(not webui_networks.PRESENT, reason="needs ZIPLORA_WEBUI=<folder of a WebUI>")
def test_the_webui_adds_the_same_to_every_layer(tmp_path):
    shapes = {canonical(module): (6, 5, *module.shape[2:]) for module in unet_modules()}
    shapes |= {canonical(m, f"te{n}"): (4, 4) for n in (1, 2) for m in text_modules(n)}
    loras, (layers, names) = two_loras(shapes), webui_layers(shapes)
    write_lora(tmp_path / "merged.safetensors", merge_layers(loras, [0.75, -0.5]), precision="fp32")
    added = webui_networks.load_network(tmp_path / "merged.safetensors", layers)
    meant = {names[name]: delta for name, delta in expected_deltas(loras, [0.75, -0.5]).items()}
    assert set(added) == set(meant) == set(names.values()) and len(meant) == 794 + 72 + 192
    for name, delta in meant.items():
        torch.testing.assert_close(added[name].flatten(1), delta.flatten(1), rtol=1e-4, atol=1e-5, msg=name)


def small_merge(folder, pipeline, *more, extras=None):
    """A merged file of one block's layers and more, its warnings, and the weights that diffusers then draws with."""
    before = weights(pipeline)
    block = "lora_unet_input_blocks_4_1_transformer_blocks_0_"
    names = [name for name in before if name.startswith(block) or "te2_text_model_encoder_layers_0" in name]
    shapes = {name: tuple(before[name].shape) for name in names} | dict(more)
    layers = merge_layers(two_loras(shapes), [1.0, 1.0])
    write_lora(folder / "merged.safetensors", layers, precision="fp32", extras=extras)
    return layers, before


def test_whole_blocks_need_no_word_about_diffusers(tmp_path, pipeline):
    layers, before = small_merge(tmp_path, pipeline)
    assert loader_warnings(layers, {}) == []
    pipeline.load_lora_weights(tmp_path / "merged.safetensors")
    after = weights(pipeline)
    pipeline.unload_lora_weights()
    assert all(not torch.equal(after[name], before[name]) for name in layers)


@pytest.mark.parametrize("place", sorted(NOT_IN_DIFFUSERS))
def test_a_layer_at_which_diffusers_refuses_the_file_is_said(tmp_path, pipeline, place):
    name = f"lora_unet_{place.replace('.', '_')}"
    shape = tuple(weights(pipeline)[name].shape)
    layers, _ = small_merge(tmp_path, pipeline, (name, shape))
    (said,) = loader_warnings(layers, {})
    assert "diffusers will refuse" in said and "1 layer " in said and name in said
    with pytest.raises(ValueError):
        pipeline.load_lora_weights(tmp_path / "merged.safetensors")


@pytest.mark.parametrize("part", ["norm1.w_norm", "norm1.b_norm", "attn1_to_out_0.diff_b"])
def test_so_is_a_difference_of_a_norm_or_a_bias(tmp_path, pipeline, part):
    extras = {f"lora_unet_input_blocks_4_1_transformer_blocks_0_{part}": torch.ones(UNET_WIDTHS[640])}
    layers, _ = small_merge(tmp_path, pipeline, extras=extras)
    (said,) = loader_warnings(layers, extras)
    assert "diffusers will refuse" in said and part in said
    with pytest.raises(ValueError, match="not been correctly renamed"):
        pipeline.load_lora_weights(tmp_path / "merged.safetensors")


def test_the_projection_is_applied_by_diffusers_and_said_not_to_be_by_automatic1111(tmp_path, pipeline):
    name, width = "lora_te2_text_projection", CLIP_WIDTHS[2]
    before = pipeline.text_encoder_2.text_projection.weight.detach().clone()
    layers, _ = small_merge(tmp_path, pipeline, (name, (width, width)))
    (said,) = loader_warnings(layers, {})
    assert name in said and "diffusers apply it, Automatic1111 does not" in said
    pipeline.load_lora_weights(tmp_path / "merged.safetensors")
    projection = pipeline.text_encoder_2.text_projection
    added = projection.get_delta_weight(projection.active_adapters[0]).detach()
    pipeline.unload_lora_weights()
    shapes = {one: (layer.out_features, *layer.weight_shape[1:]) for one, layer in layers.items()}
    meant = expected_deltas(two_loras(shapes), [1.0, 1.0])[name]
    torch.testing.assert_close(added, meant, rtol=1e-4, atol=1e-5)
    assert torch.equal(pipeline.text_encoder_2.text_projection.weight, before)
