"""What is written is what was meant, in the names and shapes that loaders take, and read back to prove it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lib_ziplora.errors import OutputError
from lib_ziplora.lora.algebra import merge_layers
from lib_ziplora.lora.io import serialize
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.verified import VerifiedFile
from lib_ziplora.lora.io.write import write_lora

from .files import CONV, SKIP, TE1, UNET, Q, assert_same_deltas, layer, layers, only, sample_layers

TE2_Q = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
TOLERANCE = {"fp16": 2e-3, "bf16": 2e-2, "fp32": 1e-6}


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_what_is_written_is_read_back(tmp_path, precision):
    meant = sample_layers()
    model_hash = write_lora(tmp_path / "m.safetensors", meant, {"key": "value"}, precision)
    lora = read_lora(tmp_path / "m.safetensors")
    assert_same_deltas(lora.layers, meant, rtol=0, atol=TOLERANCE[precision] * 0.1)
    assert lora.sha256 == hashlib.sha256((tmp_path / "m.safetensors").read_bytes()).hexdigest()
    assert lora.metadata["sshs_model_hash"] == model_hash
    assert (lora.dialect, lora.unknown, lora.metadata["key"]) == ("kohya", (), "value")
    assert {item.down.dtype for item in lora.layers.values()} == {serialize.FORMATS[precision].dtype}
    assert only(tmp_path, "m.safetensors")


def test_a_merge_survives_the_file(tmp_path):
    a, b = sample_layers(1), sample_layers(2)
    merged = merge_layers([a, b], [0.7, 0.4], [{Q: torch.rand(5)}, {Q: torch.rand(5)}])
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


def test_every_convolution_of_the_unet_is_written_as_one():
    items = {
        name: layer(name, 2, (2, *m.shape[2:]) if len(m.shape) == 4 and m.shape[2] > 1 else 2, 1)
        for name, m in UNET.items()
    }
    entries = serialize.file_entries(items, "fp16")
    for name, module in UNET.items():
        assert entries[f"{name}.lora_down.weight"].shape[2:] == module.shape[2:], name
        assert len(entries[f"{name}.lora_up.weight"].shape) == len(module.shape), name


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
    write_lora(tmp_path / "m.safetensors", forward, {"a": "b"})
    first = (tmp_path / "m.safetensors").read_bytes()
    write_lora(tmp_path / "m.safetensors", backward, {"a": "b"}, overwrite=True)
    assert (tmp_path / "m.safetensors").read_bytes() == first


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


# --- read back ---------------------------------------------------------------------------------------


def flipped(content, place, bit):
    changed = bytearray(content)
    changed[place] ^= bit
    return bytes(changed)


class FaultyDisk:
    """A raw stream that changes one bit of what is written to it, or leaves out the last byte of a write."""

    def __init__(self, stream, place, bit):
        self.stream, self.place, self.bit = stream, place, bit

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, data):
        self.stream.write(flipped(data, self.place, self.bit) if self.bit else data[:-1])
        return len(data)


@pytest.mark.parametrize(("place", "bit"), [(-1, 0x40), (-2, 0x01), (2, 0x01), (0, 0)])
def test_a_disk_that_keeps_something_else_is_noticed(tmp_path, monkeypatch, place, bit):
    open_path = Path.open

    def faulty(self, mode="r", *rest, **options):
        stream = open_path(self, mode, *rest, **options)
        return FaultyDisk(stream, place, bit) if options.get("buffering") == 0 and mode == "xb" else stream

    monkeypatch.setattr(Path, "open", faulty)
    with pytest.raises(OutputError, match=r"m\.safetensors was read back differently"):
        write_lora(tmp_path / "m.safetensors", sample_layers())
    assert only(tmp_path)


@pytest.mark.parametrize("extra", [-1, 0, 1, 63])
def test_everything_is_read_back_in_parts(tmp_path, extra):
    meant = bytes(range(256))[: 3 * 64 + extra]
    for wrong in (None, 0, 63, 64, len(meant) - 1):
        path = tmp_path / f"{wrong}"
        with VerifiedFile(path, "f") as file:
            file.SIZE = 64
            if wrong is None:
                file.write(memoryview(meant))
                file.rewind()
                file.write(memoryview(meant))
                assert path.read_bytes() == meant
                continue
            chunk = wrong // 64
            file.write(memoryview(meant[: chunk * 64]))
            file._stream = FaultyDisk(file._stream, wrong % 64, 1)
            with pytest.raises(OutputError, match="f was read back differently"):
                file.write(memoryview(meant[chunk * 64 :]))


def test_extras_are_written_beside_the_layers(tmp_path):
    extras = {f"{Q}.diff_b": torch.randn(6), "lora_unet_input_blocks_4_1_norm.w_norm": torch.randn(4)}
    extras["lora_unet_input_blocks_4_1_norm.b_norm"] = torch.randn(4)
    write_lora(tmp_path / "m.safetensors", layers(layer(Q)), precision="fp32", extras=extras)
    read = read_lora(tmp_path / "m.safetensors").extras
    assert read.keys() == extras.keys() and all(torch.equal(read[name], extras[name]) for name in extras)


def test_nothing_to_write_and_unknown_precisions_are_refused(tmp_path):
    with pytest.raises(OutputError, match="no layer"):
        write_lora(tmp_path / "m.safetensors", {})
    with pytest.raises(OutputError, match="'fp12' doesn't exist"):
        write_lora(tmp_path / "m.safetensors", sample_layers(), precision="fp12")
    with pytest.raises(OutputError, match="read back"):
        write_lora(tmp_path / "m.safetensors", layers(layer("no_such_module"), layer(Q)))
    assert only(tmp_path)
