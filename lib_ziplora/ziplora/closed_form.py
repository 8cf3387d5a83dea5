"""The closed form of the merger coefficients: one least-squares problem a layer, without a backward pass.

Target k is what a plain sum at strengths s_ka makes of inputs X_k (tokens, columns) that were recorded while it drew:
one LoRA alone, or all of them on the combined prompt. With dW_a = B_a A_a the merge should answer alike,

    minimise over m   sum_k  g_k | sum_a dW_a diag(m_a - s_ka) X_k^T |^2,       g_k = w_k / | sum_a s_ka dW_a X_k^T |^2

With the factors side by side, B = [B_1 B_2 ...] and G = B^T B, neither dW nor a (columns, columns) matrix is formed:

    S_k m   = [ (X_k * m_1) A_1^T   (X_k * m_2) A_2^T   ... ]                       (tokens, sum of ranks)
    S_k^T Z = [ sum over tokens of X_k * (Z_a A_a),   a = 1, 2, ... ]               (concepts, columns)
    H m     = sum_k  S_k^T (S_k m) g_k G
    b       = sum_k  S_k^T (S_k s_k - S_k start) g_k G
    diag(H) = [ sum_k  (sum over rows of (g_k G_aa A_a) * A_a) * (sum over tokens of X_k^2),   a = 1, 2, ... ]

and m = start + d, where (H + ridge) d = b is solved by conjugate gradients with Jacobi's preconditioner, the diagonal
(Hestenes and Stiefel 1952; Saad, Iterative Methods for Sparse Linear Systems, 2003, algorithm 9.1). It looks at one
layer at a time, where the loop sees their interplay: a result in an instant, and a good start for the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .coefficients import LayerCoefficients, MergerCoefficients

LayerInputs = dict[str, list[Tensor]]
"""Layer name -> recorded inputs, each (tokens, columns), on the CPU: of SDXL 0.3 GB for each target."""


@dataclass(frozen=True)
class LayerTarget:
    """What the merged layers should make of inputs: what the plain sum at these strengths makes of them.

    Attributes:
        inputs: X_k of every layer.
        strengths: s_ka of every concept.
        weight: w_k, of this target among the others.
    """

    inputs: LayerInputs
    strengths: tuple[float, ...]
    weight: float = 1.0


def single_lora_targets(inputs: Sequence[LayerInputs]) -> list[LayerTarget]:
    """Every LoRA by itself, at its full strength, on what it drew."""
    count = len(inputs)
    return [
        LayerTarget(own, tuple(float(other == index) for other in range(count)))
        for index, own in enumerate(inputs)
    ]


TOKENS = 16
ITERATIONS = 30
RIDGE = 0.3
PENDING_VALUES = 2**24
"""Of recorded inputs that wait on the device for their copy to the CPU: 32 MiB in half precision."""
BATCH_VALUES = 2**25
"""Of the inputs of layers that are solved side by side: 128 MiB."""


@contextmanager
def recorded_inputs(
    modules: Mapping[str, nn.Module], tokens: int, generator: torch.Generator
) -> Iterator[LayerInputs]:
    """Random rows of the modules' inputs in every forward inside the block, complete at its end.

    Args:
        modules: canonical name -> linear or convolution module.
        tokens: rows kept of each forward's first sample (the conditional one, under guidance).
        generator: on the CPU; draws which.
    """
    recorder = _Recorder({name: [] for name in modules}, tokens, generator)
    handles = []
    try:
        for name, module in modules.items():
            hook = functools.partial(recorder.record, name)
            handles.append(module.register_forward_pre_hook(hook))
        yield recorder.inputs
        recorder.flush()
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Recorder:
    """Keeps rows on their device and brings many at once to the CPU: a copy from a GPU waits for all its work."""

    inputs: LayerInputs
    tokens: int
    generator: torch.Generator
    pending: list[tuple[str, Tensor]] = field(default_factory=list)
    values: int = 0

    def record(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = input_rows(module, inputs[0][:1].detach())
        chosen = torch.randperm(len(x), generator=self.generator)[: self.tokens]
        rows = x[chosen.to(x.device, non_blocking=True)]
        self.pending.append((name, rows))
        self.values += rows.numel()
        if self.values >= PENDING_VALUES:
            self.flush()

    def flush(self) -> None:
        """Bring what is pending to the CPU, in one copy."""
        pending, self.pending, self.values = self.pending, [], 0
        if not pending:
            return
        together = torch.cat([rows.flatten() for _, rows in pending]).cpu()
        parts = together.split([rows.numel() for _, rows in pending])
        for (name, rows), part in zip(pending, parts, strict=True):
            self.inputs[name].append(part.view(rows.shape))


def input_rows(module: nn.Module, x: Tensor) -> Tensor:
    """The rows (tokens, columns) that a module's weight is multiplied with, for an input of it."""
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
    targets: Sequence[LayerTarget],
    *,
    on_batch: Callable[[], None] = lambda: None,
    iterations: int = ITERATIONS,
    ridge: float = RIDGE,
) -> None:
    """Set every layer's coefficients to its least-squares solution.

    Layers of one shape are solved side by side: so a GPU is not kept waiting by hundreds of small problems.

    Args:
        coefficients: the start; changed in place.
        targets: of every LoRA, and of all together.
        on_batch: called before each batch of layers; an exception aborts.
        iterations: of the conjugate gradients; few keep what the samples don't decide near the start.
        ridge: pull towards the start, as a share of the mean curvature.
    """
    for names in _batches(coefficients, targets):
        on_batch()
        layers = [coefficients.layers[name] for name in names]
        device = layers[0].m.device
        inputs = [
            torch.stack([torch.cat(target.inputs[name]) for name in names]).to(device).float()
            for target in targets
        ]
        problem = _LeastSquares(layers, inputs, targets)
        diagonal = problem.diagonal()
        pull = ridge * _sums(diagonal) / diagonal[0].numel()
        pull = pull.clamp(min=torch.finfo(torch.float32).tiny)
        d = conjugate_gradients(
            functools.partial(problem.ridged, pull), problem.b, diagonal + pull, iterations
        )
        for layer, change in zip(layers, d, strict=True):
            layer.m.add_(change)


