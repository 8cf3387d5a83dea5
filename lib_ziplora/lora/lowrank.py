"""Delta weights of any kind as low-rank layers: rank by kept energy, error reported, nothing clamped.

Energy is the squared Frobenius norm. By Eckart and Young the best approximation of rank r keeps
the r largest squared singular values; its relative error is sqrt(1 - kept energy). Where the
delta weight is a product or a Kronecker product of small matrices, the singular values come
from those, without forming it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layer import Approximation, LoraLayer

Factors = tuple[Tensor, Tensor]
"""(up, down): (out, rank) and (rank, ...)."""

# A sketch is only tried up to this share of a matrix's smaller side; beyond it, exact is as fast.
SKETCH_SHARE = 1 / 4
SKETCHES = (32, 96, 288)
OVERSAMPLING = 16
POWER_ITERATIONS = 2
# Up to this kept energy the Gram matrix's eigenvectors are exact enough in fp32.
GRAM_ENERGY = 0.9999
# A Hadamard product is taken apart by its factors while their rank product is at most this share.
HADAMARD_SHARE = 1 / 4


@dataclass(frozen=True)
class RankRule:
    """How many singular values stay.

    Attributes:
        energy: the share of the squared norm that stays, 0 to 1; 1 keeps all that is not rounding.
        limit: no layer gets a higher rank, whatever energy that keeps; None for no limit.
    """

    energy: float = 0.995
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError(f"the kept energy must lie between 0 and 1, not {self.energy!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"the highest rank must be at least 1, not {self.limit!r}")

    def choose(self, values: Tensor, total: float | None = None) -> int:
        """The rank to keep, at least 1.

        Args:
            values: singular values, descending.
            total: squared norm of the whole, where ``values`` are only its largest.
        """
        enough = len(values)
        if self.energy < 1:
            squares = values.double().square().cumsum(0)
            whole = float(squares[-1]) if total is None else total
            enough = int((squares < self.energy * whole).sum()) + 1
        not_rounding = int((values > values[0] * torch.finfo(torch.float32).eps).sum())
        rank = max(1, min(enough, not_rounding))
        return rank if self.limit is None else min(rank, self.limit)


EXACT = RankRule(1.0)


def total_error(approximations: Iterable[Approximation]) -> float:
    """The relative error of all layers together: sqrt(sum of squared errors / sum of squared norms)."""
    items = list(approximations)
    whole = math.fsum(item.norm**2 for item in items)
    return math.sqrt(math.fsum((item.error * item.norm) ** 2 for item in items) / whole) if whole else 0.0


def from_dense(
    name: str, delta: Tensor, rule: RankRule | None = None, family: str = "full"
) -> tuple[LoraLayer, Approximation]:
    """A dense delta weight, (out, in) or (out, in, kh, kw), as a low-rank layer.

    By a randomised SVD with power iterations (arXiv 0909.4061) where a small rank is enough, which
    the energy that it keeps shows; else exactly, by the eigenvectors of the Gram matrix.
    """
    rule = rule or RankRule()
    matrix = delta.detach().float().flatten(1)
    left, values, right = _sketched(matrix, rule) or _exact(matrix, rule)
    total = float(matrix.double().square().sum())
    rank = rule.choose(values, total) if total else 1
    up, down = _halves(left, values, right, rank)
    norm = math.sqrt(total)
    error = float((matrix - up @ down).double().norm()) / norm if total else 0.0
    return _layer(name, up, down, delta.shape[1:]), Approximation(name, family, rank, error, norm)


def from_factors(
    name: str,
    up: Tensor,
    down: Tensor,
    columns: Sequence[int],
    rule: RankRule | None = None,
    family: str = "lora",
) -> tuple[LoraLayer, Approximation]:
    """The delta weight up @ down at the rank that the rule asks for, by QR and SVD of the factors.

    Args:
        name: canonical module name.
        up: (out, k).
        down: (k, product of ``columns``).
        columns: the delta weight's shape without its first dimension.
        rule: the default one when None.
        family: for the report.
    """
    left, values, right = factored_svd(up, down)
    return _truncated(name, (left, values, right), columns, rule or RankRule(), family)


def cut(layer: LoraLayer, rule: RankRule) -> tuple[LoraLayer, Approximation | None]:
    """The layer at the rank that the rule asks for; itself, and None, where that loses nothing."""
    if rule.energy == 1 and (rule.limit is None or layer.rank <= rule.limit):
        return layer, None
    up, down = layer.up.float() * layer.scaling, layer.down.float().flatten(1)
    smaller, found = from_factors(layer.name, up, down, layer.down.shape[1:], rule)
    return (smaller, found) if smaller.rank < layer.rank else (layer, None)


def from_hadamard(
    name: str,
    halves: tuple[Factors, Factors],
    scaling: float,
    columns: Sequence[int],
    rule: RankRule | None = None,
) -> tuple[LoraLayer, Approximation]:
    """LoHa, scaling * (u1 @ d1) * (u2 @ d2), as a low-rank layer.

    The product has rank r1 * r2: its factors are the products of every pair of the halves'
    columns and rows (Khatri-Rao). Where that is small they are cut by QR and SVD, else the
    dense delta weight is.

    Args:
        name: canonical module name.
        halves: (u1, d1), (u2, d2) with u (out, r) and d (r, ...).
        scaling: of the delta weight.
        columns: its shape without the first dimension.
        rule: the default one when None.
    """
    (up1, down1), (up2, down2) = ((up.float(), down.float().flatten(1)) for up, down in halves)
    rank = up1.shape[1] * up2.shape[1]
    if rank <= HADAMARD_SHARE * min(up1.shape[0], down1.shape[1]):
        up = (up1[:, :, None] * up2[:, None, :]).flatten(1) * scaling
        down = (down1[:, None, :] * down2[None, :, :]).flatten(0, 1)
        return from_factors(name, up, down, columns, rule, "loha")
    delta = scaling * (up1 @ down1) * (up2 @ down2)
    return from_dense(name, delta.reshape(up1.shape[0], *columns), rule, "loha")


def from_kronecker(
    name: str,
    first: Tensor,
    second: Tensor,
    scaling: float,
    columns: Sequence[int],
    rule: RankRule | None = None,
) -> tuple[LoraLayer, Approximation]:
    """LoKr, scaling * kron(first, second), as a low-rank layer.

    The singular values of a Kronecker product are the products of the matrices' own, its
    singular vectors their Kronecker products; so two small SVDs are enough.

    Args:
        name: canonical module name.
        first: (a, c).
        second: (b, d[, kh, kw]).
        scaling: of the delta weight (a * b, c * d[, kh, kw]).
        columns: its shape without the first dimension.
        rule: the default one when None.
    """
    rule = rule or RankRule()
    u1, s1, v1 = torch.linalg.svd(first.float(), full_matrices=False)
    u2, s2, v2 = torch.linalg.svd(second.float().flatten(1), full_matrices=False)
    values, order = (abs(scaling) * torch.outer(s1, s2)).flatten().sort(descending=True)
    rank = rule.choose(values)
    i, j = order[:rank] // len(s2), order[:rank] % len(s2)
    left = (u1[:, None, i] * u2[None, :, j]).flatten(0, 1) * math.copysign(1.0, scaling)
    right = (v1[i, :, None] * v2[j, None, :]).flatten(1)
    return _truncated(name, (left, values, right), columns, rule, "lokr")


def factored_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD (out, k), (k,), (k, columns) of up (out, r) @ down (r, columns), without forming it."""
    basis_out, left = torch.linalg.qr(up.float())
    basis_in, right = torch.linalg.qr(down.float().T)
    u, values, v = torch.linalg.svd(left @ right.T, full_matrices=False)
    return basis_out @ u, values, v @ basis_in.T


