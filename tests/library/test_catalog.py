"""What the pickers offer, and with which prompts."""

from __future__ import annotations

import json
import os

import pytest

from lib_ziplora.hosts.standalone import StandaloneHost
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


def test_what_is_no_text_makes_one_entry_grey_and_no_more(tmp_path):
    """A name in Latin-1, halves of surrogate pairs in a header and on a card, beside a good file."""
    write_kohya(tmp_path / "good.safetensors", module_names())
    (tmp_path / "good.json").write_text('{"activation text": "\\ud800 sks"}')
    half = b'{"__metadata__":{"modelspec.trigger_phrase":"\\ud83d sks"}}'
    (tmp_path / "half.safetensors").write_bytes(len(half).to_bytes(8, "little") + half)
    tags = {"ss_tag_frequency": '{"1_a": {"\\ud800": 3}}'}
    write_kohya(tmp_path / "tags.safetensors", module_names(), metadata=tags)
    try:
        write_kohya(tmp_path / os.fsdecode(b"caf\xe9.safetensors"), module_names())
    except OSError:
        pytest.skip("this file system takes no such names")
    entries = {entry.name[:3]: entry for entry in catalog(StandaloneHost(None, [tmp_path]))}
    latin, good, broken, tagged = (entries[name] for name in ("caf", "goo", "hal", "tag"))
    assert (latin.name, latin.usable) == ("caf\ufffd", False) and "no valid Unicode. Rename" in latin.reason
    assert (good.name, good.usable, good.prompt) == ("good", True, "")
    assert (broken.name, broken.usable) == ("half", False) and "damaged header" in broken.reason
    assert (tagged.usable, tagged.prompt) == (True, "\ufffd")
    for entry in (latin, good, broken, tagged):
        json.dumps([entry.name, entry.reason, entry.prompt, entry.activation], ensure_ascii=False).encode()


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