def _batches(coefficients: MergerCoefficients, targets: Sequence[LayerTarget]) -> Iterator[list[str]]:
    """Names of layers with the same shapes, so many that their inputs don't take too much memory."""
    groups: dict[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int], list[str]] = {}
    for name, layer in coefficients.layers.items():
        tokens = tuple(sum(map(len, target.inputs[name])) for target in targets)
        groups.setdefault((layer.concepts, layer.ranks, tokens, layer.m.shape[1]), []).append(name)
    for (_, _, tokens, columns), names in groups.items():
        size = max(1, BATCH_VALUES // max(1, columns * sum(tokens)))
        for first in range(0, len(names), size):
            yield names[first : first + size]


class _LeastSquares:
    """The problems of several layers at once: S, S^T, H, b and diag(H) as the module's docstring has them.

    Args:
        layers: of one shape.
        inputs: X_k of each target, (layers, tokens, columns).
        targets: strengths and weights.
    """

    def __init__(
        self, layers: Sequence[LayerCoefficients], inputs: Sequence[Tensor], targets: Sequence[LayerTarget]
    ) -> None:
        self.ranks, self.inputs = layers[0].ranks, inputs
        self.downs = torch.stack([layer.down for layer in layers]).float().split(self.ranks, dim=1)
        ups = [layer.up.float() for layer in layers]
        gram = torch.stack([up.T @ up for up in ups])
        start = torch.stack([layer.m for layer in layers])
        concepts = layers[0].concepts
        wanted = [
            self.S(x, start.new_tensor([target.strengths[a] for a in concepts])[:, None])
            for x, target in zip(inputs, targets, strict=True)
        ]
        effects = _without_zeros(torch.stack([(z @ gram * z).sum((1, 2)) for z in wanted]))
        self.grams = [
            gram * (target.weight / effect)[:, None, None]
            for target, effect in zip(targets, effects, strict=True)
        ]
        self.b = self.St([z - self.S(x, start) for z, x in zip(wanted, inputs, strict=True)])

    def S(self, x: Tensor, m: Tensor) -> Tensor:  # noqa: N802, the docstring's letter
        """S_k m, (layers, tokens, sum of ranks)."""
        rows = m.expand(len(x), len(self.downs), x.shape[2]).unbind(1)
        parts = [(x * row[:, None]) @ down.mT for row, down in zip(rows, self.downs, strict=True)]
        return torch.cat(parts, dim=2)

    def St(self, zs: Sequence[Tensor]) -> Tensor:  # noqa: N802
        """sum_k S_k^T Z_k g_k G, (layers, concepts, columns)."""
        total = torch.zeros((), device=zs[0].device)
        for x, gram, z in zip(self.inputs, self.grams, zs, strict=True):
            parts = (z @ gram).split(self.ranks, dim=2)
            rows = [(part @ down * x).sum(1) for part, down in zip(parts, self.downs, strict=True)]
            total = total + torch.stack(rows, dim=1)
        return total

    def H(self, d: Tensor) -> Tensor:  # noqa: N802
        """H d, like d."""
        return self.St([self.S(x, d) for x in self.inputs])

    def ridged(self, ridge: Tensor, d: Tensor) -> Tensor:
        """(H + ridge) d."""
        return self.H(d) + ridge * d

    def diagonal(self) -> Tensor:
        """diag(H), (layers, concepts, columns)."""
        total = torch.zeros_like(self.b)
        for x, gram in zip(self.inputs, self.grams, strict=True):
            energy = x.square().sum(1)
            rows = gram.split(self.ranks, dim=1)
            for index, (row, down) in enumerate(zip(rows, self.downs, strict=True)):
                block = row.split(self.ranks, dim=2)[index]
                total[:, index] += (block @ down * down).sum(1) * energy
        return total


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, diagonal: Tensor, iterations: int
) -> Tensor:
    """Solutions of several systems A d = b from d = 0, with Jacobi's preconditioner; a solved one stays as it is.

    Args:
        product: d -> A d, for tensors like ``b``.
        b: (systems, ...).
        diagonal: of A, like ``b``, positive.
        iterations: at most.
    """
    d, residual = torch.zeros_like(b), b.clone()
    direction = residual / diagonal
    energy = _sums(residual * direction)
    solved = energy * torch.finfo(torch.float32).eps ** 2
    for _ in range(iterations):
        along = product(direction)
        going = energy > solved
        step = torch.where(going, energy / _sums(direction * along), 0.0)
        d = d + step * direction
        residual = residual - step * along
        preconditioned = residual / diagonal
        previous, energy = energy, torch.where(going, _sums(residual * preconditioned), 0.0)
        direction = torch.where(going, preconditioned + energy / previous * direction, 0.0)
    return d


def _sums(values: Tensor) -> Tensor:
    """Of each layer, (layers, 1, 1)."""
    return values.sum((1, 2), keepdim=True)


def _without_zeros(effects: Tensor) -> Tensor:
    """The targets' effects (targets, layers), with the others' mean for one that does nothing in a layer."""
    known = effects.sum(0) / (effects > 0).sum(0).clamp(min=1)
    return torch.where(effects > 0, effects, torch.where(known > 0, known, torch.ones_like(known)))
