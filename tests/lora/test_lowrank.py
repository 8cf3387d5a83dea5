"""Low-rank layers of dense, Hadamard and Kronecker delta weights: the promise and the reported error."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_ziplora.lora import lowrank
from lib_ziplora.lora.formats import deltas
from lib_ziplora.lora.formats import families as lycoris
from lib_ziplora.lora.lowrank import EXACT, Approximation, RankRule

from .adapter_samples import CONV, LINEAR, loha, loha_tucker, lokr, rand

RULES = [RankRule(), RankRule(0.9), EXACT, RankRule(1.0, 3), RankRule(0.5, 1)]


def decaying(seed, shape, decay):
    """A random matrix with singular values decay^i, in the shape of a weight."""
    make = rand(seed)
    columns = torch.Size(shape[1:]).numel()
    size = min(shape[0], columns)
    u, v = torch.linalg.qr(make(shape[0], size))[0], torch.linalg.qr(make(columns, size))[0]
    return (u @ (decay ** torch.arange(size)).diag() @ v.T).reshape(shape)


def check(delta, layer, found, rule):
    """The layer's shape, its true error, the promise, and that no smaller rank would keep it."""
    assert layer.delta().reshape(delta.shape).shape == delta.shape
    difference = (delta.double() - layer.delta().reshape(delta.shape).double()).norm()
    norm = float(delta.double().norm())
    error = float(difference) / norm
    assert layer.rank == found.rank
    assert math.isclose(found.norm, norm, rel_tol=1e-4)
    assert abs(found.error - error) < 1e-3 * error + 3e-6
    values = torch.linalg.svdvals(delta.double().flatten(1))
    best = math.sqrt(float(values[layer.rank :].square().sum())) / norm
    assert error <= best * 1.02 + 1e-5
    if rule.limit is None or layer.rank < rule.limit:
        assert error**2 <= 1 - rule.energy + 1e-6
        fewer = float(values[: layer.rank - 1].square().sum()) / norm**2
        assert layer.rank == 1 or fewer < rule.energy * (1 + 1e-3)
    else:
        assert layer.rank == rule.limit


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (12, 8, 3, 3), (400, 500), (200, 30, 3, 3)])
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_dense(shape, decay, rule):
    delta = decaying(1, shape, decay)
    layer, found = lowrank.from_dense("x", delta, rule)
    check(delta, layer, found, rule)


def test_a_small_rank_is_found_by_the_sketch_and_a_high_one_exactly():
    fast, slow = decaying(1, (400, 500), 0.7).flatten(1), decaying(1, (400, 500), 0.9999).flatten(1)
    assert lowrank._sketched(fast, RankRule()) is not None
    assert lowrank._sketched(slow, RankRule()) is None
    assert lowrank._sketched(slow, RankRule(0.995, 8)) is not None


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("shape", "rank"), [(LINEAR, 3), (CONV, 3), ((64, 40), 2), ((40, 8, 3, 3), 3)])
def test_loha(shape, rank, rule):
    parts = loha(rand(3), shape, rank)
    delta = lycoris.delta_weight(parts, shape)
    layer, found = lowrank.from_hadamard("x", deltas.loha_halves(parts), 0.5, shape[1:], rule)
    check(delta * 0.5 / lycoris.scaling(parts), layer, found, rule)
    assert found.family == "loha"
    assert layer.rank <= rank**2 or rank**2 > min(shape[0], 8)


@pytest.mark.parametrize("rule", RULES)
def test_loha_with_tucker(rule):
    for out in (12, 80):
        parts = loha_tucker(rand(4), (out, 8, 3, 3), 2)
        scaling = lycoris.scaling(parts)
        halves = deltas.loha_halves(parts)
        layer, found = lowrank.from_hadamard("x", halves, scaling, (8, 3, 3), rule)
        check(lycoris.delta_weight(parts, (out, 8, 3, 3)), layer, found, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("second", ["whole", "factors", "tucker"])
@pytest.mark.parametrize("first", ["whole", "factors"])
@pytest.mark.parametrize("shape", [LINEAR, CONV, (12, 8, 1, 1)])
@pytest.mark.parametrize("sign", [1, -1])
def test_lokr(shape, first, second, rule, sign):
    if second == "tucker" and len(shape) == 2:
        return
    parts = lokr(rand(5), shape, first, second)
    parts["scale"] = torch.tensor(0.3 * sign)
    matrices = deltas.lokr_matrices(parts)
    layer, found = lowrank.from_kronecker("x", *matrices, 0.3 * sign, shape[1:], rule)
    check(lycoris.delta_weight(parts, shape), layer, found, rule)


@pytest.mark.parametrize("rule", RULES)
def test_factors(rule):
    make = rand(6)
    up, down = make(30, 9), make(9, 20)
    layer, found = lowrank.from_factors("x", up, down, (20,), rule)
    check(up @ down, layer, found, rule)
    assert layer.rank <= 9


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.floats(0.05, 1.0),
    st.one_of(st.none(), st.integers(1, 25)),
    st.integers(0, 1000),
)
def test_any_dense_delta(out, columns, energy, limit, seed):
    delta = rand(seed)(out, columns)
    rule = RankRule(energy, limit)
    layer, found = lowrank.from_dense("x", delta, rule)
    check(delta, layer, found, rule)


def test_a_delta_of_zeros_is_a_layer_of_zeros():
    for layer, found in (
        lowrank.from_dense("x", torch.zeros(6, 4)),
        lowrank.from_factors("x", torch.zeros(6, 2), torch.zeros(2, 4), (4,)),
        lowrank.from_kronecker("x", torch.zeros(2, 2), torch.ones(3, 2), 1.0, (4,)),
    ):
        assert layer.rank == 1
        assert layer.weight_shape == (6, 4)
        assert not layer.delta().any()
        assert found.error == found.norm == 0


def test_pointwise_convolutions_become_matrices():
    layer, _ = lowrank.from_dense("x", rand(0)(6, 4, 1, 1))
    assert layer.weight_shape == (6, 4)


def test_the_sign_and_size_of_a_tiny_or_huge_delta_survive():
    for size in (1e-12, 1e12):
        delta = size * rand(7)(9, 5)
        layer, found = lowrank.from_dense("x", delta, EXACT)
        assert found.error < 1e-5
        torch.testing.assert_close(layer.delta(), delta, rtol=1e-3, atol=1e-4 * size)


def test_total_error_weighs_layers_by_their_norm():
    items = [Approximation("a", "lokr", 1, 0.3, 1.0), Approximation("b", "lokr", 1, 0.1, 3.0)]
    assert math.isclose(lowrank.total_error(items), math.sqrt((0.3**2 + 0.3**2) / 10))
    assert lowrank.total_error([]) == 0


@pytest.mark.parametrize("values", [{"energy": 0.0}, {"energy": 1.5}, {"limit": 0}])
def test_rules_that_mean_nothing_are_refused(values):
    with pytest.raises(ValueError, match=r"must (lie|be)"):
        RankRule(**values)
