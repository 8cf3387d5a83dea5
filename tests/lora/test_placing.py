"""A file gives the same LoRA whether its bytes are copied or mapped, and a mapped one is left as it is."""

from __future__ import annotations

import mmap
import os

import pytest
import torch

from lib_ziplora.errors import LoraFileError
from lib_ziplora.lora.io import placing
from lib_ziplora.lora.io.placing import copied, mapped
from lib_ziplora.lora.io.read import read_lora, read_loras
from lib_ziplora.lora.io.write import write_lora

from .files import Q, assert_same_deltas, layer, layers, only, sample_layers

PLACINGS = {"copied": copied, "mapped": mapped}


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, path in enumerate(paths):
        write_lora(path, sample_layers(seed))
    return paths


def assert_same(found, expected):
    assert [(lora.name, lora.sha256, lora.metadata) for lora in found] == [
        (lora.name, lora.sha256, lora.metadata) for lora in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours.layers) == list(theirs.layers)
        for name, item in ours.layers.items():
            assert torch.equal(item.up, theirs.layers[name].up)
            assert torch.equal(item.down, theirs.layers[name].down)


@pytest.mark.parametrize("where", sorted(PLACINGS))
def test_several_files_are_what_each_is_alone(files, where):
    begun = []
    found = read_loras(files, on_file=begun.append, placing=PLACINGS[where])
    assert_same(found, [read_lora(path) for path in files])
    assert begun == files


def no_mapping(*_, **__):
    raise OSError("this file system maps nothing")


@pytest.mark.parametrize("why", ["windows", "file system"])
def test_what_cannot_be_mapped_is_copied(files, monkeypatch, why):
    whole = [read_lora(path) for path in files]
    if why == "file system":
        monkeypatch.setattr(mmap, "mmap", no_mapping)
    else:
        monkeypatch.setattr(placing, "REPLACEABLE", False)
    found = read_loras(files, placing=mapped)
    for path in files:
        os.truncate(path, 0)
    assert_same(found, whole)


def test_what_is_changed_in_a_mapped_lora_stays_ours(files):
    before = files[0].read_bytes()
    lora = read_loras(files[:1], placing=mapped)[0]
    for item in lora.layers.values():
        item.up.zero_()
    assert files[0].read_bytes() == before


def test_a_mapped_file_can_be_replaced_by_what_is_made_of_it(files):
    lora = read_loras(files[:1], placing=mapped)[0]
    write_lora(files[0], lora.layers, overwrite=True)
    files[1].unlink()
    assert_same_deltas(read_lora(files[0]).layers, lora.layers)
    assert only(files[0].parent, "a.safetensors")


@pytest.mark.parametrize("where", sorted(PLACINGS))
def test_a_file_that_is_cut_off_is_refused(files, where):
    files[1].write_bytes(files[1].read_bytes()[:-5])
    with pytest.raises(LoraFileError, match=r"b\.safetensors is cut off"):
        read_loras(files, placing=PLACINGS[where])


def test_a_file_that_becomes_shorter_while_it_is_copied_is_refused(files):
    write_lora(files[0], layers(layer(Q, 500, 500, 50)), overwrite=True)

    def shorter(stream, file, size):
        data = copied(stream, file, size)
        os.truncate(file, size - 5)
        return data

    with pytest.raises(LoraFileError, match=r"a\.safetensors became shorter"):
        read_loras(files, placing=shorter)