def _truncated(
    name: str, svd: tuple[Tensor, Tensor, Tensor], columns: Sequence[int], rule: RankRule, family: str
) -> tuple[LoraLayer, Approximation]:
    """The layer of a whole list of singular values, of whose vectors only the first may be there."""
    left, values, right = svd
    rank = rule.choose(values)
    up, down = _halves(left, values, right, rank)
    norm, lost = float(values.double().norm()), float(values[rank:].double().norm())
    error = lost / norm if norm else 0.0
    return _layer(name, up, down, columns), Approximation(name, family, rank, error, norm)


def _halves(left: Tensor, values: Tensor, right: Tensor, rank: int) -> Factors:
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _layer(name: str, up: Tensor, down: Tensor, columns: Sequence[int]) -> LoraLayer:
    rank = down.shape[0]
    kept = columns[:1] if tuple(columns[1:]) == (1, 1) else columns
    return LoraLayer(name, down.reshape(rank, *kept).contiguous(), up.contiguous(), float(rank))


def _sketched(matrix: Tensor, rule: RankRule) -> tuple[Tensor, Tensor, Tensor] | None:
    """The largest singular values and vectors, or None when a sketch doesn't keep enough."""
    total = float(matrix.double().square().sum())
    most = int(SKETCH_SHARE * min(matrix.shape))
    for size in SKETCHES if total else ():
        width = min(size, rule.limit or size) + OVERSAMPLING
        if width > most:
            return None
        left, values, right = _sketch(matrix, width)
        enough = float(values[:-OVERSAMPLING].double().square().sum()) >= rule.energy * total
        if enough or (rule.limit is not None and rule.limit <= size):
            return left, values, right
    return None


def _sketch(matrix: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(matrix.device).manual_seed(0)
    probe = torch.randn(matrix.shape[1], width, generator=generator, device=matrix.device)
    basis = torch.linalg.qr(matrix @ probe)[0]
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
    u, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, values, right


def _exact(matrix: Tensor, rule: RankRule) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD by the eigenvectors of the smaller Gram matrix.

    In fp64 where the rule keeps nearly all: the Gram matrix has the singular values squared, of
    which fp32 loses those below 1/1000 of the largest.
    """
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = _exact(matrix.T, rule)
        return right.T, values, left.T
    wide = matrix.double() if rule.energy > GRAM_ENERGY else matrix
    left = torch.linalg.eigh(wide @ wide.T)[1].flip(1)
    right = left.T @ wide
    values, order = right.norm(dim=1).sort(descending=True)
    right = right[order] / values.clamp_min(torch.finfo(values.dtype).tiny)[:, None]
    return left[:, order].float(), values.float(), right.float()
