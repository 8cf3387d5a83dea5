"""A file is whole and verified or not there, and nothing is replaced unless asked."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lib_ziplora.errors import OutputError
from lib_ziplora.lora import serialize, writing
from lib_ziplora.lora.algebra import merge_layers
from lib_ziplora.lora.file import check_output, output_size, read_lora, write_lora
from lib_ziplora.lora.layer import LoraLayer

from .files import CONV, K2, SKIP, TE1, UNET, Q, assert_same_deltas, layer, layers, sample_layers

TE2_Q = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
TOLERANCE = {"fp16": 2e-3, "bf16": 2e-2, "fp32": 1e-6}


def only(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_what_is_written_is_read_back(tmp_path, precision):
    meant = sample_layers()
    sha256 = write_lora(tmp_path / "m.safetensors", meant, {"key": "value"}, precision)
    lora = read_lora(tmp_path / "m.safetensors")
    assert_same_deltas(lora.layers, meant, rtol=0, atol=TOLERANCE[precision] * 0.1)
    assert lora.sha256 == sha256 == hashlib.sha256((tmp_path / "m.safetensors").read_bytes()).hexdigest()
    assert (lora.dialect, lora.unknown, lora.metadata["key"]) == ("kohya", (), "value")
    assert {item.down.dtype for item in lora.layers.values()} == {serialize.FORMATS[precision].dtype}
    assert only(tmp_path, "m.safetensors")


def test_a_merge_survives_the_file(tmp_path):
    a, b = sample_layers(1), sample_layers(2)
    merged = merge_layers(a, b, 0.7, 0.4, {Q: (torch.rand(5), torch.rand(5))})
    write_lora(tmp_path / "m.safetensors", merged, precision="fp32")
    assert_same_deltas(read_lora(tmp_path / "m.safetensors").layers, merged)


def test_the_tensors_have_the_names_and_shapes_that_loaders_take(tmp_path):
    write_lora(tmp_path / "m.safetensors", sample_layers())
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert {key.split(".", 1)[1] for key in shapes} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert len(shapes) == 3 * len(sample_layers())
    assert shapes[f"{Q}.lora_down.weight"] == (3, 5)
    assert shapes[f"{Q}.lora_up.weight"] == (6, 3)
    assert shapes[f"{Q}.alpha"] == ()
    assert shapes[f"{CONV}.lora_down.weight"] == (3, 4, 3, 3)
    assert shapes[f"{CONV}.lora_up.weight"] == (5, 3, 1, 1)
    assert shapes[f"{SKIP}.lora_down.weight"] == (2, 4, 1, 1)
    assert shapes[f"{SKIP}.lora_up.weight"] == (5, 2, 1, 1)


def test_every_convolution_of_the_unet_is_written_as_one(tmp_path):
    items = {
        name: layer(name, 2, (2, *m.shape[2:]) if len(m.shape) == 4 and m.shape[2] > 1 else 2, 1)
        for name, m in UNET.items()
    }
    tensors = serialize.stored_tensors(items, "fp16")
    for name, module in UNET.items():
        assert tensors[f"{name}.lora_down.weight"].shape[2:] == module.shape[2:], name
        assert tensors[f"{name}.lora_up.weight"].ndim == len(module.shape), name


def test_hashes_and_name_in_the_header_are_the_files_own(tmp_path):
    write_lora(
        tmp_path / "mine.safetensors", sample_layers(), {"ss_output_name": "theirs", "sshs_model_hash": "x"}
    )
    content = (tmp_path / "mine.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    data = hashlib.sha256(content[8 + length :]).hexdigest()
    assert metadata["sshs_model_hash"] == data
    assert metadata["modelspec.hash_sha256"] == f"0x{data}"
    assert metadata["ss_output_name"] == "mine"
    assert length % 8 == 0


def test_the_same_layers_give_the_same_bytes(tmp_path):
    forward = sample_layers()
    backward = dict(reversed(forward.items()))
    first = write_lora(tmp_path / "m.safetensors", forward, {"a": "b"})
    assert write_lora(tmp_path / "m.safetensors", backward, {"a": "b"}, overwrite=True) == first


def test_the_second_text_encoders_attention_is_written_in_full(tmp_path):
    meant = layers(layer(Q), layer(TE2_Q, 4, 4), layer(TE1, 4, 4))
    write_lora(tmp_path / "m.safetensors", meant)
    read = read_lora(tmp_path / "m.safetensors").layers
    added = {TE2_Q.replace("q_proj", p) for p in ("k_proj", "v_proj", "out_proj")}
    assert set(read) - set(meant) == added
    assert all(not read[name].delta().any() and read[name].weight_shape == (4, 4) for name in added)


def test_metadata_of_any_text_is_kept_readable(tmp_path):
    write_lora(tmp_path / "m.safetensors", layers(layer(Q)), {"note": '猫 \U0001f431 \ud800 " \\ \n'})
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata()["note"] == '猫 \U0001f431 ? " \\ \n'


# --- precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("up", "down"), [(1e7, 1e-5), (1e-8, 1e4), (1e-5, 1e-2), (1e5, 1e-7)])
def test_factors_out_of_fp16s_range_are_balanced(tmp_path, up, down):
    item = layer(Q, size=1.0)
    item = LoraLayer(Q, item.down * down, item.up * up, item.alpha)
    write_lora(tmp_path / "m.safetensors", layers(item), precision="fp16")
    read = read_lora(tmp_path / "m.safetensors").layers[Q]
    size = float(item.delta().abs().max())
    torch.testing.assert_close(read.delta(), item.delta(), rtol=0, atol=4e-3 * size + 1e-9)


def test_components_are_balanced_one_by_one_and_by_powers_of_two():
    up, down = torch.randn(4, 3), torch.randn(3, 5)
    up[:, 1] *= 1e-6
    up[:, 2] = 0
    new_up, new_down = serialize.balanced(up, down)
    assert torch.equal(new_up[:, ::2], up[:, ::2])
    assert torch.equal(new_down[::2], down[::2])
    assert new_up[:, 1].abs().max() > 1e-4
    powers = torch.log2(new_up[:, 1] / up[:, 1])
    assert torch.equal(powers, powers.round())
    torch.testing.assert_close(new_up @ new_down, up @ down, rtol=1e-5, atol=1e-6)


def test_what_fp16_cannot_hold_is_refused(tmp_path):
    item = LoraLayer(Q, torch.full((1, 5), 1e6), torch.full((6, 1), 1e6), 1.0)
    with pytest.raises(OutputError, match=f"{Q} has numbers that fp16 can't hold. Choose bf16 or fp32"):
        write_lora(tmp_path / "m.safetensors", layers(item))
    assert only(tmp_path)
    write_lora(tmp_path / "m.safetensors", layers(item), precision="bf16")


def test_a_layer_of_almost_nothing_is_written(tmp_path):
    item = LoraLayer(Q, torch.randn(3, 5) * 1e-9, torch.randn(6, 3) * 1e-9, 3.0)
    write_lora(tmp_path / "m.safetensors", layers(item))
    assert float(read_lora(tmp_path / "m.safetensors").layers[Q].delta().abs().max()) < 1e-9


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_never_written(tmp_path, value):
    item = LoraLayer(Q, torch.full((1, 5), value), torch.ones(6, 1), 1.0)
    with pytest.raises(OutputError, match=f"{Q} holds NaN"):
        write_lora(tmp_path / "m.safetensors", layers(layer(K2), item), precision="fp32")
    assert only(tmp_path)


# --- the folder ---------------------------------------------------------------------------------------


def test_an_existing_file_is_not_replaced(tmp_path):
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"m\.safetensors exists already"):
        write_lora(target, sample_layers())
    assert target.read_bytes() == b"mine"
    assert only(tmp_path, "m.safetensors")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_while_writing_is_not_replaced(tmp_path, monkeypatch, links):
    target = tmp_path / "m.safetensors"
    verify = writing._verify

    def somebody_is_faster(*arguments):
        verify(*arguments)
        target.write_bytes(b"theirs")

    monkeypatch.setattr(writing, "_verify", somebody_is_faster)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(OutputError, match="exists already"):
        write_lora(target, sample_layers())
    assert target.read_bytes() == b"theirs"
    assert only(tmp_path, "m.safetensors")


def no_links(*_):
    raise OSError(errno.EPERM, "no hard links here")


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    write_lora(tmp_path / "m.safetensors", sample_layers())
    assert set(read_lora(tmp_path / "m.safetensors").layers) == set(sample_layers())
    assert only(tmp_path, "m.safetensors")


def test_overwriting_replaces_the_file(tmp_path):
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    write_lora(target, sample_layers(), overwrite=True)
    assert set(read_lora(target).layers) == set(sample_layers())
    assert only(tmp_path, "m.safetensors")


FAILURES = {
    "disk full": (OSError(errno.ENOSPC, "No space left on device"), OutputError, "disk is full"),
    "read only": (OSError(errno.EROFS, "Read-only file system"), OutputError, "can't be written to"),
    "something": (OSError(errno.EIO, "Input/output error"), OutputError, "Input/output error"),
    "Ctrl+C": (KeyboardInterrupt(), KeyboardInterrupt, None),
}


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("failure", sorted(FAILURES))
@pytest.mark.parametrize("where", ["fsync", "pieces", "replace"])
def test_a_failed_write_leaves_everything_as_it_was(tmp_path, monkeypatch, where, failure, overwrite):
    error, kind, words = FAILURES[failure]

    def fail(*_):
        raise error

    if overwrite:
        (tmp_path / "m.safetensors").write_bytes(b"old")
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif where == "pieces":
        monkeypatch.setattr(writing, "_write", half_written(error))
    else:
        monkeypatch.setattr(Path, "replace", fail)
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(kind, match=words):
        write_lora(tmp_path / "m.safetensors", sample_layers(), overwrite=overwrite)
    assert only(tmp_path, *(["m.safetensors"] if overwrite else []))
    if overwrite:
        assert (tmp_path / "m.safetensors").read_bytes() == b"old"


def half_written(error):
    def write(temporary, header, _):
        temporary.write_bytes(header)
        raise error

    return write


@pytest.mark.parametrize("damage", ["cut", "flip", "name"])
def test_a_file_that_reads_back_differently_is_not_kept(tmp_path, monkeypatch, damage):
    write = writing._write

    def damaged(temporary, header, tensors):
        sha256 = write(temporary, header, tensors)
        content = temporary.read_bytes()
        if damage == "cut":
            content = content[:-3]
        elif damage == "flip":
            content = content[:-1] + bytes([content[-1] ^ 0x40])
        else:
            content = content.replace(b"attn1_to_q.", b"attn1_to_?.")
        temporary.write_bytes(content)
        return sha256

    monkeypatch.setattr(writing, "_write", damaged)
    with pytest.raises(OutputError, match=r"m\.safetensors .*read back"):
        write_lora(tmp_path / "m.safetensors", sample_layers())
    assert only(tmp_path)


def test_a_wrong_delta_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(serialize, "_cast", lambda item, _: (item.down.half(), (item.up * 1.01).half()))
    with pytest.raises(OutputError, match="loses too much in fp16"):
        write_lora(tmp_path / "m.safetensors", sample_layers())
    assert only(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m.pt", "must end in"),
        ("none.safetensors", "WebUI uses"),
        ("a,b.safetensors", "doesn't work in prompts"),
    ],
)
def test_names_are_checked_before_anything_is_written(tmp_path, name, words):
    for attempt in (check_output, lambda path: write_lora(path, sample_layers())):
        with pytest.raises(OutputError, match=words):
            attempt(tmp_path / name)
    assert only(tmp_path)


def test_folders_are_checked_beforehand(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="does not exist"):
        check_output(tmp_path / "nowhere" / "m.safetensors")
    (tmp_path / "f.safetensors").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path / "f.safetensors", overwrite=True)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage(10, 9, 1 << 20))
    check_output(tmp_path / "m.safetensors", size=1 << 20)
    with pytest.raises(OutputError, match=r"needs 5 MB, but .* has 1 MB left"):
        check_output(tmp_path / "m.safetensors", size=5 << 20)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is writable for root")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="can't be written to"):
        check_output(tmp_path / "m.safetensors")
    tmp_path.chmod(0o700)


def test_a_folder_that_refuses_new_files(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutputError, match="can't be written to"):
        check_output(tmp_path / "m.safetensors")


def test_the_size_is_told_beforehand(tmp_path):
    items = layers(*(layer(name, 64, 64, 16) for name in (Q, K2)))
    write_lora(tmp_path / "m.safetensors", items)
    assert (
        0.5 * output_size(items, "fp16")
        < (tmp_path / "m.safetensors").stat().st_size
        < output_size(items, "fp16")
    )


def test_nothing_to_write_and_unknown_precisions_are_refused(tmp_path):
    with pytest.raises(OutputError, match="no layer"):
        write_lora(tmp_path / "m.safetensors", {})
    with pytest.raises(OutputError, match="'fp12' doesn't exist"):
        write_lora(tmp_path / "m.safetensors", sample_layers(), precision="fp12")
    with pytest.raises(OutputError, match="read back"):
        write_lora(tmp_path / "m.safetensors", layers(layer("no_such_module"), layer(Q)))
    assert only(tmp_path)
