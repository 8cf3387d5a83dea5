"""Files of every dialect and form into layers; broken ones into sentences."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_ziplora.lora.formats.convert import is_finite
from lib_ziplora.lora.io.inspect import inspect_header
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.write import write_lora
from lib_ziplora.lora.layer import LoraLayer

from .files import (
    CONV,
    DIALECTS,
    K2,
    OUT,
    SKIP,
    TE1,
    TE2,
    UPSAMPLER,
    Q,
    assert_same_deltas,
    layer,
    layers,
    sample_layers,
    save,
    tensors,
)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def rounded(items, dtype):
    return {n: LoraLayer(n, i.down.to(dtype), i.up.to(dtype), i.alpha) for n, i in items.items()}


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dialect_gives_the_same_layers(tmp_path, dialect, dtype):
    meant = sample_layers()
    file = save(
        tmp_path / "some lora.safetensors", tensors(meant, DIALECTS[dialect], dtype=DTYPES[dtype]), {"a": "b"}
    )
    lora = read_lora(file)
    assert_same_deltas(lora.layers, rounded(meant, DTYPES[dtype]))
    assert {n: i.alpha for n, i in lora.layers.items()} == {n: i.alpha for n, i in meant.items()}
    assert (lora.name, lora.metadata, lora.unknown, lora.base) == ("some lora", {"a": "b"}, (), "sdxl")
    assert len(lora.sha256) == 64
    assert all(i.up.dtype == i.down.dtype == DTYPES[dtype] for i in lora.layers.values())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dialect=st.sampled_from(sorted(DIALECTS)),
    dtype=st.sampled_from(sorted(DTYPES)),
    precision=st.sampled_from(["fp16", "bf16", "fp32"]),
    sizes=st.fixed_dictionaries(
        {},
        optional={
            name: st.tuples(
                st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.none() | st.floats(0.01, 300)
            )
            for name in (Q, K2, OUT, CONV, SKIP, UPSAMPLER, TE1, TE2)
        },
    ).filter(bool),
    as_convolution=st.booleans(),
)
def test_read_write_read_is_the_identity_on_deltas(
    tmp_path, dialect, dtype, precision, sizes, as_convolution
):
    meant = {}
    for name, (out, columns, rank, alpha) in sizes.items():
        shape = (columns, 3, 3) if name in (CONV, UPSAMPLER) else columns
        meant[name] = layer(name, out, shape, rank, alpha)
    content = tensors(meant, DIALECTS[dialect], dtype=DTYPES[dtype], as_convolution=as_convolution)
    first = read_lora(save(tmp_path / "first.safetensors", content))
    assert_same_deltas(first.layers, rounded(meant, DTYPES[dtype]))
    write_lora(tmp_path / "second.safetensors", first.layers, precision=precision, overwrite=True)
    second = read_lora(tmp_path / "second.safetensors")
    size = max(float(item.delta().abs().max()) for item in first.layers.values())
    tolerance = {"fp16": 2e-3, "bf16": 2e-2, "fp32": 1e-6}[precision]
    assert_same_deltas(second.layers, first.layers, rtol=tolerance, atol=4 * tolerance * size + 1e-7)


def test_without_alpha_the_rank_is_alpha(tmp_path):
    file = save(tmp_path / "a.safetensors", tensors(sample_layers(), with_alpha=False))
    assert all(item.scaling == 1.0 for item in read_lora(file).layers.values())


def test_a_scale_tensor_is_the_scaling_itself(tmp_path):
    content = {**tensors(layers(layer(Q, alpha=2.0))), f"{Q}.scale": torch.tensor(0.3)}
    assert read_lora(save(tmp_path / "a.safetensors", content)).layers[Q].scaling == pytest.approx(0.3)


def test_alpha_may_be_an_integer_or_of_one_dimension(tmp_path):
    content = {**tensors(layers(layer(Q), layer(K2)))}
    content |= {f"{Q}.alpha": torch.tensor(7), f"{K2}.alpha": torch.tensor([1.5], dtype=torch.bfloat16)}
    read = read_lora(save(tmp_path / "a.safetensors", content)).layers
    assert (read[Q].alpha, read[K2].alpha) == (7.0, 1.5)


def test_diffusers_keeps_alphas_in_its_header(tmp_path):
    config = {
        "unet.r": 3,
        "unet.lora_alpha": 6,
        "unet.alpha_pattern": {"mid_block.attentions.0.transformer_blocks.1.attn2.to_k": 1.0},
        "text_encoder.lora_alpha": 8,
        "text_encoder.use_rslora": True,
    }
    content = tensors(
        layers(layer(Q, rank=3), layer(K2, rank=2), layer(TE1, rank=4), layer(TE2, rank=5)),
        DIALECTS["diffusers"],
        with_alpha=False,
    )
    file = save(tmp_path / "a.safetensors", content, {"lora_adapter_metadata": json.dumps(config)})
    scalings = {name: item.scaling for name, item in read_lora(file).layers.items()}
    assert scalings == pytest.approx({Q: 2.0, K2: 0.5, TE1: 4.0, TE2: 1.0})


@pytest.mark.parametrize("ranks", [(3, 3), (2, 4)])
def test_lora_mid_is_folded_in_exactly(tmp_path, ranks):
    inner, outer = ranks
    down, mid, up = torch.randn(inner, 4, 1, 1), torch.randn(outer, inner, 3, 3), torch.randn(5, outer, 1, 1)
    content = {
        f"{CONV}.lora_down.weight": down,
        f"{CONV}.lora_mid.weight": mid,
        f"{CONV}.lora_up.weight": up,
        f"{CONV}.alpha": torch.tensor(1.5),
    }
    read = read_lora(save(tmp_path / "a.safetensors", content)).layers[CONV]
    # The WebUI's rebuild_cp_decomposition: up (i, n), mid (n, m, k, l), down (m, j).
    expected = torch.einsum("nmkl,in,mj->ijkl", mid, up[:, :, 0, 0], down[:, :, 0, 0]) * 1.5 / inner
    assert read.rank == outer
    torch.testing.assert_close(read.delta(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [Q, SKIP])
def test_matrices_and_1x1_convolutions_are_the_same_layer(tmp_path, name):
    meant = layers(layer(name))
    matrix = read_lora(save(tmp_path / "m.safetensors", tensors(meant)))
    convolution = read_lora(save(tmp_path / "c.safetensors", tensors(meant, as_convolution=True)))
    assert_same_deltas(matrix.layers, meant)
    assert_same_deltas(convolution.layers, meant)
    assert convolution.layers[name].down.ndim == 2


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_is_read_exactly(tmp_path, dtype):
    item = layer(Q, size=1.0)
    content = {**tensors(layers(item))}
    content |= {f"{Q}.lora_{p}.weight": content[f"{Q}.lora_{p}.weight"].to(dtype) for p in ("down", "up")}
    read = read_lora(save(tmp_path / "a.safetensors", content)).layers[Q]
    assert torch.equal(read.down.float(), item.down.to(dtype).float())
    assert torch.equal(read.up.float(), item.up.to(dtype).float())


def test_tensors_that_are_not_aligned_are_read(tmp_path):
    item = layer(Q).to(dtype=torch.float16)
    tables, data = {}, b""
    for key, tensor in {
        "odd": torch.zeros(1, dtype=torch.uint8),
        **tensors(layers(item), dtype=torch.float16),
    }.items():
        piece = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        word = {torch.uint8: "U8", torch.float16: "F16", torch.float32: "F32"}[tensor.dtype]
        tables[key] = {
            "dtype": word,
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(piece)],
        }
        data += piece
    header = json.dumps(tables).encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    lora = read_lora(file)
    assert_same_deltas(lora.layers, layers(item))
    assert lora.unknown == ("odd",)


def test_stray_keys_are_listed_and_the_rest_is_read(tmp_path):
    content = {**tensors(sample_layers()), "bundle_emb.word.emb": torch.zeros(2), "note": torch.zeros(1)}
    lora = read_lora(save(tmp_path / "a.safetensors", content))
    assert set(lora.unknown) == {"bundle_emb.word.emb", "note"}
    assert_same_deltas(lora.layers, sample_layers())


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_nothing_of_the_file_stays_open(tmp_path):
    lora = read_lora(save(tmp_path / "a.safetensors", tensors(sample_layers())))
    assert lora.layers
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert not [
        fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and tmp_path in fd.resolve().parents
    ]


def test_the_header_alone_says_what_a_file_is(tmp_path):
    file = save(tmp_path / "cat.safetensors", tensors(sample_layers()), {"ss_output_name": "cat"})
    header = inspect_header(file)
    assert (header.name, header.base, header.family, header.dialect) == ("cat", "sdxl", "lora", "kohya")
    assert (header.layers, header.unet_layers, header.text_layers) == (7, 5, 2)
    assert (header.ranks, header.rank, header.size) == ((2, 3, 4), 4, file.stat().st_size)
    assert header.metadata == {"ss_output_name": "cat"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_only_nan_and_infinity_are_not_finite(dtype, sign):
    largest = torch.full((3, 4), sign * torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(largest) and is_finite(torch.full((2,), sign * 0.0, dtype=dtype))
    for wrong in (float("inf"), float("nan")):
        tensor = -largest.clone()
        tensor[1, 2] = sign * wrong
        assert not is_finite(tensor) and not is_finite(tensor.T) and not is_finite(tensor[1:, 2])
        assert is_finite(tensor[:, :2])
