"""Broken files and files that are something else: a sentence that names the file and the layer."""

from __future__ import annotations

import json

import pytest
import torch

from lib_ziplora.errors import LoraFileError, UnsupportedLoraError
from lib_ziplora.lora.io.inspect import inspect_header
from lib_ziplora.lora.io.read import read_lora

from .files import CONV, DIALECTS, Q, layer, layers, sample_layers, save, tensors


def changed(change):
    content = tensors(layers(layer(Q), layer(CONV, 4, (3, 3, 3))))
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop(f"{Q}.lora_up.weight"), f"{Q} has no lora_up"),
        (lambda c: c.pop(f"{CONV}.lora_down.weight"), f"{CONV} has no lora_down"),
        (lambda c: c.update({f"{Q}.lora_up.weight": torch.zeros(6, 4)}), f"{Q} don't fit each other"),
        (
            lambda c: c.update({f"{CONV}.lora_up.weight": torch.zeros(4, 3, 3, 3)}),
            f"{CONV} don't fit each other",
        ),
        (
            lambda c: c.update({f"{CONV}.lora_mid.weight": torch.zeros(3, 3, 3, 3)}),
            f"{CONV} don't fit each other",
        ),
        (
            lambda c: c.update({f"{Q}.lora_up.weight": torch.full((6, 3), torch.nan)}),
            f"up of layer {Q} contains NaN",
        ),
        (
            lambda c: c.update({f"{Q}.lora_down.weight": torch.full((3, 5), torch.inf)}),
            f"down of layer {Q} contains",
        ),
        (lambda c: c.update({f"{Q}.alpha": torch.tensor(torch.nan)}), f"alpha of layer {Q} contains NaN"),
        (lambda c: c.update({f"{Q}.alpha": torch.ones(2)}), f"alpha of layer {Q} has 2 values"),
        (
            lambda c: c.update({f"{Q}.lora_down.weight": torch.zeros(3, 5, dtype=torch.int8)}),
            f"{Q} is stored as",
        ),
        (lambda c: c.update({f"{Q}.lora_down.weight": torch.zeros(3, 5, 1)}), f"{Q} has the shape"),
        (lambda c: c.update({f"{Q}.lora_down.weight": torch.zeros(0, 5)}), f"{Q} is empty"),
        (
            lambda c: c.update({DIALECTS["diffusers"](Q)[0]: torch.zeros(3, 5)}),
            f"layer {Q} twice, as .* and as ",
        ),
    ],
)
def test_a_broken_layer_is_named(tmp_path, change, words):
    file = save(tmp_path / "bad.safetensors", changed(change))
    with pytest.raises(LoraFileError, match=f"bad.safetensors.*{words}"):
        read_lora(file)


def test_files_that_are_something_else(tmp_path):
    cases = {
        "empty.safetensors": (b"", "is empty"),
        "new.pt": (b"PK\x03\x04" + b"\0" * 80, "is a pickle.*safetensors"),
        "old.ckpt": (b"\x80\x02}q\x00X\x05\x00\x00\x00" + b"\0" * 80, "is a pickle.*safetensors"),
        "page.safetensors": (b"<!DOCTYPE html><html>" + b" " * 80, "is a web page"),
        "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        "short.safetensors": (b"\x01\x02", "not a safetensors file"),
        "lie.safetensors": ((1 << 60).to_bytes(8, "little") + b'{"a":1}', "cut off"),
        "words.safetensors": ((8).to_bytes(8, "little") + b"{what is", "damaged header"),
        "deep.safetensors": ((100006).to_bytes(8, "little") + b'{"a":' + b"[" * 100001, "damaged header"),
        "none.safetensors": ((2).to_bytes(8, "little") + b"{}", "no LoRA layer"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LoraFileError, match=f"{name}.*{words}"):
            read_lora(tmp_path / name)


def test_a_file_saved_by_torch_is_refused_unopened(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.safetensors")
    with pytest.raises(LoraFileError, match="is a pickle"):
        inspect_header(tmp_path / "old.safetensors")


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(LoraFileError, match="can't be read"):
            read_lora(path)


def test_truncated_and_extended_files(tmp_path):
    whole = save(tmp_path / "a.safetensors", tensors(sample_layers())).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-5])
    (tmp_path / "long.safetensors").write_bytes(whole + b"\0")
    for name, words in (("cut", "cut off"), ("long", "too many")):
        with pytest.raises(LoraFileError, match=f"{name}.safetensors .*{words}"):
            inspect_header(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    "places", [((0, 8), (4, 12)), ((0, 8), (12, 20)), ((4, 12), (12, 20)), ((8, 16), (0, 9))]
)
def test_tensors_that_overlap_or_leave_holes_are_refused(tmp_path, places):
    keys = (f"{Q}.lora_down.weight", f"{Q}.lora_up.weight")
    table = {
        k: {"dtype": "F32", "shape": [1, 2], "data_offsets": p} for k, p in zip(keys, places, strict=True)
    }
    header = json.dumps(table).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(20))
    with pytest.raises(LoraFileError, match=r"tensor .* (is not where its header says|has another size)"):
        inspect_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x.weight"], "whole checkpoint"),
        (["clip_l", "clip_g"], "textual inversion"),
        (["some.weight"], "its first tensor is some.weight"),
    ],
)
def test_files_without_a_lora_say_what_they_are(tmp_path, keys, words):
    file = save(tmp_path / "a.safetensors", {key: torch.zeros(2, 2) for key in keys})
    with pytest.raises(LoraFileError, match=words):
        read_lora(file)


@pytest.mark.parametrize(
    ("tails", "words"),
    [
        ({"weight": (2,), "on_input": ()}, r"\(IA\)3"),
        ({"oft_blocks": (2, 2, 2)}, "OFT"),
        ({f"{n}.weight": (2, 2) for n in ("a1", "a2", "b1", "b2")}, "GLoRA"),
        ({"lora_down.weight": (1, 2), "lora_up.weight": (2, 1), "dora_scale": (1, 2)}, "DoRA"),
    ],
)
def test_families_that_need_the_checkpoint_are_refused_by_name_and_layer(tmp_path, tails, words):
    file = save(
        tmp_path / "a.safetensors", {f"{Q}.{tail}": torch.zeros(shape) for tail, shape in tails.items()}
    )
    with pytest.raises(UnsupportedLoraError, match=f"a.safetensors .*{words}.*{Q}.*--checkpoint"):
        read_lora(file)


def test_oft_of_peft_is_refused_whatever_is_there(tmp_path):
    file = save(tmp_path / "a.safetensors", {f"{Q}.oft_R.weight": torch.zeros(2, 6)})
    with pytest.raises(UnsupportedLoraError, match=f"PEFT's OFT .*{Q}"):
        read_lora(file, weights=lambda name: torch.zeros(2, 2))
