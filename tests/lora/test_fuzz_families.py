"""Damaged modules of every family end in a LoRA or a sentence, with no more memory than the layer needs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_ziplora.errors import LoraFileError, ZipLoraError
from lib_ziplora.lora.formats.families import uses_alpha
from lib_ziplora.lora.formats.keys import FAMILY_PARTS
from lib_ziplora.lora.formats.sdxl import largest_weight
from lib_ziplora.lora.io.inspect import inspect_header
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.size import expected_size, file_shapes

from .adapter_samples import SAMPLES
from .files import CONV, SKIP, TE1, TE2, Largest, Q, save
from .test_families import NORM, module_of, named

FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ANY_SAMPLE = st.sampled_from(sorted(SAMPLES))
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


def whole(folder, sample):
    return save(folder / "whole.safetensors", named(module_of(sample), sample.parts)).read_bytes()


def read_or_refuse(file, weights, names=()):
    """The LoRA, or None where it was refused in our own words, which name the file and one of ``names``."""
    try:
        expected_size([file_shapes(file).layers])
        inspect_header(file)
        lora = read_lora(file, weights)
    except ZipLoraError as error:
        assert file.name in str(error)
        assert not names or any(name in str(error) for name in names)
        return None
    for layer in lora.layers.values():
        assert bool(torch.isfinite(layer.up).all() and torch.isfinite(layer.down).all())
    return lora


@FUZZ
@given(name=ANY_SAMPLE, cut=st.floats(0, 1, exclude_max=True))
def test_truncations_are_always_refused(tmp_path, name, cut):
    sample, file = SAMPLES[name], tmp_path / "f.safetensors"
    content = whole(tmp_path, sample)
    file.write_bytes(content[: int(cut * len(content))])
    assert read_or_refuse(file, {module_of(sample): sample.weight}.get) is None


@FUZZ
@given(
    name=ANY_SAMPLE,
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_flipped_bytes_anywhere_never_crash(tmp_path, name, flips):
    sample, file = SAMPLES[name], tmp_path / "f.safetensors"
    content = bytearray(whole(tmp_path, sample))
    for place, change in flips:
        content[int(place * len(content))] ^= change
    file.write_bytes(bytes(content))
    read_or_refuse(file, {module_of(sample): sample.weight}.get)


@FUZZ
@given(name=ANY_SAMPLE, data=st.data())
def test_wrong_dtypes_are_read_or_refused_by_layer(tmp_path, name, data):
    sample = SAMPLES[name]
    part = data.draw(st.sampled_from(sorted(sample.parts)))
    parts = {**sample.parts, part: sample.parts[part].to(data.draw(st.sampled_from(DTYPES)))}
    module = module_of(sample)
    file = save(tmp_path / "f.safetensors", named(module, parts))
    lora = read_or_refuse(file, {module: sample.weight}.get, [module])
    single = part in ("alpha", "scale", "on_input")
    if not single and not parts[part].is_floating_point():
        assert lora is None


@FUZZ
@given(name=ANY_SAMPLE, value=st.sampled_from([math.nan, math.inf, -math.inf]), data=st.data())
def test_numbers_that_are_not_finite_are_always_refused(tmp_path, name, value, data):
    sample = SAMPLES[name]
    ignored = {"on_input"} if uses_alpha(sample.parts) else {"on_input", "alpha"}
    part = data.draw(st.sampled_from(sorted(set(sample.parts) - ignored)))
    damaged = sample.parts[part].clone().float()
    damaged.view(-1)[data.draw(st.integers(0, damaged.numel() - 1))] = value
    module = module_of(sample)
    file = save(tmp_path / "f.safetensors", named(module, {**sample.parts, part: damaged}))
    assert read_or_refuse(file, {module: sample.weight}.get, [module]) is None


@pytest.mark.parametrize("size", [1e30, 3e38])
@pytest.mark.parametrize("name", SAMPLES)
def test_numbers_whose_product_is_not_finite_are_refused(tmp_path, name, size):
    sample = SAMPLES[name]
    parts = {
        p: t if p in ("alpha", "scale", "on_input") else torch.full_like(t, size)
        for p, t in sample.parts.items()
    }
    module = module_of(sample)
    file = save(tmp_path / "f.safetensors", named(module, parts))
    read_or_refuse(file, {module: sample.weight}.get, [module])


@FUZZ
@given(name=ANY_SAMPLE, data=st.data())
def test_missing_empty_and_misshapen_parts_are_read_or_refused(tmp_path, name, data):
    sample = SAMPLES[name]
    part = data.draw(st.sampled_from(sorted(sample.parts)))
    shape = data.draw(st.none() | st.lists(st.integers(0, 9), max_size=5))
    parts = {p: t for p, t in sample.parts.items() if p != part or shape is not None}
    if shape is not None:
        parts[part] = torch.ones(shape)
    module = module_of(sample)
    file = save(tmp_path / "f.safetensors", named(module, parts) | {"stray": torch.zeros(0)})
    lora = read_or_refuse(file, {module: sample.weight}.get)
    if shape is not None and 0 in shape:
        assert lora is None


LONG = 40_000
BLOW_UPS = {
    "loha": {f"hada_w{n}_a": (LONG, 1) for n in "12"} | {f"hada_w{n}_b": (1, LONG) for n in "12"},
    "loha, one half": {
        "hada_w1_a": (8, 1),
        "hada_w1_b": (1, 8),
        "hada_w2_a": (LONG, 1),
        "hada_w2_b": (1, LONG),
    },
    "loha, tucker": {
        **{f"hada_t{n}": (1, 1, 200, 200) for n in "12"},
        **{f"hada_w{n}_a": (1, 8) for n in "12"},
        **{f"hada_w{n}_b": (1, LONG) for n in "12"},
    },
    "lokr": {"lokr_w1": (LONG, 1), "lokr_w2": (1, LONG)},
    "lokr, first": {"lokr_w1_a": (LONG, 1), "lokr_w1_b": (1, LONG), "lokr_w2": (2, 2)},
    "lokr, second": {"lokr_w1": (2, 2), "lokr_w2_a": (LONG, 1), "lokr_w2_b": (1, LONG)},
    "lokr, tucker": {
        "lokr_w1": (2, 2),
        "lokr_t2": (1, 1, 200, 200),
        "lokr_w2_a": (1, 8),
        "lokr_w2_b": (1, LONG),
    },
    "locon, mid": {
        "lora_down.weight": (1, LONG, 1, 1),
        "lora_mid.weight": (100, 1, 20, 20),
        "lora_up.weight": (8, 100, 1, 1),
    },
    "dora": {"lora_down.weight": (1, LONG), "lora_up.weight": (LONG, 1), "dora_scale": (1, LONG)},
    "dora, scale": {"lora_down.weight": (1, 8), "lora_up.weight": (12, 1), "dora_scale": (LONG, 1, 1, 1)},
    "dora of peft": {
        "lora_A.weight": (1, 8),
        "lora_B.weight": (12, 1),
        "lora_magnitude_vector.weight": (LONG,),
    },
    "glora, a": {
        "a1.weight": (8, 1),
        "a2.weight": (1, 100 * LONG),
        "b1.weight": (12, 1),
        "b2.weight": (1, 8),
    },
    "glora, b": {"a1.weight": (8, 1), "a2.weight": (1, 8), "b1.weight": (LONG, 1), "b2.weight": (1, LONG)},
    "oft": {"oft_blocks": (1, LONG, 1)},
    "boft": {"oft_blocks": (LONG, 1, 1, 1)},
    "ia3": {"weight": (LONG,), "on_input": ()},
}


@pytest.mark.parametrize("name", BLOW_UPS)
@pytest.mark.parametrize("module", [Q, CONV, SKIP, TE1, TE2])
def test_a_small_file_never_asks_for_more_than_the_layer_has(tmp_path, name, module):
    content = {
        f"{module}.{part}": torch.ones(shape, dtype=torch.float16) for part, shape in BLOW_UPS[name].items()
    }
    file = save(tmp_path / "f.safetensors", content)
    in_file = sum(tensor.numel() for tensor in content.values())
    with Largest() as largest, pytest.raises(LoraFileError, match=rf"f\.safetensors: .*{module}"):
        read_lora(file, lambda name: torch.ones(12, 8))
    assert largest.numbers < 10 * in_file + 1000


SIZES = st.lists(st.sampled_from([1, 2, 3, 8, 12, 300, 3000]), min_size=1, max_size=4)
PAIR = ("alpha", "weight", "lora_up.weight", "lora_down.weight", "lora_mid.weight")
PART = st.sampled_from(sorted({*FAMILY_PARTS, *PAIR}))


@FUZZ
@given(
    st.dictionaries(PART, SIZES.filter(lambda shape: math.prod(shape) < 1e5), min_size=1, max_size=7),
    st.sampled_from([Q, CONV, SKIP, NORM, TE1]),
)
def test_whatever_the_shapes_no_tensor_is_larger_than_the_layer(tmp_path, parts, module):
    content = {f"{module}.{part}": torch.ones(shape, dtype=torch.float16) for part, shape in parts.items()}
    file = save(tmp_path / "f.safetensors", content)
    for weights in (None, lambda name: torch.ones(12, 8), lambda name: torch.ones(12, 8, 3, 3)):
        with Largest() as largest:
            read_or_refuse(file, weights)
        assert largest.numbers <= largest_weight(module)
