"""Strengths by block: names and presets, the sum they give, and merges that learn from what they leave."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from lib_ziplora.block_strengths import BLOCKS, block_strengths, strength_of
from lib_ziplora.config import LoraInput
from lib_ziplora.errors import ConfigError, IncompatibleError
from lib_ziplora.lora.formats.keys import parse_key
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.preflight import preflight
from lib_ziplora.report.recipe import read_recipe, write_recipe

from ..support.exports import again, same_tensors
from ..support.pico_host import TEXT_LAYER, module_names
from ..support.small_merges import pico_host, request

ATTENTION = ".transformer_blocks.0.attn1.to_q.lora.down.weight"


@pytest.mark.parametrize(
    ("key", "block"),
    [
        (f"unet.up_blocks.0.attentions.0{ATTENTION}", "OUT00"),
        (f"unet.up_blocks.0.attentions.1{ATTENTION}", "OUT01"),
        (f"unet.up_blocks.1.attentions.2{ATTENTION}", "OUT05"),
        (f"unet.down_blocks.1.attentions.0{ATTENTION}", "IN04"),
        (f"unet.down_blocks.2.attentions.1{ATTENTION}", "IN08"),
        (f"unet.mid_block.attentions.0{ATTENTION}", "MID"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.down.weight", "BASE"),
    ],
)
def test_diffusers_blocks_have_the_webuis_names(key, block):
    name = parse_key(key).module
    assert [one for one in BLOCKS if strength_of(name, {**dict.fromkeys(BLOCKS, 0.0), one: 1.0})] == [block]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", dict.fromkeys(BLOCKS, 1.0)),
        ("style blocks only", {**dict.fromkeys(BLOCKS, 0.0), "OUT01": 1.0}),
        (" Content blocks only ", {**dict.fromkeys(BLOCKS, 0.0), "OUT00": 1.0}),
        (
            "all=0, IN=0.5;in04=-2 m00=3",
            {b: {"IN04": -2.0, "MID": 3.0}.get(b, 0.5 * b.startswith("IN")) for b in BLOCKS},
        ),
    ],
)
def test_strengths_are_read_in_their_order(text, expected):
    assert block_strengths(text) == expected


@pytest.mark.parametrize("text", ["OUT01", "OUT12=1", "MID=", "MID=x", "MID=nan", "MID=11", "style", "=1"])
def test_blocks_that_can_not_be_are_refused(text):
    with pytest.raises(ConfigError, match="blocks can't be"):
        LoraInput("dog", blocks=text)


def blocked(subject="", style="", **settings):
    merge = request(**settings)
    loras = zip(merge.loras, (subject, style), strict=True)
    return dataclasses.replace(
        merge, loras=tuple(dataclasses.replace(lora, blocks=text) for lora, text in loras)
    )


def deltas(file):
    found = {name: tensor.double().numpy() for name, tensor in load_file(file).items()}
    return {
        name: found[f"{name}.alpha"]
        / len(found[f"{name}.lora_down.weight"])
        * np.tensordot(found[f"{name}.lora_up.weight"].squeeze(), found[f"{name}.lora_down.weight"], (1, 0))
        for name in {key.partition(".")[0] for key in found}
    }


def test_the_sum_takes_each_layer_at_the_strength_of_its_block(tmp_path):
    host = pico_host(tmp_path)
    run(blocked("IN04=0 IN05=0.5", "BASE=0", weight=(0.8, 1.0)), host)
    dog, ink, merged = (deltas(tmp_path / f"{name}.safetensors") for name in ("dog", "ink", "merged"))
    for name in (*module_names(), TEXT_LAYER):
        of_dog = 0.0 if "blocks_4" in name else 0.5 if "blocks_5" in name else 1.0
        of_ink = 0.0 if name in (TEXT_LAYER, "lora_unet_out_2") else 1.0
        expected = 0.8 * of_dog * dog[name] + of_ink * ink[name]
        assert np.allclose(merged[name], expected, atol=1e-5), name


@pytest.mark.parametrize("method", ["ziplora", "instant", "np-lora"])
def test_a_merge_learns_from_what_the_blocks_leave_and_is_exported_again(tmp_path, method):
    """As from a file in which nothing else is."""
    host = pico_host(tmp_path)
    run(blocked("ALL=0 IN05=1", method=method, guidance_scale=1.0), host)
    left = {
        key: tensor for key, tensor in load_file(tmp_path / "dog.safetensors").items() if "blocks_5" in key
    }
    save_file(left, tmp_path / "left.safetensors")
    run(request("left", output="expected", method=method, guidance_scale=1.0), host)
    assert same_tensors(host, "merged", "expected")
    again(host)
    assert same_tensors(host, "again", "merged")


def test_blocks_are_told_beforehand_and_refused_where_nothing_is_left(tmp_path):
    host = pico_host(tmp_path)
    assert any("whole LoRAs" in remark for remark in preflight(blocked("MID=1"), host).remarks)
    assert not any("whole LoRAs" in remark for remark in preflight(blocked(), host).remarks)
    with pytest.raises(IncompatibleError, match="dog has no layer in the blocks"):
        run(blocked("style blocks only"), host)
    assert not (tmp_path / "merged.safetensors").exists()


def test_a_recipe_has_the_blocks():
    loras = blocked("style blocks only").loras
    assert read_recipe(write_recipe(loras, request().settings)).loras == loras
