"""Whatever the bytes are, reading ends in layers or in one of our own errors, and allocates no more than the file."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lib_ziplora.errors import ZipLoraError
from lib_ziplora.lora.io.inspect import inspect_header
from lib_ziplora.lora.io.read import read_lora

from .files import Largest, Q, layer, layers, sample_layers, save, tensors

FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save(
        tmp_path_factory.mktemp("whole") / "a.safetensors", tensors(sample_layers()), {"k": "v"}
    ).read_bytes()


def read_or_refuse(file, content):
    """True when it was read; anything but our own errors fails the test."""
    file.write_bytes(content)
    try:
        inspect_header(file)
        return bool(read_lora(file).layers)
    except ZipLoraError as error:
        assert file.name in str(error)
        return False


@FUZZ
@given(cut=st.floats(0, 1, exclude_max=True))
def test_truncations_are_always_refused(tmp_path, whole, cut):
    assert not read_or_refuse(tmp_path / "f.safetensors", whole[: int(cut * len(whole))])


@FUZZ
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)
)
def test_flipped_header_bytes_never_crash(tmp_path, whole, flips):
    content = bytearray(whole)
    length = 8 + int.from_bytes(whole[:8], "little")
    for place, change in flips:
        content[int(place * length)] ^= change
    read_or_refuse(tmp_path / "f.safetensors", bytes(content))


@FUZZ
@given(content=st.binary(max_size=200))
@example(content=b"\x02\0\0\0\0\0\0\0[]")
@example(content=b"\x02\0\0\0\0\0\0\0{}")
@example(content=b"\xff" * 64)
def test_noise_is_refused(tmp_path, content):
    assert not read_or_refuse(tmp_path / "f.safetensors", content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(
    entry=st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F16", "F32", "F8_E4M3", "BOOL", "F4", "X"]) | json_values,
            "shape": st.lists(st.integers(0, 2**64), max_size=4) | json_values,
            "data_offsets": st.lists(st.integers(0, 200), min_size=2, max_size=2) | json_values,
        }
    )
    | json_values,
    metadata=json_values,
    key=st.sampled_from(
        [f"{Q}.lora_down.weight", f"{Q}.alpha", "", ".", "a.b.c.d.e", "\ud800", "lora_", "unet."]
    ),
)
def test_wellformed_headers_of_nonsense_are_refused(tmp_path, entry, metadata, key):
    header = json.dumps({"__metadata__": metadata, key: entry}).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0" * 100
    assert not read_or_refuse(tmp_path / "f.safetensors", content)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 99_999_999, 2**32])
def test_a_lying_header_length_allocates_nothing(tmp_path, whole, length):
    (tmp_path / "f.safetensors").write_bytes(length.to_bytes(8, "little") + whole[8:])
    tracemalloc.start()
    with pytest.raises(ZipLoraError):
        read_lora(tmp_path / "f.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_memory_is_about_the_files_size(tmp_path):
    content = tensors(layers(layer(Q, 4000, 4000, 64)))
    file = save(tmp_path / "big.safetensors", content)
    size = file.stat().st_size
    with Largest() as largest:
        read_lora(file)
    tracemalloc.start()
    lora = read_lora(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lora.layers[Q].rank == 64
    # One buffer of the file's size holds all factors; tracemalloc sees what Python has beside it.
    assert largest.numbers == size
    assert abs(lora.layers[Q].up.data_ptr() - lora.layers[Q].down.data_ptr()) < size
    assert peak < 1_000_000
