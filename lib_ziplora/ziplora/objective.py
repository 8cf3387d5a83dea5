"""The objective: the terms of equation 5 (arXiv 2311.13600), and their normalisation.

Equation 5 adds two errors and a similarity. Taken to the letter, the similarity of 1.5
million coefficients outweighs the errors, and all of them sink towards zero together. The
``relative`` objective puts the three terms on one scale: each error as a share of what its
own LoRA does to the prediction, and the similarity as a mean over the coefficients.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..config import Objective
from .coefficients import MergerCoefficients


def effect(prediction: Tensor, base: Tensor) -> Tensor:
    """What a LoRA does to the prediction: mean squared difference per sample, (batch,)."""
    return (_wide(prediction) - _wide(base)).square().flatten(1).mean(1)


def relative_error(prediction: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """The default's error, |prediction - target|^2 / |LoRA's prediction - base's|^2: 0 = perfect, 1 = no LoRA at all.

    Args:
        prediction: (batch, channels, height, width), the merge's.
        target: the same shape, the LoRA's own.
        scale: (batch,), from ``effect``, positive.

    Returns:
        Scalar, the mean over the batch.
    """
    return ((_wide(prediction) - target).square().flatten(1).mean(1) / scale).mean()


def norm_error(prediction: Tensor, target: Tensor) -> Tensor:
    """L2 norm of the difference, as equation 5 writes it; the mean over the batch."""
    norms: Tensor = torch.linalg.vector_norm((_wide(prediction) - target).flatten(1), dim=1)
    return norms.mean()


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference: what the public script has for the norm of equation 5."""
    return (_wide(prediction) - target).square().mean()


def error(objective: Objective, prediction: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """One concept's error term under the chosen objective, a scalar."""
    if objective == "paper":
        return norm_error(prediction, target)
    if objective == "public":
        return squared_error(prediction, target)
    return relative_error(prediction, target, scale)


def similarity(coefficients: MergerCoefficients) -> Tensor:
    """Mean |m_a * m_b| over the columns of all shared layers and pairs: 1 at the start.

    A layer that only one concept has takes no part. Zero when no layer is shared.
    """
    products = [
        (rows[a] * rows[b]).abs()
        for rows in coefficients.side_by_side()
        for a, b in itertools.combinations(range(len(rows)), 2)
    ]
    return torch.cat(products).mean() if products else torch.zeros(())


def similarity_sum(coefficients: MergerCoefficients) -> Tensor:
    """Sum over shared layers and pairs of |m_a . m_b|: equation 5's term to the letter."""
    dots = [
        (layer.m[a] @ layer.m[b]).abs()
        for layer in coefficients.shared()
        for a, b in itertools.combinations(range(len(layer.concepts)), 2)
    ]
    return torch.stack(dots).sum() if dots else torch.zeros(())


def similarity_cosine(coefficients: MergerCoefficients) -> Tensor:
    """Mean over shared layers and pairs of |cos(m_a, m_b)|: blind to the vectors' sizes."""
    cosines = [
        torch.cosine_similarity(layer.m[a], layer.m[b], dim=0).abs()
        for layer in coefficients.shared()
        for a, b in itertools.combinations(range(len(layer.concepts)), 2)
    ]
    return torch.stack(cosines).mean() if cosines else torch.zeros(())


SIMILARITIES: Mapping[Objective, Callable[[MergerCoefficients], Tensor]] = {
    "relative": similarity,
    "public": similarity,
    "cosine": similarity_cosine,
    "paper": similarity_sum,
}


def similarity_term(objective: Objective, coefficients: MergerCoefficients) -> Tensor:
    """The similarity under the chosen objective, a scalar, before its weight."""
    return SIMILARITIES[objective](coefficients)


def _wide(x: Tensor) -> Tensor:
    """At least fp32: a mean of squares overflows in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
