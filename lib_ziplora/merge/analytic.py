"""The closed form: every layer by itself, as a least-squares problem, without a backward pass.

With inputs X_k recorded while LoRA k draws, the merged layer should answer them as LoRA k
alone does:

    minimise over m   sum_k  |(dW_m - dW_k) X_k|^2 / |dW_k X_k|^2,    dW_m = sum_a dW_a diag(m_a)

This is quadratic in the coefficients; conjugate gradients solve it on the factors, so that
neither dW nor the (columns, columns) matrix (dW_a^T dW_b) * (X X^T) is ever formed. It looks at
one layer at a time, where ZipLoRA's loop sees their interplay: a result in an instant, and a
good start for a short loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .coefficients import LayerCoefficients, MergerCoefficients

Recording = dict[str, list[Tensor]]
"""Layer name -> input columns that were kept, each (tokens, columns)."""

TOKENS = 16
ITERATIONS = 30
RIDGE = 0.3


@contextmanager
def recorded(
    modules: Mapping[str, nn.Module], tokens: int, generator: torch.Generator
) -> Iterator[Recording]:
    """Keep random input columns of the modules in every forward inside the block.

    Args:
        modules: canonical name -> linear or convolution module.
        tokens: columns kept of each forward's first sample (the conditional one, under guidance).
        generator: on the CPU; draws which.
    """
    kept: Recording = {name: [] for name in modules}
    handles = []
    try:
        for name, module in modules.items():
            hook = functools.partial(_keep, kept[name], tokens, generator)
            handles.append(module.register_forward_pre_hook(hook))
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _keep(
    kept: list[Tensor], tokens: int, generator: torch.Generator, module: nn.Module, inputs: tuple[Any, ...]
) -> None:
    columns = input_columns(module, inputs[0][:1].detach())
    rows = torch.randperm(len(columns), generator=generator)[:tokens]
    kept.append(columns[rows.to(columns.device)])


def input_columns(module: nn.Module, x: Tensor) -> Tensor:
    """What the weight's columns are multiplied with, (tokens, columns), for an input of the module."""
    if cast(Tensor, module.weight).ndim == 2:
        return x.reshape(-1, x.shape[-1])
    convolution = cast(nn.Conv2d, module)
    padding = cast("tuple[int, int]", convolution.padding)
    kernel = cast("tuple[int, int]", convolution.kernel_size)
    stride, dilation = (
        cast("tuple[int, int]", convolution.stride),
        cast("tuple[int, int]", convolution.dilation),
    )
    patches = F.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


@torch.no_grad()
def solve(
    coefficients: MergerCoefficients,
    recordings: Sequence[Recording],
    *,
    on_layer: Callable[[], None] = lambda: None,
    iterations: int = ITERATIONS,
    ridge: float = RIDGE,
) -> None:
    """Set every layer's coefficients to its least-squares solution.

    Args:
        coefficients: all ones; changed in place.
        recordings: each concept's input columns, recorded while its LoRA drew.
        on_layer: called before each layer; an exception aborts.
        iterations: of the conjugate gradients; few keep what the samples don't decide near 1.
        ridge: pull towards 1, as a share of the mean curvature.
    """
    for name, layer in coefficients.layers.items():
        on_layer()
        inputs = [torch.cat(recording[name]).float() for recording in recordings]
        layer.m.add_(_LayerProblem(layer, inputs).solution(iterations, ridge))


class _LayerProblem:
    """One layer's quadratic in d = m - 1: d^T H d / 2 - b^T d."""

    def __init__(self, layer: LayerCoefficients, inputs: Sequence[Tensor]) -> None:
        """``inputs``: each concept's (tokens, columns), also of concepts that lack the layer."""
        self.downs = [down.float() for down in layer.downs]
        self.ranks = [len(down) for down in self.downs]
        gram = layer.up.float().T @ layer.up.float()
        plain = torch.ones_like(layer.m)
        hidden = [self._hidden(x, plain) for x in inputs]
        wanted = [self._only(layer.concepts, k, z) for k, z in enumerate(hidden)]
        effects = [(z @ gram * z).sum() for z in wanted]
        known = torch.stack([e for k, e in enumerate(effects) if k in layer.concepts]).mean()
        tiny = torch.finfo(torch.float32).tiny
        self.grams = [
            gram / (effects[k] if k in layer.concepts else known).clamp(min=tiny) for k in range(len(inputs))
        ]
        self.inputs = inputs
        self.b = self._adjoint([w - z for w, z in zip(wanted, hidden, strict=True)])

    def _hidden(self, x: Tensor, m: Tensor) -> Tensor:
        """A_a (x * m_a) of all concepts side by side, (tokens, sum of ranks)."""
        return torch.cat([(x * row) @ down.T for row, down in zip(m, self.downs, strict=True)], dim=1)

    def _only(self, concepts: Sequence[int], concept: int, hidden: Tensor) -> Tensor:
        """The part of one concept; zeros for a concept that lacks the layer."""
        parts = hidden.split(self.ranks, dim=1)
        return torch.cat(
            [
                part if k == concept else torch.zeros_like(part)
                for k, part in zip(concepts, parts, strict=True)
            ],
            dim=1,
        )

    def _adjoint(self, hidden: Sequence[Tensor]) -> Tensor:
        """The transpose of ``_hidden`` over all inputs, each under its Gram matrix, (concepts, columns)."""
        total = torch.zeros(len(self.downs), self.downs[0].shape[1], device=hidden[0].device)
        for x, gram, z in zip(self.inputs, self.grams, hidden, strict=True):
            parts = (z @ gram).split(self.ranks, dim=1)
            total += torch.stack(
                [(part @ down * x).sum(0) for part, down in zip(parts, self.downs, strict=True)]
            )
        return total

    def curvature(self, d: Tensor) -> Tensor:
        """H d."""
        return self._adjoint([self._hidden(x, d) for x in self.inputs])

    def diagonal(self) -> Tensor:
        """The diagonal of H, (concepts, columns)."""
        total = torch.zeros_like(self.b)
        for x, gram in zip(self.inputs, self.grams, strict=True):
            energy = x.square().sum(0)
            for index, (block, down) in enumerate(zip(self._blocks(gram), self.downs, strict=True)):
                total[index] += (block @ down * down).sum(0) * energy
        return total

    def _blocks(self, gram: Tensor) -> list[Tensor]:
        rows = gram.split(self.ranks, dim=0)
        return [row.split(self.ranks, dim=1)[index] for index, row in enumerate(rows)]

    def solution(self, iterations: int, ridge: float) -> Tensor:
        """d by preconditioned conjugate gradients from 0, with the ridge added to H."""
        diagonal = self.diagonal()
        pull = ridge * diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
        scale = diagonal + pull
        d, residual = torch.zeros_like(self.b), self.b.clone()
        direction = residual / scale
        energy = (residual * direction).sum()
        solved = energy * torch.finfo(torch.float32).eps ** 2
        for _ in range(iterations):
            if not bool(energy > solved):
                break
            product = self.curvature(direction) + pull * direction
            step = energy / (direction * product).sum()
            d = d + step * direction
            residual = residual - step * product
            preconditioned = residual / scale
            previous, energy = energy, (residual * preconditioned).sum()
            direction = preconditioned + energy / previous * direction
        return d
