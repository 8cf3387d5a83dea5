"""The coefficients beside a merged file: exact, whole, harmless, and no LoRA to anybody."""

from __future__ import annotations

import hashlib
import json
import pickle
import random

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from lib_ziplora.errors import LoraFileError, OutputError
from lib_ziplora.lora.io.sidecar import (
    FORMAT,
    KEY,
    Sidecar,
    check_sidecar,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)

from .files import K2, OUT, Q

# What the WebUI, Forge, ComfyUI and our own server list as models.
LISTED = {".safetensors", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".sft"}

ONE = {f"0.{Q}": torch.ones(3)}


def sample() -> Sidecar:
    generator = torch.Generator().manual_seed(0)
    vectors = (
        {Q: torch.randn(5, generator=generator), K2: torch.randn(7, generator=generator) * 1e-6},
        {},
        {Q: torch.randn(5, generator=generator), OUT: torch.randn(3, generator=generator)},
    )
    return Sidecar(vectors, {"settings": {"steps": 3}, "text": "\u58a8"})


def header(**changed) -> str:
    return json.dumps({"format": FORMAT, "loras": 1, "about": {}, **changed})


def test_what_is_packed_is_read_back_bit_for_bit(tmp_path):
    meant, path = sample(), tmp_path / "a.ziplora"
    write_sidecar(path, meant.pack())
    read, sha256 = read_sidecar(path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read.about == meant.about
    assert [set(vectors) for vectors in read.vectors] == [set(vectors) for vectors in meant.vectors]
    for ours, theirs in zip(meant.vectors, read.vectors, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_same_content_gives_the_same_bytes():
    assert sample().pack() == sample().pack()


def test_it_is_a_safetensors_file_under_a_name_that_nobody_lists(tmp_path):
    path = sidecar_path(tmp_path / "v1.5 merge.safetensors")
    assert path == tmp_path / "v1.5 merge.ziplora" and path.suffix not in LISTED
    write_sidecar(path, sample().pack())
    assert set(load_file(path)) == {f"0.{Q}", f"0.{K2}", f"2.{Q}", f"2.{OUT}"}


def test_it_is_replaced_only_when_asked(tmp_path):
    lora, path = tmp_path / "a.safetensors", tmp_path / "a.ziplora"
    check_sidecar(lora, False)
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"a\.ziplora exists already"):
        check_sidecar(lora, False)
    check_sidecar(lora, True)


def test_every_truncation_is_noticed(tmp_path):
    whole, path = sample().pack(), tmp_path / "a.ziplora"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(LoraFileError, match=r"a\.ziplora is damaged"):
            read_sidecar(path)


def test_flipped_bytes_end_in_an_error_or_in_finite_vectors(tmp_path):
    whole, path, refused = sample().pack(), tmp_path / "a.ziplora", 0
    places = random.Random(0)
    for _ in range(500):
        broken = bytearray(whole)
        broken[places.randrange(len(whole))] ^= 1 << places.randrange(8)
        path.write_bytes(broken)
        try:
            read, _ = read_sidecar(path)
        except LoraFileError as error:
            assert "a.ziplora" in str(error)
            refused += 1
            continue
        assert all(torch.isfinite(vector).all() for vectors in read.vectors for vector in vectors.values())
    assert refused > 100


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(Evil()), "damaged"),
        (save(ONE, {}), "damaged"),
        (save(ONE, {KEY: "[]"}), "damaged"),
        (save(ONE, {KEY: "[" * 100_000}), "damaged"),
        (save(ONE, {KEY: header(loras=10**9)}), "damaged"),
        (save(ONE, {KEY: header(loras="1")}), "damaged"),
        (save(ONE, {KEY: header(about={"text": "\ud800"})}), "damaged"),
        (save(ONE, {KEY: header(about=[])}), "damaged"),
        (save(ONE, {KEY: header(format=FORMAT + 1)}), "later version"),
        (save({f"1.{Q}": torch.ones(3)}, {KEY: header()}), "damaged"),
        (save({f"00.{Q}": torch.ones(3)}, {KEY: header()}), "damaged"),
        (save({Q: torch.ones(3)}, {KEY: header()}), "damaged"),
        (save({f"0.{Q}": torch.ones(3).half()}, {KEY: header()}), "damaged"),
        (save({f"0.{Q}": torch.ones(3, 1)}, {KEY: header()}), "damaged"),
        (save({f"0.{Q}": torch.ones(0)}, {KEY: header()}), "damaged"),
        (save({f"0.{Q}": torch.tensor([1.0, float("nan")])}, {KEY: header()}), "damaged"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, content, words):
    path = tmp_path / "a.ziplora"
    path.write_bytes(content)
    with pytest.raises(LoraFileError, match=words):
        read_sidecar(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LoraFileError, match=r"a\.ziplora can't be read"):
        read_sidecar(tmp_path / "a.ziplora")
    save_file(ONE, tmp_path / "b.ziplora", {KEY: header()})
    (read,) = read_sidecar(tmp_path / "b.ziplora")[0].vectors
    assert read.keys() == {Q} and read[Q].tolist() == [1.0, 1.0, 1.0]


def test_a_merge_that_learnt_nothing_is_read_back(tmp_path):
    meant, path = Sidecar(({}, {}), {"text": "only"}), tmp_path / "a.ziplora"
    write_sidecar(path, meant.pack())
    assert read_sidecar(path)[0] == meant
