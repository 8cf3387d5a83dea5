"""A file is read once, into memory: whatever happens to it meanwhile or later is told, or does no harm."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch

from lib_ziplora.errors import LoraFileError
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.write import write_lora

from .files import Q, assert_same_deltas, layer, layers, sample_layers


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_lora(path, layers(layer(Q, 4000, 4000, 300)))
    return path


def at_step(number, action):
    """What does something at one of the steps of a reading."""
    steps = iter(range(100))
    return lambda: action() if next(steps) == number else None


def test_a_file_that_is_cut_short_afterwards_does_no_harm(file):
    lora, whole = read_lora(file), read_lora(file).layers[Q].delta()
    os.truncate(file, 0)
    assert torch.equal(lora.layers[Q].delta(), whole)


@pytest.mark.parametrize("step", [0, 1])
def test_a_file_that_is_cut_short_while_it_is_read_is_refused(file, step):
    with pytest.raises(LoraFileError, match=r"a\.safetensors was changed by another program .* Try again"):
        read_lora(file, on_step=at_step(step, lambda: os.truncate(file, file.stat().st_size // 2)))


def test_a_file_that_is_overwritten_in_place_while_it_is_read_is_refused(file):
    def overwrite():
        with file.open("rb+") as stream:
            stream.seek(-8, os.SEEK_END)
            stream.write(b"01234567")
        os.utime(file)

    with pytest.raises(LoraFileError, match=r"a\.safetensors was changed"):
        read_lora(file, on_step=at_step(1, overwrite))


@pytest.mark.parametrize("action", ["deleted", "replaced"])
def test_a_file_that_is_deleted_or_replaced_while_it_is_read_is_read_as_it_was(file, action):
    content, other = file.read_bytes(), file.with_name("b.safetensors")
    write_lora(other, sample_layers())
    happens = file.unlink if action == "deleted" else lambda: other.replace(file)
    lora = read_lora(file, on_step=at_step(1, happens))
    assert (lora.size, lora.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert list(lora.layers) == [Q]


def test_a_file_can_be_replaced_by_what_is_made_of_it(file):
    lora = read_lora(file)
    write_lora(file, lora.layers, overwrite=True)
    assert_same_deltas(read_lora(file).layers, lora.layers)
