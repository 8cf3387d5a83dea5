"""What the file's dtype holds: balancing and refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_ziplora.errors import OutputError
from lib_ziplora.lora.algebra import concatenate, scale
from lib_ziplora.lora.io import cast as casting
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.serialize import FORMATS
from lib_ziplora.lora.io.write import write_lora
from lib_ziplora.lora.layer import LoraLayer

from .files import CONV, K2, Q, layer, layers


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
        down, up = casting.cast_layer(item, "fp16")
        assert down.tolist() == up.tolist() == [[65504.0]]
    else:
        with pytest.raises(OutputError, match="can't hold"):
            casting.cast_layer(item, "fp16")


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
    for ours, theirs in zip(
        casting.cast_layer(stacked, precision), casting.cast_layer(whole, precision), strict=True
    ):
        assert torch.equal(ours, theirs)
    expected = sum(w * p.delta() for w, p in zip(weights[: len(parts)], parts, strict=True))
    torch.testing.assert_close(stacked.delta(), expected, rtol=1e-4, atol=1e-4)


def test_scaling_a_sum_scales_every_term():
    stacked = concatenate([layer(Q), layer(Q, seed=1)])
    torch.testing.assert_close(scale(stacked, -0.5).delta(), -0.5 * stacked.delta())
    torch.testing.assert_close(concatenate([stacked, layer(Q)]).delta(), stacked.delta() + layer(Q).delta())
    assert concatenate([stacked, layer(Q)]).rank == 9


@settings(max_examples=60, deadline=None)
@given(
    exponents=st.lists(st.integers(-16, 17), min_size=1, max_size=5),
    nudge=st.sampled_from([-(2.0**-13), 0.0, 2.0**-13]),
    dtype=st.sampled_from([torch.float16, torch.float32]),
    scaling=st.sampled_from([1.0, 0.5, 3.0]),
)
def test_the_written_factors_are_the_rounded_fp32_factors(exponents, nudge, dtype, scaling):
    """Also where a component's size is so near the limit of balancing that rounding crosses it."""
    size = torch.tensor([2.0**e * (1 + nudge) for e in exponents]).clamp_max(65504)
    down, up = (torch.ones(len(size), 3) * size[:, None]).to(dtype), torch.ones(2, len(size), dtype=dtype)
    stacked = scale(concatenate([LoraLayer(Q, down, up, float(len(size)))]), scaling)
    if dtype == torch.float16 and float(stacked.up.abs().max()) > 65504:
        return
    exact_up, exact_down = casting.balanced(up.float() * scaling, down.float())
    ours_down, ours_up = casting.cast_layer(stacked, "fp16")
    assert torch.equal(ours_down, exact_down.half()) and torch.equal(ours_up, exact_up.half())
