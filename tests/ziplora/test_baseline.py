"""Merges from formulas: identities on small layers."""

from __future__ import annotations

import pytest
import torch

from lib_ziplora.errors import IncompatibleError
from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.ziplora.baseline import null_space_projection


def layer(seed: int, rank: int = 3, columns: tuple[int, ...] = (7,), out: int = 5) -> LoraLayer:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *columns, generator=generator)
    return LoraLayer("a", down, torch.randn(out, rank, generator=generator), alpha=2.0)


def projector(style: LoraLayer) -> torch.Tensor:
    rows = style.down.flatten(1)
    return torch.linalg.pinv(rows) @ rows


@pytest.mark.parametrize("columns", [(7,), (2, 3, 3)])
@pytest.mark.parametrize("mu", [0.5, 3.0])
def test_the_merge_is_the_published_formula(columns, mu):
    subject, style = layer(0, 2, columns), layer(1, 4, columns)
    merged = null_space_projection({"a": subject}, {"a": style}, mu)["a"]
    left = torch.eye(projector(style).shape[0]) - mu / (1 + mu) * projector(style)
    expected = style.delta().flatten(1) + subject.delta().flatten(1) @ left
    torch.testing.assert_close(merged.delta().flatten(1), expected, rtol=1e-4, atol=1e-5)
    assert merged.rank == 6


def test_without_strength_it_is_the_plain_sum():
    subject, style = layer(0), layer(1)
    merged = null_space_projection({"a": subject}, {"a": style}, 0.0)["a"]
    torch.testing.assert_close(merged.delta(), subject.delta() + style.delta())


def test_with_endless_strength_the_subject_is_silent_on_the_styles_rows():
    subject, style = layer(0), layer(1)
    merged = null_space_projection({"a": subject}, {"a": style}, 1e9)["a"]
    inputs = style.down.T
    torch.testing.assert_close(merged.delta() @ inputs, style.delta() @ inputs, rtol=1e-4, atol=1e-4)


def test_a_layer_of_one_lora_stays_as_it_is():
    merged = null_space_projection({"a": layer(0)}, {"b": layer(1)})
    torch.testing.assert_close(merged["a"].delta(), layer(0).delta())
    torch.testing.assert_close(merged["b"].delta(), layer(1).delta())


def test_refuses_layers_that_do_not_match_and_a_negative_strength():
    with pytest.raises(IncompatibleError):
        null_space_projection({"a": layer(0)}, {"a": layer(1, columns=(8,))})
    with pytest.raises(ValueError, match="negative"):
        null_space_projection({"a": layer(0)}, {"a": layer(1)}, -0.1)
