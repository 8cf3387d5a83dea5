"""Layouts of the wild that are no family of their own: read whole, or refused by what they are."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lib_ziplora.errors import LoraFileError, UnsupportedLoraError
from lib_ziplora.lora.formats.peft_config import SIDECAR
from lib_ziplora.lora.io.inspect import inspect_header, unsupported_reason
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.size import file_shapes
from lib_ziplora.lora.lowrank import EXACT

from .adapter_samples import rand
from .files import TE1, Q, save

PLACE = "input_blocks.4.1.transformer_blocks.0."
NORM = "lora_unet_input_blocks_4_1_transformer_blocks_0_norm1"
GROUP_NORM = "lora_unet_input_blocks_4_0_in_layers_0"
PROJECTION = "lora_te2_text_projection"
AB = ("lora_A.weight", "lora_B.weight")
DOWN_UP = ("lora_down.weight", "lora_up.weight")


def pair(name, out=12, inputs=8, rank=2, tails=DOWN_UP, seed=0):
    make = rand(seed)
    return {f"{name}.{tails[0]}": make(rank, inputs), f"{name}.{tails[1]}": make(out, rank)}


def product(content, name, tails=DOWN_UP):
    return content[f"{name}.{tails[1]}"] @ content[f"{name}.{tails[0]}"]


@pytest.mark.parametrize(
    ("norm", "path"), [(NORM, f"{PLACE}norm1"), (GROUP_NORM, "input_blocks.4.0.in_layers.0")]
)
def test_comfyuis_extracted_norms_are_differences_of_norms(tmp_path, norm, path):
    weight, bias = rand(1)(12), rand(2)(12)
    lora = pair(f"diffusion_model.{PLACE}attn1.to_q")
    every = lora | {f"diffusion_model.{path}.diff": weight, f"diffusion_model.{path}.diff_b": bias}
    file = save(tmp_path / "a.safetensors", every)
    read = read_lora(file)
    assert set(read.layers) == {Q} and not read.unknown
    assert read.extras[f"{norm}.w_norm"].equal(weight) and read.extras[f"{norm}.b_norm"].equal(bias)
    assert set(file_shapes(file).extras) == set(read.extras)
    for missing, part in (("diff", "w_norm"), ("diff_b", "b_norm")):
        some = {key: tensor for key, tensor in every.items() if not key.endswith(f".{missing}")}
        read = read_lora(save(tmp_path / "b.safetensors", some))
        assert set(read.extras) == {f"{norm}.w_norm", f"{norm}.b_norm"}
        assert not read.extras[f"{norm}.{part}"].any()


def test_a_bias_difference_needs_no_weight_difference(tmp_path):
    bias = rand(1)(12)
    file = save(
        tmp_path / "a.safetensors", pair(TE1) | {f"{Q}.diff_b": bias, f"{Q}.alpha": torch.tensor(4.0)}
    )
    read = read_lora(file)
    assert set(read.layers) == {TE1}
    assert read.extras[f"{Q}.diff_b"].equal(bias)
    assert set(file_shapes(file).extras) == {f"{Q}.diff_b"}


@pytest.mark.parametrize("alpha", [math.inf, math.nan, -math.inf])
def test_the_alpha_of_a_full_lokr_is_of_no_account(tmp_path, alpha):
    make = rand(1)
    parts = {f"{Q}.lokr_w1": make(3, 2), f"{Q}.lokr_w2": make(4, 4), f"{Q}.alpha": torch.tensor(alpha)}
    lora = read_lora(save(tmp_path / "a.safetensors", parts), rule=EXACT)
    expected = torch.kron(parts[f"{Q}.lokr_w1"], parts[f"{Q}.lokr_w2"])
    torch.testing.assert_close(lora.layers[Q].delta(), expected, rtol=1e-4, atol=1e-5)


def test_an_infinite_alpha_that_counts_is_refused(tmp_path):
    make = rand(1)
    parts = {f"{Q}.lokr_w1": make(3, 2), f"{Q}.lokr_w2_a": make(4, 1), f"{Q}.lokr_w2_b": make(1, 4)}
    with pytest.raises(LoraFileError, match=f"alpha of layer {Q} contains"):
        read_lora(save(tmp_path / "a.safetensors", parts | {f"{Q}.alpha": torch.tensor(math.inf)}))


@pytest.mark.parametrize(
    "name", [PROJECTION, "text_encoder_2.text_projection", "text_encoders.clip_g.transformer.text_projection"]
)
def test_the_second_encoders_projection_is_a_layer(tmp_path, name):
    content = pair(name, 12, 12)
    lora = read_lora(save(tmp_path / "a.safetensors", content))
    torch.testing.assert_close(lora.layers[PROJECTION].delta(), product(content, name))


REFUSED = {
    "T-LoRA": {"q_layer.weight": (2, 8), "p_layer.weight": (12, 2), "lambda_layer": (1, 2)},
    "AdaLoRA": {"lora_A": (2, 8), "lora_B": (12, 2), "lora_E": (2, 1)},
    "PEFT's OFT": {"oft_R.weight": (2, 6)},
    "SVDiff": {"spectral_shifts": (8,)},
    "GLoRA with Tucker's core": {
        "a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (12, 2), "b2.weight": (2, 8), "bm.weight": (2, 2),
    },
    "a replaced weight": {"set_weight": (12, 8)},
    "whole weights": {"lora_down.weight": (2, 8), "lora_up.weight": (12, 2), "bias": (12,)},
    "not known here": {"lora_down.weight": (2, 8), "lora_up.weight": (12, 2), "gate.weight": (12,)},
}  # fmt: skip


@pytest.mark.parametrize("label", REFUSED)
@pytest.mark.parametrize("name", [Q, "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"])
def test_a_family_that_no_merge_can_take_is_refused_by_its_name_and_why(tmp_path, label, name):
    content = {f"{name}.{tail}": torch.ones(shape) for tail, shape in REFUSED[label].items()}
    file = save(tmp_path / "a.safetensors", content)
    for weights in (None, lambda _: torch.ones(12, 8)):
        with pytest.raises(
            UnsupportedLoraError, match=f"{label}.*first seen at {name}.*can't be merged: .{{20}}"
        ):
            read_lora(file, weights)


def test_tlora_of_the_old_attention_processors_is_refused_by_name(tmp_path):
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    content = {f"{name}.q_layer.weight": torch.ones(2, 8), f"{name}.p_layer.weight": torch.ones(8, 2)}
    content |= {f"{name}.lambda_layer": torch.ones(1, 2), f"{name}.base_p.weight": torch.ones(8, 2)}
    with pytest.raises(UnsupportedLoraError, match="T-LoRA"):
        read_lora(save(tmp_path / "a.safetensors", content))


@pytest.mark.parametrize("other", ["to_q", "to_k"])
def test_several_adapters_in_one_file_are_refused_by_their_names(tmp_path, other):
    block = "base_model.model.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    content = {
        f"{block}.{path}.{half}.{adapter}.weight": torch.ones(shape)
        for adapter, path in (("default", "to_q"), ("style", other))
        for half, shape in (("lora_A", (2, 8)), ("lora_B", (12, 2)))
    }
    file = save(tmp_path / "a.safetensors", content)
    assert "several adapters (default and style)" in unsupported_reason(inspect_header(file))
    with pytest.raises(UnsupportedLoraError, match=r"several adapters .default and style"):
        read_lora(file)


def test_each_model_may_have_an_adapter_of_its_own_name(tmp_path):
    content = {
        f"{path}.{half}.{adapter}.weight": torch.ones(shape)
        for adapter, path in (
            ("a", "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
            ("b", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"),
        )
        for half, shape in (("lora_A", (2, 8)), ("lora_B", (12, 2)))
    }
    assert len(read_lora(save(tmp_path / "a.safetensors", content)).layers) == 2


def text_adapter(path, width, layer_number=0):
    name = f"{path}encoder.layers.{layer_number}.self_attn.q_proj"
    return pair(name, width, width, tails=AB)


@pytest.mark.parametrize(
    "path", ["base_model.model.text_model.", "base_model.model.", "text_encoder.text_model."]
)
def test_an_adapter_of_the_second_text_encoder_is_told_by_width_and_by_layers(tmp_path, path):
    for width, number, encoder in (
        (768, 0, 1),
        (1280, 0, 2),
        (64, 0, 1),
        (64, 11, 1),
        (64, 12, 2),
        (64, 31, 2),
    ):
        lora = read_lora(save(tmp_path / "a.safetensors", text_adapter(path, width, number)))
        assert set(lora.layers) == {f"lora_te{encoder}_text_model_encoder_layers_{number}_self_attn_q_proj"}


def test_an_adapter_of_the_second_text_encoder_is_told_by_its_folder_and_configuration(tmp_path):
    content = text_adapter("base_model.model.text_model.", 64)
    for name in ("text_encoder", "text_encoder_2", "other"):
        (tmp_path / name).mkdir()
        lora = read_lora(save(tmp_path / name / "adapter_model.safetensors", content))
        assert next(iter(lora.layers)).startswith("lora_te2" if name == "text_encoder_2" else "lora_te1")
    config = {"peft_type": "LORA", "auto_mapping": {"base_model_class": "CLIPTextModelWithProjection"}}
    (tmp_path / "other" / SIDECAR).write_text(json.dumps(config))
    lora = read_lora(tmp_path / "other" / "adapter_model.safetensors")
    assert next(iter(lora.layers)).startswith("lora_te2")


def test_layers_of_both_text_encoders_stay_where_they_are(tmp_path):
    first = text_adapter("text_encoder.text_model.", 768)
    second = text_adapter("text_encoder_2.text_model.", 1280, 20)
    lora = read_lora(save(tmp_path / "a.safetensors", first | second))
    assert sorted(name[:8] for name in lora.layers) == ["lora_te1", "lora_te2"]
    assert [lora.layers[name].out_features for name in sorted(lora.layers)] == [768, 1280]


def test_names_of_compiled_and_distributed_models_are_read(tmp_path):
    path = "unet.{}down_blocks.1.attentions.0.{}transformer_blocks.0.attn1.to_q"
    for wrapper in ("_orig_mod.", "_fsdp_wrapped_module.", "module."):
        inner = "" if wrapper == "module." else wrapper
        content = pair(path.format(wrapper, inner), tails=AB)
        assert set(read_lora(save(tmp_path / "a.safetensors", content)).layers) == {Q}


def remarks(tmp_path, content):
    return " ".join(inspect_header(save(tmp_path / "a.safetensors", content)).remarks)


def test_what_is_left_out_is_said_as_what_it_is(tmp_path):
    embedding = {"bundle_emb.sks dog.clip_l": torch.ones(1, 4), "bundle_emb.sks dog.clip_g": torch.ones(1, 4)}
    assert remarks(tmp_path, pair(Q) | embedding) == ""  # their merge says so, where it doesn't save them
    said = remarks(tmp_path, pair(Q) | {"lora_unet_no_such_layer.lora_down.weight": torch.ones(1, 2)})
    assert "tensors of none of the layers" in said and "(1 of them" in said and "no_such_layer" in said
    assert remarks(tmp_path, pair(Q)) == ""


def test_an_adapter_without_its_configuration_is_said_to_be_one(tmp_path):
    content = pair(
        "base_model.model.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", tails=AB
    )
    assert SIDECAR in remarks(tmp_path, content)
    (tmp_path / SIDECAR).write_text('{"peft_type": "LORA", "lora_alpha": 4}')
    assert remarks(tmp_path, content) == ""
