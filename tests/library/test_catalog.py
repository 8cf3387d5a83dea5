"""What the pickers offer, and with which prompts."""

from __future__ import annotations

import json

import pytest

from lib_ziplora.library.catalog import catalog, prompt_for

from ..support.pico_host import PicoHost, module_names, write_kohya


@pytest.mark.parametrize(
    ("card", "metadata", "expected"),
    [
        ({"activation text": " sks dog "}, {"ss_output_name": "x"}, "sks dog"),
        ({"activation text": ""}, {"modelspec.trigger_phrase": "trigger"}, "trigger"),
        ({}, {"ss_tag_frequency": json.dumps({"1_a": {"cat": 2, "dog": 1}, "2_b": {"dog": 3}})}, "dog"),
        ({}, {"ss_tag_frequency": "not json", "ss_output_name": "my_dog_v2"}, "my dog v2"),
        ({}, {"ss_tag_frequency": json.dumps([1, 2])}, ""),
        ({}, {"ss_tag_frequency": json.dumps({"a": {"x": None}})}, ""),
        ({}, {"ss_tag_frequency": '{"a": {"x": Infinity}}'}, ""),
        ({}, {"ss_tag_frequency": "[" * 100_000}, ""),
    ],
)
def test_prompts_come_from_the_card_the_trigger_the_tags_the_name(tmp_path, card, metadata, expected):
    host = PicoHost(tmp_path)
    write_kohya(tmp_path / "a.safetensors", module_names(), metadata=metadata)
    host.cards["a"] = card
    assert prompt_for(host, "a") == expected
    (entry,) = catalog(host)
    assert entry.prompt == expected and entry.usable and entry.base == "sdxl"
    assert (entry.rank, entry.layers) == (2, len(module_names()))


def test_unusable_files_are_listed_with_the_reason(tmp_path):
    write_kohya(tmp_path / "flux.safetensors", {"lora_unet_double_blocks_0_img_attn_qkv": (9, 3)})
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    broken, flux = catalog(PicoHost(tmp_path))
    assert not broken.usable and "broken" in broken.reason
    assert not flux.usable and "Flux" in flux.reason


def test_a_changed_file_is_judged_anew(tmp_path):
    host = PicoHost(tmp_path)
    path = write_kohya(tmp_path / "a.safetensors", module_names(), rank=2)
    assert catalog(host)[0].rank == 2
    write_kohya(path, module_names(), rank=5)
    assert catalog(host)[0].rank == 5
