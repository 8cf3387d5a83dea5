"""ZipLoRA's loop (Shah et al., arXiv 2311.13600, section 4.2, equation 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..config import MergeSettings
from ..denoiser import Conditioning, Denoiser
from ..errors import HostError, OutOfMemoryError
from .coefficients import MergerCoefficients, mean_travel
from .loss import error, relative_error, similarity, similarity_term
from .patch import attach, checkpointed
from .samples import Samples

INITIAL_LOSS_SCALE = 2.0**12
SIMILARITY_IS_ZERO = 1e-3


@dataclass(frozen=True)
class Step:
    """One update, as told to the callback.

    Attributes:
        index: 0 for the first update.
        errors: each term's error under the objective: the concepts', then any others'.
        similarity: mean |m_a * m_b| before the update.
        travel: mean |m - 1| before the update.
    """

    index: int
    errors: tuple[float, ...]
    similarity: float
    travel: float


@dataclass
class Outcome:
    """What the loop leaves behind.

    Attributes:
        coefficients: the learnt vectors.
        steps: the updates, in order.
        skipped: updates left out because a gradient was not finite.
        stopped_early: the similarity reached zero, or the callback asked for the end.
    """

    coefficients: MergerCoefficients
    steps: list[Step] = field(default_factory=list)
    skipped: int = 0
    stopped_early: bool = False


@dataclass(frozen=True)
class Plan:
    """How much memory a step may take: all concepts in one batch, checkpointing or not."""

    together: bool
    checkpointing: bool


def plans(settings: MergeSettings, device: torch.device) -> list[Plan]:
    """The plans that the settings allow, the fastest first.

    On a GPU, ``auto`` starts with checkpointing: SDXL at 1024 pixels does not fit a desktop
    card without it. A step that runs out of memory is repeated under the next plan.
    """
    together = {"auto": [True, False], "together": [True], "separate": [False]}[settings.batching]
    auto = [False] if device.type == "cpu" else [True]
    recompute = {"auto": auto, "on": [True], "off": [False]}[settings.checkpointing]
    return [Plan(batch, flag) for flag in recompute for batch in together]


def optimize(
    denoiser: Denoiser,
    modules: Mapping[str, nn.Module],
    coefficients: MergerCoefficients,
    samples: Sequence[Samples],
    settings: MergeSettings,
    on_step: Callable[[Step], bool],
    weights: Sequence[float] | None = None,
) -> Outcome:
    """Learn the merger coefficients.

    Args:
        denoiser: the frozen base, without any LoRA.
        modules: canonical name -> module of ``denoiser.unet``.
        coefficients: where to start; changed in place.
        samples: each concept's samples with its teacher's outputs; others may follow, such as the
            combined prompt's.
        settings: updates, rate, objective, similarity weight, seed.
        on_step: told of every update; False ends the loop, an exception aborts it.
        weights: of each error in the objective; 1 for all when None.

    Raises:
        OutOfMemoryError: not even the most economical plan fits the device.
    """
    parameters = coefficients.parameters()
    adam = torch.optim.Adam(parameters, lr=settings.learning_rate)
    order = [_shuffled_rows(len(part), settings.seed + index) for index, part in enumerate(samples)]
    outcome = Outcome(coefficients)
    step = _Stepper(denoiser, modules, samples, settings, coefficients, weights)
    for index in range(settings.steps):
        adam.zero_grad(set_to_none=True)
        overlap, travel = similarity(coefficients).item(), mean_travel(parameters).item()
        errors = step([next(rows) for rows in order])
        if step.gradients_are_finite():
            adam.step()
        else:
            outcome.skipped += 1
        outcome.steps.append(Step(index, errors, overlap, travel))
        wanted = on_step(outcome.steps[-1])
        if not wanted or (overlap < SIMILARITY_IS_ZERO and any(coefficients.shared())):
            outcome.stopped_early = index + 1 < settings.steps
            break
    return outcome


def _shuffled_rows(count: int, seed: int) -> Iterator[int]:
    """Row numbers for ever, a new permutation for each pass."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


