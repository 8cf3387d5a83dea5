"""What the file's dtype holds: balancing, refusals, and the traces that show a wrong delta weight."""

from __future__ import annotations

import hashlib
import time
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_ziplora.errors import OutputError
from lib_ziplora.lora.algebra import concatenate, scale
from lib_ziplora.lora.io import cast as casting
from lib_ziplora.lora.io.digest import Background, Blocks
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.serialize import FORMATS
from lib_ziplora.lora.io.write import write_lora
from lib_ziplora.lora.layer import LoraLayer

from .files import CONV, K2, Q, layer, layers


def cast(item, precision="fp32"):
    data = torch.empty(FORMATS[precision].dtype.itemsize * casting.numbers(item), dtype=torch.uint8)
    trace = casting.Caster(precision, casting.numbers(item)).cast(item, data)
    return data, trace


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
    new_up, new_down = casting.balanced(up, down)
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
    assert not list(tmp_path.iterdir())
    write_lora(tmp_path / "m.safetensors", layers(item), precision="bf16")


@pytest.mark.parametrize(("value", "fits"), [(65519.0, True), (65520.0, False)])
def test_the_limit_of_fp16_is_where_rounding_ends(value, fits):
    item = LoraLayer(Q, torch.tensor([[value]]), torch.tensor([[value]]), 1.0)
    if fits:
        data, _ = cast(item, "fp16")
        assert data.view(torch.float16).tolist() == [65504.0, 65504.0]
    else:
        with pytest.raises(OutputError, match="can't hold"):
            cast(item, "fp16")


def test_a_layer_of_almost_nothing_is_written(tmp_path):
    item = LoraLayer(Q, torch.randn(3, 5) * 1e-9, torch.randn(6, 3) * 1e-9, 3.0)
    write_lora(tmp_path / "m.safetensors", layers(item))
    assert float(read_lora(tmp_path / "m.safetensors").layers[Q].delta().abs().max()) < 1e-9


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["down", "up"])
def test_nan_is_never_written(tmp_path, value, side):
    factors = {"down": torch.ones(1, 5), "up": torch.ones(6, 1)}
    factors[side][0, 0] = value
    with pytest.raises(OutputError, match=f"{Q} holds NaN"):
        write_lora(tmp_path / "m.safetensors", layers(layer(K2), LoraLayer(Q, **factors, alpha=1.0)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [1e9, float("nan")])
def test_an_extra_that_the_precision_cannot_hold_is_refused(tmp_path, value):
    extras = {f"{Q}.diff_b": torch.full((6,), value)}
    with pytest.raises(OutputError, match=f"{Q}.diff_b has numbers that fp16 can't hold"):
        write_lora(tmp_path / "m.safetensors", layers(layer(Q)), extras=extras)
    assert not list(tmp_path.iterdir())


# --- stacked layers -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    weights=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    precision=st.sampled_from(sorted(FORMATS)),
    seed=st.integers(0, 1000),
)
def test_a_sum_is_cast_as_its_factors_are(ranks, weights, dtype, precision, seed):
    parts = [
        layer(CONV, 4, (3, 3, 3), rank, seed=seed + i, size=1.0).to(dtype=dtype)
        for i, rank in enumerate(ranks)
    ]
    stacked = concatenate(
        [scale(part, weight) for part, weight in zip(parts, weights[: len(parts)], strict=True)]
    )
    whole = LoraLayer(CONV, stacked.down, stacked.up, stacked.alpha)
    (ours, trace), (theirs, other) = cast(stacked, precision), cast(whole, precision)
    assert torch.equal(ours, theirs)
    assert trace.agrees(other.response) and trace.allowed == other.allowed
    expected = sum(w * p.delta() for w, p in zip(weights[: len(parts)], parts, strict=True))
    torch.testing.assert_close(stacked.delta(), expected, rtol=1e-4, atol=1e-4)


def test_scaling_a_sum_scales_every_piece():
    stacked = concatenate([layer(Q), layer(Q, seed=1)])
    torch.testing.assert_close(scale(stacked, -0.5).delta(), -0.5 * stacked.delta())
    torch.testing.assert_close(concatenate([stacked, layer(Q)]).delta(), stacked.delta() + layer(Q).delta())
    assert concatenate([stacked, layer(Q)]).rank == 9


# --- traces and checksums -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", sorted(FORMATS))
def test_a_trace_takes_rounding_and_nothing_else(precision):
    item = layer(CONV, 40, (30, 3, 3), 16, size=1.0)
    _, trace = cast(item, precision)
    dtype = FORMATS[precision].dtype

    def response(down, up):
        return item.scaling * (up.float() @ (down.float().flatten(1) @ casting.signs(item.columns)))

    rounded = (item.down.to(dtype), item.up.to(dtype))
    assert trace.agrees(response(*rounded))
    wrong = rounded[1].clone()
    wrong[:, :4] *= 1.5
    assert not trace.agrees(response(rounded[0], wrong))
    assert not trace.agrees(response(rounded[0].flip(0), rounded[1]))
    assert not trace.agrees(response(rounded[0].flip(1), rounded[1]))
    assert not trace.agrees(torch.full((40,), torch.nan))


@pytest.mark.parametrize(("up", "down"), [(1e-25, 1e25), (1e25, 1e-25)])
def test_a_trace_takes_components_whose_squares_fp32_cannot_hold(up, down):
    item = layer(Q, size=1.0)
    _, trace = cast(LoraLayer(Q, item.down * down, item.up * up, item.alpha))
    response = item.delta() @ casting.signs(item.columns)
    assert trace.agrees(response) and not trace.agrees(1.1 * response)


class Collected:
    """A sink that keeps a copy of everything, a little late."""

    def __init__(self):
        self.whole = b""

    def update(self, data):
        time.sleep(0.001)
        self.whole += bytes(data)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=60))
def test_pieces_keep_until_every_sink_has_had_them(sizes):
    digest, collected, whole = hashlib.sha256(), Collected(), b""
    with mock.patch.object(Blocks, "ENOUGH", 8192), Blocks(max(sizes), digest, collected) as blocks:
        for i, size in enumerate(sizes):
            blocks.take(size).fill_(i)
            whole += bytes([i]) * size
    assert collected.whole == whole
    assert digest.hexdigest() == hashlib.sha256(whole).hexdigest()


class Broken:
    def update(self, data):
        raise OSError("broken")


def test_what_a_sink_raises_is_raised():
    with pytest.raises(OSError, match="broken"), Background(Broken()) as background:
        background.update(memoryview(b"12345678"))
    with pytest.raises(OSError, match="broken"), Blocks(8, Broken()) as blocks:
        blocks.take(8)


def test_a_broken_sink_stops_the_making():
    made = 0
    with (
        mock.patch.object(Blocks, "ENOUGH", 8),
        pytest.raises(OSError, match="broken"),
        Blocks(8, Broken()) as blocks,
    ):
        for _ in range(100):
            blocks.take(8)
            made += 1
    assert made <= Blocks.COUNT + 1


def test_what_the_block_raises_is_raised_whatever_the_sinks_do():
    with pytest.raises(OutputError, match="made"), Blocks(8, Broken()) as blocks:
        blocks.take(8)
        raise OutputError("made")
