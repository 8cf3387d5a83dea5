"""The closed form: every layer by itself, as a least-squares problem, without a backward pass.

With inputs X_k recorded while teacher k draws, the merged layer should answer them as the teacher
does, which has each LoRA at a strength of its own (LoRA k alone, or all of them for the combined prompt):

    minimise over m   sum_k  w_k |(dW_m - dW_k) X_k|^2 / |dW_k X_k|^2,    dW_m = sum_a dW_a diag(m_a),
                                                                         dW_k = sum_a s_ka dW_a

This is quadratic in the coefficients; conjugate gradients solve it on the factors, so that
neither dW nor the (columns, columns) matrix (dW_a^T dW_b) * (X X^T) is ever formed. It looks at
one layer at a time, where ZipLoRA's loop sees their interplay: a result in an instant, and a
good start for a short loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .coefficients import LayerCoefficients, MergerCoefficients

Recording = dict[str, list[Tensor]]
"""Layer name -> input columns that were kept, each (tokens, columns), on the CPU: of SDXL 0.3 GB for each teacher."""


@dataclass(frozen=True)
class Answer:
    """What the merged layers should answer to inputs.

    Attributes:
        recording: the inputs.
        strengths: of every concept in the teacher that drew them.
        weight: of this answer among the others.
    """

    recording: Recording
    strengths: tuple[float, ...]
    weight: float = 1.0


def each_alone(recordings: Sequence[Recording]) -> list[Answer]:
    """Every LoRA by itself, at its full strength, on what it drew."""
    count = len(recordings)
    return [
        Answer(recording, tuple(float(other == index) for other in range(count)))
        for index, recording in enumerate(recordings)
    ]


TOKENS = 16
ITERATIONS = 30
RIDGE = 0.3
BATCH_VALUES = 2**25
"""Of the inputs of layers that are solved side by side: 128 MiB."""


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
    kept.append(columns[rows.to(columns.device)].cpu())


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
    answers: Sequence[Answer],
    *,
    on_batch: Callable[[], None] = lambda: None,
    iterations: int = ITERATIONS,
    ridge: float = RIDGE,
) -> None:
    """Set every layer's coefficients to its least-squares solution.

    Layers of one shape are solved side by side: so a GPU is not kept waiting by hundreds of small problems.

    Args:
        coefficients: the start; changed in place.
        answers: of every teacher.
        on_batch: called before each batch of layers; an exception aborts.
        iterations: of the conjugate gradients; few keep what the samples don't decide near the start.
        ridge: pull towards the start, as a share of the mean curvature.
    """
    for names in _batches(coefficients, answers):
        on_batch()
        layers = [coefficients.layers[name] for name in names]
        device = layers[0].m.device
        inputs = [
            torch.stack([torch.cat(answer.recording[name]) for name in names]).to(device).float()
            for answer in answers
        ]
        solutions = _Problems(layers, inputs, answers).solution(iterations, ridge)
        for layer, d in zip(layers, solutions, strict=True):
            layer.m.add_(d)


@dataclass(frozen=True)
class _Shape:
    """What layers that are solved side by side have in common; ``tokens`` are those of each answer."""

    concepts: tuple[int, ...]
    ranks: tuple[int, ...]
    columns: int
    tokens: tuple[int, ...]


def _batches(coefficients: MergerCoefficients, answers: Sequence[Answer]) -> Iterator[list[str]]:
    """Names of layers with the same shapes, so many that their inputs don't take too much memory."""
    groups: dict[_Shape, list[str]] = {}
    for name, layer in coefficients.layers.items():
        tokens = tuple(sum(map(len, answer.recording[name])) for answer in answers)
        shape = _Shape(layer.concepts, layer.ranks, layer.m.shape[1], tokens)
        groups.setdefault(shape, []).append(name)
    for shape, names in groups.items():
        size = max(1, BATCH_VALUES // max(1, shape.columns * sum(shape.tokens)))
        for first in range(0, len(names), size):
            yield names[first : first + size]


class _Problems:
    """Several layers' quadratics in d = m - start: d^T H d / 2 - b^T d, each (concepts, columns)."""

    def __init__(
        self, layers: Sequence[LayerCoefficients], inputs: Sequence[Tensor], answers: Sequence[Answer]
    ) -> None:
        """``inputs``: (layers, tokens, columns) of each answer, also of teachers without the layers."""
        self.ranks, self.inputs = layers[0].ranks, inputs
        self.downs = torch.stack([layer.down for layer in layers]).float().split(self.ranks, dim=1)
        ups = [layer.up.float() for layer in layers]
        gram = torch.stack([up.T @ up for up in ups])
        start = torch.stack([layer.m for layer in layers])
        wanted = [
            self._hidden(x, start.new_tensor([answer.strengths[k] for k in layers[0].concepts])[:, None])
            for x, answer in zip(inputs, answers, strict=True)
        ]
        effects = _without_zeros(torch.stack([(z @ gram * z).sum((1, 2)) for z in wanted]))
        self.grams = [
            gram * (answer.weight / effect)[:, None, None]
            for answer, effect in zip(answers, effects, strict=True)
        ]
        self.b = self._adjoint([w - self._hidden(x, start) for w, x in zip(wanted, inputs, strict=True)])

    def _hidden(self, x: Tensor, m: Tensor) -> Tensor:
        """A_a (x * m_a) of all concepts side by side, (layers, tokens, sum of ranks)."""
        rows = m.expand(len(x), len(self.downs), x.shape[2]).unbind(1)
        parts = [(x * row[:, None]) @ down.mT for row, down in zip(rows, self.downs, strict=True)]
        return torch.cat(parts, dim=2)

    def _adjoint(self, hidden: Sequence[Tensor]) -> Tensor:
        """The transpose of ``_hidden`` over all inputs, each under its Gram matrix, (layers, concepts, columns)."""
        total = torch.zeros((), device=hidden[0].device)
        for x, gram, z in zip(self.inputs, self.grams, hidden, strict=True):
            parts = (z @ gram).split(self.ranks, dim=2)
            rows = [(part @ down * x).sum(1) for part, down in zip(parts, self.downs, strict=True)]
            total = total + torch.stack(rows, dim=1)
        return total

    def curvature(self, d: Tensor) -> Tensor:
        """H d."""
        return self._adjoint([self._hidden(x, d) for x in self.inputs])

    def diagonal(self) -> Tensor:
        """The diagonal of H, (layers, concepts, columns)."""
        total = torch.zeros_like(self.b)
        for x, gram in zip(self.inputs, self.grams, strict=True):
            energy = x.square().sum(1)
            rows = gram.split(self.ranks, dim=1)
            for index, (row, down) in enumerate(zip(rows, self.downs, strict=True)):
                block = row.split(self.ranks, dim=2)[index]
                total[:, index] += (block @ down * down).sum(1) * energy
        return total

    def solution(self, iterations: int, ridge: float) -> Tensor:
        """d by preconditioned conjugate gradients from 0, with the ridge added to H; a solved layer stays as it is."""
        diagonal = self.diagonal()
        pull = ridge * _sums(diagonal) / diagonal[0].numel()
        pull = pull.clamp(min=torch.finfo(torch.float32).tiny)
        scale = diagonal + pull
        d, residual = torch.zeros_like(self.b), self.b.clone()
        direction = residual / scale
        energy = _sums(residual * direction)
        solved = energy * torch.finfo(torch.float32).eps ** 2
        for _ in range(iterations):
            product = self.curvature(direction) + pull * direction
            going = energy > solved
            step = torch.where(going, energy / _sums(direction * product), 0.0)
            d = d + step * direction
            residual = residual - step * product
            preconditioned = residual / scale
            previous, energy = energy, torch.where(going, _sums(residual * preconditioned), 0.0)
            direction = torch.where(going, preconditioned + energy / previous * direction, 0.0)
        return d


def _sums(values: Tensor) -> Tensor:
    """Of each layer, (layers, 1, 1)."""
    return values.sum((1, 2), keepdim=True)


def _without_zeros(effects: Tensor) -> Tensor:
    """|dW_k X_k|^2, (teachers, layers), with the others' mean for a teacher that does nothing in a layer."""
    known = effects.sum(0) / (effects > 0).sum(0).clamp(min=1)
    return torch.where(effects > 0, effects, torch.where(known > 0, known, torch.ones_like(known)))
