"""Identities of the low-rank algebra against dense matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_ziplora.errors import IncompatibleError
from lib_ziplora.lora.algebra import (
    column_overlap,
    concatenate,
    merge_extras,
    merge_layers,
    pair,
    scale,
    scale_columns,
)
from lib_ziplora.lora.layer import Lora
from lib_ziplora.lora.lowrank import RankRule, cut

from .files import CONV, K2, OUT, SKIP, TE1, Q, layer, layers

SHAPES = {Q: (6, 5), CONV: (4, (3, 3, 3)), SKIP: (7, 4)}


def random_layer(name, rank, alpha=None, seed=0):
    out, columns = SHAPES[name]
    return layer(name, out, columns, rank, alpha, seed=seed, size=1.0)


def dense_columns(item):
    return item.delta().flatten(1)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("ranks", "alphas"), [((3, 3), (3.0, 3.0)), ((1, 5), (0.5, 8.0)), ((4, 2), (None, -1.0))]
)
def test_merged_delta_is_the_sum_of_the_scaled_deltas(name, ranks, alphas):
    subject, style = (
        random_layer(name, r, a, seed=i) for i, (r, a) in enumerate(zip(ranks, alphas, strict=True))
    )
    m_c, m_s = torch.randn(subject.in_features), torch.randn(subject.in_features)
    merged = merge_layers([layers(subject), layers(style)], [0.7, -0.4], [{name: m_c}, {name: m_s}])[name]
    expected = 0.7 * dense_columns(subject) * m_c - 0.4 * dense_columns(style) * m_s
    torch.testing.assert_close(dense_columns(merged), expected, rtol=1e-5, atol=1e-5)
    assert merged.weight_shape == subject.weight_shape
    assert merged.rank == sum(ranks) == merged.alpha


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    alphas=st.tuples(*[st.none() | st.floats(0.1, 64)] * 2),
    weights=st.tuples(*[st.floats(-2, 2)] * 2),
    seed=st.integers(0, 2**16),
)
def test_coefficients_of_one_are_the_plain_sum(name, ranks, alphas, weights, seed):
    subject, style = (
        random_layer(name, r, a, seed + i) for i, (r, a) in enumerate(zip(ranks, alphas, strict=True))
    )
    ones = torch.ones(subject.in_features)
    plain = merge_layers([layers(subject), layers(style)], weights)[name]
    learnt = merge_layers([layers(subject), layers(style)], weights, [{name: ones}] * 2)[name]
    assert torch.equal(plain.down, learnt.down)
    assert torch.equal(plain.up, learnt.up)
    expected = weights[0] * subject.delta() + weights[1] * style.delta()
    torch.testing.assert_close(
        plain.delta(), expected, rtol=1e-4, atol=1e-4 * float(1 + expected.abs().max())
    )


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    owners=st.lists(st.booleans(), min_size=5, max_size=5),
    seed=st.integers(0, 2**16),
)
def test_any_number_of_loras_add_up_each_with_its_own_weight_and_coefficients(name, ranks, owners, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [random_layer(name, rank, 2.0, seed + index) for index, rank in enumerate(ranks)]
    weights = (torch.rand(len(parts), generator=generator) * 4 - 2).tolist()
    vectors = [torch.randn(parts[0].in_features, generator=generator) for _ in parts]
    having = [index for index in range(len(parts)) if owners[index]]
    loras = [layers(part) if index in having else {} for index, part in enumerate(parts)]
    merged = merge_layers(loras, weights, [{name: m} if i in having else {} for i, m in enumerate(vectors)])
    assert set(merged) == ({name} if having else set())
    if having:
        expected = sum(weights[i] * dense_columns(parts[i]) * vectors[i] for i in having)
        torch.testing.assert_close(dense_columns(merged[name]), expected, rtol=1e-4, atol=1e-4)
        assert merged[name].rank == sum(ranks[i] for i in having)


def test_extras_of_any_number_of_loras_add_up():
    a, b, c = ({"n.diff_b": torch.randn(3, generator=torch.Generator().manual_seed(i))} for i in range(3))
    merged = merge_extras([a, b, {}, c], [0.5, -1.0, 2.0, 3.0])["n.diff_b"]
    torch.testing.assert_close(merged, 0.5 * a["n.diff_b"] - b["n.diff_b"] + 3 * c["n.diff_b"])
    with pytest.raises(IncompatibleError, match=r"n\.diff_b is 3 in one LoRA but 4 in another"):
        merge_extras([a, {}, {"n.diff_b": torch.ones(4)}])


def test_layers_of_one_side_keep_their_weight_and_their_own_coefficients():
    subject, style = layers(layer(Q), layer(K2)), layers(layer(Q, seed=5), layer(OUT))
    m = torch.rand(5)
    merged = merge_layers([subject, style], [0.5, 2.0], [{K2: m}, {OUT: 2 * m}])
    assert list(merged) == [Q, K2, OUT]
    torch.testing.assert_close(merged[K2].delta(), 0.5 * subject[K2].delta() * m)
    torch.testing.assert_close(merged[OUT].delta(), 4.0 * style[OUT].delta() * m)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merging_is_done_in_fp32(dtype):
    subject, style = layer(Q).to(dtype=dtype), layer(Q, seed=1).to(dtype=dtype)
    merged = merge_layers([layers(subject), layers(style)], [0.3, 0.6])[Q]
    assert merged.up.dtype == merged.down.dtype == torch.float32
    torch.testing.assert_close(merged.delta(), 0.3 * subject.delta() + 0.6 * style.delta())


def test_inputs_stay_as_they_are():
    subject, style = layer(Q), layer(Q, seed=1)
    before = [t.clone() for t in (subject.up, subject.down, style.up, style.down)]
    merge_layers([layers(subject), layers(style)], [0.3, 0.6], [{Q: torch.rand(5)}] * 2)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (subject.up, subject.down, style.up, style.down), strict=True)
    )


def test_scale_multiplies_the_delta():
    torch.testing.assert_close(scale(layer(Q, alpha=2.0), -0.3).delta(), -0.3 * layer(Q, alpha=2.0).delta())


def test_columns_of_a_convolution_are_the_flattened_kernel():
    item = layer(CONV, 4, (3, 3, 3), 2)
    m = torch.rand(27)
    expected = item.delta() * m.reshape(3, 3, 3)
    torch.testing.assert_close(scale_columns(item, m).delta(), expected)


def test_coefficients_of_the_wrong_length_are_refused():
    with pytest.raises(IncompatibleError, match=f"{Q} has 5 columns"):
        scale_columns(layer(Q), torch.ones(6))


def test_layers_of_different_models_are_not_concatenated():
    with pytest.raises(IncompatibleError, match=f"{Q} is 6x5 in one LoRA but 6x7"):
        concatenate([layer(Q), layer(Q, columns=7)])


def test_pair_sorts_layers_by_side():
    subject = Lora("subject", layers(layer(Q), layer(K2), layer(CONV, 4, (3, 3, 3))))
    style = Lora("style", layers(layer(TE1), layer(Q), layer(CONV, 4, (3, 3, 3), 1)))
    pairing = pair(subject, style)
    assert (pairing.common, pairing.single) == ((Q, CONV), ((K2,), (TE1,)))
    nothing = pair(Lora("a", layers(layer(Q))), Lora("b", layers(layer(K2))))
    assert (nothing.common, nothing.single) == ((), ((Q,), (K2,)))


def test_a_layer_is_common_when_two_of_many_have_it():
    a = Lora("a", layers(layer(Q), layer(K2)))
    b = Lora("b", layers(layer(OUT), layer(Q)))
    c = Lora("c", layers(layer(OUT), layer(TE1)))
    assert pair(a, b, c).common == (Q, OUT)
    assert pair(a, b, c).single == ((K2,), (), (TE1,))
    wide = Lora("wide", layers(layer(OUT, columns=9)))
    with pytest.raises(IncompatibleError, match=rf"{OUT} is 6x5 in b but 6x9 in wide"):
        pair(a, b, c, wide)


def test_pair_refuses_layers_of_different_shapes_by_name():
    subject, style = Lora("cat", layers(layer(Q))), Lora("ink", layers(layer(Q, columns=9)))
    with pytest.raises(IncompatibleError, match=rf"{Q} is 6x5 in cat but 6x9 in ink"):
        pair(subject, style)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_cut_is_the_best_approximation(name, rank):
    item = random_layer(name, 6, 3.0)
    dense = dense_columns(item)
    left, values, right = torch.linalg.svd(dense, full_matrices=False)
    best = left[:, :rank] * values[:rank] @ right[:rank]
    short, _ = cut(item, RankRule(1.0, rank))
    assert short.rank == rank
    assert short.weight_shape == item.weight_shape
    torch.testing.assert_close(dense_columns(short), best, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_overlap_is_the_mean_absolute_cosine_of_the_columns(name):
    a, b = random_layer(name, 4, 0.7), random_layer(name, 3, -2.0, seed=9)
    cosines = torch.nn.functional.cosine_similarity(dense_columns(a), dense_columns(b), dim=0)
    assert column_overlap(a, b) == pytest.approx(float(cosines.abs().mean()), abs=1e-5)
    assert column_overlap(a, scale(a, -3.0)) == pytest.approx(1.0, abs=1e-5)


def test_overlap_of_nothing_is_zero():
    empty = scale_columns(layer(Q), torch.zeros(5))
    assert column_overlap(empty, layer(Q)) == 0.0
    apart = layer(Q, 6, 5, 1, size=1.0)
    up = torch.zeros(6, 1)
    up[0] = apart.up[1]
    up[1] = -apart.up[0]
    other = type(apart)(Q, apart.down, up, 1.0)
    assert column_overlap(apart, other) == pytest.approx(0.0, abs=1e-6)