class _Stepper:
    """Forward and backward of one update, under the first plan that fits the memory."""

    def __init__(
        self,
        denoiser: Denoiser,
        modules: Mapping[str, nn.Module],
        samples: Sequence[Samples],
        settings: MergeSettings,
        coefficients: MergerCoefficients,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.denoiser, self.modules, self.samples = denoiser, modules, samples
        self.weights = weights or [1.0] * len(samples)
        self.settings, self.coefficients = settings, coefficients
        self.plans = plans(settings, denoiser.device)
        self.loss_scale = INITIAL_LOSS_SCALE if denoiser.dtype == torch.float16 else 1.0

    def __call__(self, rows: Sequence[int]) -> tuple[float, ...]:
        """Gradients for one sample of each concept; returns their errors."""
        while True:
            try:
                return self._run(rows, self.plans[0])
            except torch.cuda.OutOfMemoryError as problem:
                if len(self.plans) == 1:
                    raise OutOfMemoryError(
                        "The GPU ran out of memory even one sample at a time with checkpointing. "
                        "Choose a smaller sample width and height, or close other programs that use the GPU."
                    ) from problem
            self.plans.pop(0)
            for parameter in self.coefficients.parameters():
                parameter.grad = None
            torch.cuda.empty_cache()

    def _run(self, rows: Sequence[int], plan: Plan) -> tuple[float, ...]:
        batch = [part[row : row + 1] for part, row in zip(self.samples, rows, strict=True)]
        weight = self.settings.similarity_lambda
        errors: list[Tensor] = []
        with student(self.denoiser, self.modules, self.coefficients, plan):
            if plan.together:
                errors = self._errors(batch)
                weighted = [w * one for w, one in zip(self.weights, errors, strict=True)]
                (sum(weighted, torch.zeros(())) * self.loss_scale).backward()
            else:
                for share, part in zip(self.weights, batch, strict=True):
                    (part_error,) = self._errors([part])
                    (part_error * share * self.loss_scale).backward()
                    errors.append(part_error)
        _require_gradients(self.coefficients)
        if weight > 0 and any(self.coefficients.shared()):
            (
                similarity_term(self.settings.objective, self.coefficients) * weight * self.loss_scale
            ).backward()
        return tuple(torch.stack([part.detach() for part in errors]).tolist())

    def _errors(self, batch: Sequence[Samples]) -> list[Tensor]:
        output = self.denoiser.predict(
            torch.cat([part.x_t for part in batch]),
            torch.cat([part.t for part in batch]),
            Conditioning.cat([part.cond for part in batch]),
        )
        return [
            error(self.settings.objective, output[i : i + 1], part.target, part.scale)
            for i, part in enumerate(batch)
        ]

    def gradients_are_finite(self) -> bool:
        """Take the loss scale off the gradients; halve it where they overflowed."""
        gradients = [p.grad for p in self.coefficients.parameters() if p.grad is not None]
        if self.loss_scale != 1.0:
            torch._foreach_div_(gradients, self.loss_scale)
        norms = torch.stack([gradient.norm() for gradient in gradients])
        if bool(torch.isfinite(norms).all()):
            return True
        self.loss_scale = max(self.loss_scale / 2, 1.0)
        return False


@contextmanager
def student(
    denoiser: Denoiser, modules: Mapping[str, nn.Module], coefficients: MergerCoefficients, plan: Plan
) -> Iterator[None]:
    """The base with the merged LoRA of these coefficients attached."""
    with ExitStack() as stack:
        stack.enter_context(attach(modules, coefficients.branches()))
        if plan.checkpointing:
            stack.enter_context(checkpointed(denoiser.checkpoint_blocks()))
        yield


def _require_gradients(coefficients: MergerCoefficients) -> None:
    """Every vector must be reached by the backward pass, or the run would be for nothing."""
    for name, layer in coefficients.layers.items():
        if layer.m.grad is None:
            raise HostError(
                f"Layer {name} got no gradient: something in the host keeps gradients from passing through it. "
                "Turn off the extensions that change the UNet, restart, and try again."
            )


@torch.no_grad()
def evaluate(
    denoiser: Denoiser,
    modules: Mapping[str, nn.Module],
    coefficients: MergerCoefficients,
    samples: Sequence[Samples],
) -> float:
    """The sum over concepts of the relative error on samples, whatever objective was trained.

    0 is perfect; 1 per concept is what no LoRA at all would give.
    """
    total = 0.0
    with student(denoiser, modules, coefficients, Plan(together=False, checkpointing=False)):
        for part in samples:
            rows = [
                relative_error(denoiser.predict(one.x_t, one.t, one.cond), one.target, one.scale).item()
                for one in (part[i : i + 1] for i in range(len(part)))
            ]
            total += sum(rows) / len(rows)
    return total
