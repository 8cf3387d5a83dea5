"""ZipLoRA's loop (Shah et al., arXiv 2311.13600, section 4.2, equation 5)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..config import MergeSettings
from ..denoiser import Denoiser
from ..errors import HostError
from .adam import FlatAdam
from .coefficients import MergerCoefficients
from .objective import relative_error, similarity
from .plans import Plan
from .samples import Samples
from .stepping import Stepper, drawings, student

SIMILARITY_IS_ZERO = 1e-3
MOST_SKIPPED = 20
"""So many updates in a row without a finite gradient end the run."""


@dataclass(frozen=True)
class Step:
    """One update, as told to the callback.

    Attributes:
        index: 0 for the first update.
        errors: each term's error under the objective: the concepts', then any others'. A term that
            this update has not drawn has the error of the last one that has.
        similarity: mean |m_a * m_b| before the update.
        travel: mean |m - start| before the update.
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
        plan: how the last update was made; None where there was none.
    """

    coefficients: MergerCoefficients
    steps: list[Step] = field(default_factory=list)
    skipped: int = 0
    stopped_early: bool = False
    plan: Plan | None = None


def optimize(
    denoiser: Denoiser,
    modules: Mapping[str, nn.Module],
    coefficients: MergerCoefficients,
    samples: Sequence[Samples],
    settings: MergeSettings,
    on_step: Callable[[Step], bool],
    weights: Sequence[float] | None = None,
    allowed: Sequence[Plan] | None = None,
) -> Outcome:
    """Learn the merger coefficients.

    Args:
        denoiser: the frozen base, without any LoRA.
        modules: canonical name -> module of ``denoiser.unet``.
        coefficients: where to start; changed in place.
        samples: each concept's samples with its teacher's outputs; others may follow, such as the
            combined prompt's. An update draws as many samples as there are concepts.
        settings: updates, rate, objective, similarity weight, seed.
        on_step: told of every update; False ends the loop, an exception aborts it.
        weights: of each error in the objective; 1 for all when None.
        allowed: plans, the fastest first; None for all that the settings allow.

    Raises:
        OutOfMemoryError: not even the most economical plan fits the device.
        HostError: gradients don't reach the coefficients, or are never finite.
    """
    adam = FlatAdam(coefficients.parameters(), settings.learning_rate)
    stepper = Stepper(denoiser, modules, samples, settings, coefficients, weights, allowed)
    draws = drawings([len(part) for part in samples], stepper.at_once, settings.seed)
    log = _Log(Outcome(coefficients), on_step)
    ahead = denoiser.device.type == "cuda"  # a GPU computes the next update while this one's figures travel
    for _ in range(settings.steps):
        before = [similarity(coefficients).detach(), coefficients.travel()]
        gradient, usable = stepper(next(draws))
        log.add(_Reading([*stepper.errors, *before, usable]))
        if not log.tell(keep=1):
            break
        adam.step(gradient, usable)
        if not ahead and not log.tell():
            break
    if not log.ended:
        log.tell()
    log.outcome.stopped_early = log.ended and len(log.outcome.steps) < settings.steps
    log.outcome.plan = stepper.plans[0]
    return log.outcome


class _Reading:
    """Numbers on their way from the device; a GPU goes on computing meanwhile."""

    def __init__(self, numbers: Sequence[Tensor]) -> None:
        on_device = torch.stack([number.float() for number in numbers])
        self._values = on_device.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if on_device.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """The numbers, as soon as they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [float(value) for value in self._values.tolist()]


class _Log:
    """The updates that were told to the callback, and those whose figures are still on their way."""

    def __init__(self, outcome: Outcome, on_step: Callable[[Step], bool]) -> None:
        self.outcome, self.ended = outcome, False
        self._on_step = on_step
        self._shares = any(outcome.coefficients.shared())
        self._waiting: deque[_Reading] = deque()
        self._in_a_row = 0

    def add(self, reading: _Reading) -> None:
        self._waiting.append(reading)

    def tell(self, keep: int = 0) -> bool:
        """Tell of all but the newest ``keep`` updates; False when the loop should end."""
        while len(self._waiting) > keep and not self.ended:
            *errors, overlap, travel, usable = self._waiting.popleft().read()
            self._count(bool(usable))
            step = Step(len(self.outcome.steps), tuple(errors), overlap, travel)
            self.outcome.steps.append(step)
            wanted = self._on_step(step)
            self.ended = not wanted or (self._shares and overlap < SIMILARITY_IS_ZERO)
        return not self.ended

    def _count(self, usable: bool) -> None:
        """Count what was left out.

        Raises:
            HostError: no end of it is in sight.
        """
        self._in_a_row = 0 if usable else self._in_a_row + 1
        self.outcome.skipped += not usable
        if self._in_a_row >= MOST_SKIPPED:
            raise HostError(
                f"The gradients of {MOST_SKIPPED} updates in a row were not finite: the checkpoint's activations "
                "overflow. Run the model in bf16 or fp32 instead of fp16, or lower the weights of the LoRAs."
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
    with student(denoiser, modules, coefficients, Plan(together=False, checkpointing=0.0)):
        for part in samples:
            rows = [
                relative_error(denoiser.predict(one.x_t, one.t, one.cond), one.target, one.scale)
                for one in (part[i : i + 1] for i in range(len(part)))
            ]
            total += torch.stack(rows).mean().item()
    return total
