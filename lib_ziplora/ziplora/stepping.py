"""One update's gradients: which samples it draws, forward and backward, under a plan that fits the memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..config import MergeSettings
from ..denoiser import Conditioning, Denoiser
from ..errors import HostError, OutOfMemoryError
from .coefficients import MergerCoefficients
from .hooks import attach, checkpointed
from .objective import error, similarity_term
from .plans import Plan, plans
from .samples import Samples

INITIAL_LOSS_SCALE = 2.0**12

Draw = tuple[int, int, float]
"""Number of a term, number of one of its samples, and the share of the objective that it stands for."""


def drawings(counts: Sequence[int], at_once: int, seed: int) -> Iterator[list[Draw]]:
    """What each update draws, for ever: one sample of every term, or of ``at_once`` terms in turn.

    The first update draws all, so that every error is known from the beginning. Where there are
    more terms than ``at_once``, the next ones draw so many of them in rotation, with weights that
    make the gradients' mean that of all terms.

    Args:
        counts: samples of each term; each pass over them has an order of its own.
        at_once: terms of one update.
        seed: of the orders.
    """
    rows = [_shuffled_rows(count, seed + index) for index, count in enumerate(counts)]
    terms = len(counts)
    at_once = min(at_once, terms)
    yield [(term, next(rows[term]), 1.0) for term in range(terms)]
    for first in itertools.count(0, at_once):
        turn = [(first + place) % terms for place in range(at_once)]
        yield [(term, next(rows[term]), terms / at_once) for term in turn]


def _shuffled_rows(count: int, seed: int) -> Iterator[int]:
    """Row numbers for ever, a new permutation for each pass."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


class Stepper:
    """Forward and backward of one update, under the first plan that fits the memory.

    Nothing in it waits for the device: errors, the loss scale and whether the gradients are finite
    stay there as tensors.

    Args:
        denoiser: the frozen base, without any LoRA.
        modules: canonical name -> module of ``denoiser.unet``.
        samples: of each term.
        settings: objective, similarity weight.
        coefficients: whose gradients are wanted.
        weights: of each term in the objective.
        allowed: plans, the fastest first; a step that runs out of memory goes on to the next.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        modules: Mapping[str, nn.Module],
        samples: Sequence[Samples],
        settings: MergeSettings,
        coefficients: MergerCoefficients,
        weights: Sequence[float] | None = None,
        allowed: Sequence[Plan] | None = None,
    ) -> None:
        self.denoiser, self.modules, self.samples = denoiser, modules, samples
        self.weights = weights or [1.0] * len(samples)
        self.settings, self.coefficients = settings, coefficients
        self.plans = list(allowed or plans(settings.batching, settings.checkpointing))
        scale = INITIAL_LOSS_SCALE if denoiser.dtype == torch.float16 else 1.0
        self.loss_scale = torch.full((), scale, device=denoiser.device)
        self.errors = [torch.full((), torch.nan, device=denoiser.device) for _ in samples]

    @property
    def at_once(self) -> int:
        """Samples of one batch at most: one for each LoRA."""
        return min(self.coefficients.concepts, len(self.samples))

    def __call__(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """Gradients of the objective; each term's latest error is in ``errors``.

        Returns:
            The gradients of all vectors, flat, without the loss scale, and whether they are finite,
            a bool tensor ().

        Raises:
            OutOfMemoryError: not even the most economical plan fits the device.
            HostError: a vector got no gradient.
        """
        while True:
            for parameter in self.coefficients.parameters():
                parameter.grad = None
            try:
                self._run(draws, self.plans[0])
                return self._gradients()
            except torch.cuda.OutOfMemoryError as problem:
                if len(self.plans) == 1:
                    raise OutOfMemoryError(
                        f"The GPU ran out of memory even with {self.plans[0].words}. "
                        "Choose a smaller sample width and height, or close other programs that use the GPU."
                    ) from problem
            self.plans.pop(0)
            torch.cuda.empty_cache()

    def _run(self, draws: Sequence[Draw], plan: Plan) -> None:
        size = self.at_once if plan.together else 1
        with student(self.denoiser, self.modules, self.coefficients, plan):
            for start in range(0, len(draws), size):
                self._backward(draws[start : start + size])
        _require_gradients(self.coefficients)
        weight = self.settings.similarity_lambda
        if weight > 0 and any(self.coefficients.shared()):
            term = similarity_term(self.settings.objective, self.coefficients)
            (term * weight * self.loss_scale).backward()

    def _backward(self, draws: Sequence[Draw]) -> None:
        """One batch: its weighted errors' gradients are added to those that are there."""
        batch = [self.samples[term][row : row + 1] for term, row, _ in draws]
        output = self.denoiser.predict(
            torch.cat([part.x_t for part in batch]),
            torch.cat([part.t for part in batch]),
            Conditioning.cat([part.cond for part in batch]),
        )
        objective = torch.zeros((), device=output.device)
        for index, ((term, _, share), part) in enumerate(zip(draws, batch, strict=True)):
            one = error(self.settings.objective, output[index : index + 1], part.target, part.scale)
            objective = objective + self.weights[term] * share * one
            self.errors[term] = one.detach()
        (objective * self.loss_scale).backward()

    @torch.no_grad()
    def _gradients(self) -> tuple[Tensor, Tensor]:
        """All gradients without the loss scale; where they overflowed, it is halved for the next step."""
        grads = [p.grad.flatten() for p in self.coefficients.parameters() if p.grad is not None]
        flat = torch.cat(grads) / self.loss_scale
        usable = torch.isfinite(flat).all()
        self.loss_scale = torch.where(usable, self.loss_scale, (self.loss_scale / 2).clamp(min=1.0))
        return flat, usable


@contextmanager
def student(
    denoiser: Denoiser, modules: Mapping[str, nn.Module], coefficients: MergerCoefficients, plan: Plan
) -> Iterator[None]:
    """The base with the merged LoRA of these coefficients attached."""
    with ExitStack() as stack:
        stack.enter_context(attach(modules, coefficients.branches()))
        if plan.checkpointing:
            stack.enter_context(checkpointed(plan.recomputed(denoiser.checkpoint_blocks())))
        yield


def _require_gradients(coefficients: MergerCoefficients) -> None:
    """Every vector must be reached by the backward pass, or the run would be for nothing."""
    for name, layer in coefficients.layers.items():
        if layer.m.grad is None:
            raise HostError(
                f"Layer {name} got no gradient: something in the host keeps gradients from passing through it. "
                "Turn off the extensions that change the UNet, restart, and try again."
            )
