"""The size of a file beforehand: equal to the real file's, from layers and from headers alone."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_ziplora.lora.algebra import merge_extras, merge_layers
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.size import expected_size, file_shapes
from lib_ziplora.lora.io.write import write_lora
from lib_ziplora.lora.lowrank import EXACT, RankRule, cut

from .adapter_samples import SAMPLES
from .files import (
    CONV,
    DIALECTS,
    K2,
    OUT,
    SKIP,
    TE2,
    UPSAMPLER,
    Q,
    layer,
    layers,
    sample_layers,
    save,
    tensors,
)
from .test_families import LABELS, NORM, module_of, named

TE2_K = "lora_te2_text_model_encoder_layers_0_self_attn_k_proj"
# All that is not rounding.
NEARLY = RankRule(1 - 1e-9)
TOLD_BY_HEADER = ("lora", "locon", "loha", "lokr", "full", "glora", "dora", "doha", "dokr")


def shapes_of(extras):
    return {name: tuple(tensor.shape) for name, tensor in extras.items()}


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("rank", [None, 4, 1])
def test_the_size_is_the_files_own(tmp_path, precision, rank):
    a, b = sample_layers(1) | layers(layer(TE2_K, 4, 4, 3)), sample_layers(2)
    extras = {f"{Q}.diff_b": torch.zeros(6)}
    metadata = {"note": "猫 and more"}
    merged = merge_layers([a, b], [0.7, 0.4])
    if rank is not None:
        merged = {name: cut(item, RankRule(1.0, rank))[0] for name, item in merged.items()}
    write_lora(tmp_path / "m.safetensors", merged, metadata, precision, extras=extras)
    size = (tmp_path / "m.safetensors").stat().st_size
    assert expected_size([a, b], precision, rank, shapes_of(extras), metadata, "m") == size
    assert 0 <= size - expected_size([a, b], precision, rank, shapes_of(extras)) < 100
    assert expected_size([merged], precision) <= size


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranks=st.lists(
        st.dictionaries(
            st.sampled_from([Q, K2, OUT, CONV, SKIP, UPSAMPLER, TE2]), st.integers(1, 6), min_size=1
        ),
        min_size=1,
        max_size=3,
    ),
    rank=st.none() | st.integers(1, 8) | st.sampled_from([0.5, 0.99]),
    precision=st.sampled_from(["fp16", "fp32"]),
)
def test_any_merge_is_as_large_as_told(tmp_path, ranks, rank, precision):
    loras = [
        {n: layer(n, 5, (4, 3, 3) if n in (CONV, UPSAMPLER) else 7, r, seed=i) for n, r in items.items()}
        for i, items in enumerate(ranks)
    ]
    rule = EXACT if rank is None else RankRule(rank) if isinstance(rank, float) else RankRule(1.0, rank)
    merged = {name: cut(item, rule)[0] for name, item in merge_layers(loras).items()}
    write_lora(tmp_path / "m.safetensors", merged, precision=precision, overwrite=True)
    size, told = (tmp_path / "m.safetensors").stat().st_size, expected_size(loras, precision, rank, name="m")
    if isinstance(rank, float):
        assert size <= told
    else:
        assert size == told


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_headers_say_what_the_layers_say(tmp_path, dialect):
    meant = sample_layers()
    file = save(tmp_path / "a.safetensors", tensors(meant, DIALECTS[dialect], as_convolution=True))
    found = file_shapes(file)
    assert {n: (s.rank, s.weight_shape) for n, s in found.layers.items()} == {
        n: (item.rank, item.weight_shape) for n, item in meant.items()
    }
    assert not found.extras and not found.unknown
    assert expected_size([found.layers], "fp16") == expected_size([meant], "fp16")


@pytest.mark.parametrize("name", SAMPLES)
def test_the_header_of_any_family_gives_the_shape_and_the_highest_rank(tmp_path, name):
    sample = SAMPLES[name]
    module = module_of(sample)
    file = save(tmp_path / "a.safetensors", named(module, sample.parts))
    found, lora = file_shapes(file), read_lora(file, {module: sample.weight}.get, NEARLY)
    assert found.extras == shapes_of(lora.extras)
    if module == NORM:
        assert not found.layers
        return
    if name.split("-")[0] not in TOLD_BY_HEADER:
        assert found.unknown == (module,)
        return
    assert found.layers[module].weight_shape == lora.layers[module].weight_shape
    assert found.layers[module].rank >= lora.layers[module].rank
    if LABELS.get(name.split("-")[0], name.split("-")[0]) == "lora":
        assert found.layers[module].rank == lora.layers[module].rank


def test_extras_of_several_files_count_once(tmp_path):
    parts = SAMPLES["full-12x8"].parts
    files = [save(tmp_path / f"{n}.safetensors", named(Q, parts)) for n in "ab"]
    loras = [read_lora(file, rule=EXACT) for file in files]
    extras = merge_extras([lora.extras for lora in loras])
    write_lora(tmp_path / "m.safetensors", merge_layers([x.layers for x in loras]), {}, "fp32", extras=extras)
    told = expected_size([x.layers for x in loras], "fp32", extras=shapes_of(extras), name="m")
    assert told == (tmp_path / "m.safetensors").stat().st_size


def test_a_merged_file_of_sdxls_size_is_told_within_a_hundredth():
    """Two rank-64 LoRAs of 560 attention layers: 2 * 64 * (in + out) numbers a layer, and little beside."""
    shape = {f"lora_unet_x_{i}": layer(Q, 640, 640, 64) for i in range(2)}
    numbers = 2 * 2 * 64 * (640 + 640)
    metadata = {"note": json.dumps(list(range(100)))}
    assert expected_size([shape, shape], "fp16", metadata=metadata) == pytest.approx(2 * numbers, rel=0.01)
