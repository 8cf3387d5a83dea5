"""ZipLoRA's training loop (Shah et al., arXiv 2311.13600, section 4.2): gradient descent on equation 5."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import MergeSettings
from ..denoiser import Conditioning, Denoiser
from ..errors import HostError
from .coefficients import MergerCoefficients
from .hooks import checkpointed, lora_hooks
from .memory import Plan, plans, step_down
from .objective import error, relative_error, similarity, similarity_term
from .samples import Samples

LOSS_SCALE = 2.0**12
"""At the start, in fp16 alone; each update whose gradients overflow halves it."""
SIMILARITY_IS_ZERO = 1e-3
MOST_SKIPPED = 20
"""So many updates in a row without a finite gradient end the run."""


@dataclass(frozen=True)
class Term:
    """One error of the objective, ||(D + L_m)(x, p) - target||: its name, its samples, its weight."""

    name: str
    samples: Samples
    weight: float = 1.0


@dataclass(frozen=True)
class Update:
    """One update of the coefficients.

    Attributes:
        index: 0 for the first.
        errors: of every term under the objective, unweighted; a term that this update has not drawn keeps its last.
        similarity: mean |m_c * m_s| before the update.
        mean_change: mean |m - start| before the update.
    """

    index: int
    errors: tuple[float, ...]
    similarity: float
    mean_change: float


@dataclass(frozen=True)
class TrainingResult:
    """The updates in order, how many of them were skipped, whether they ended early, and how the last was made."""

    updates: tuple[Update, ...] = ()
    skipped: int = 0
    stopped_early: bool = False
    plan: Plan | None = None


def train(
    denoiser: Denoiser,
    modules: Mapping[str, nn.Module],
    coefficients: MergerCoefficients,
    terms: Sequence[Term],
    settings: MergeSettings,
    on_update: Callable[[Update], bool] = lambda update: True,
    allowed: Sequence[Plan] | None = None,
) -> TrainingResult:
    """Learn the merger coefficients m_c and m_s by descent on equation 5.

    With D the frozen base, L_c, L_s the LoRAs and L_m their merge (equation 3, ``LayerCoefficients.factors``):

        L = ||(D + L_m)(x_c, p_c) - (D + L_c)(x_c, p_c)|| + ||(D + L_m)(x_s, p_s) - (D + L_s)(x_s, p_s)||
            + lambda sum_layers |m_c . m_s|

    Args:
        denoiser: D, without any LoRA.
        modules: canonical name -> module of ``denoiser.unet``.
        coefficients: where to start; changed in place.
        terms: the errors: one a LoRA, and others such as the combined prompt's.
        settings: updates, learning rate, objective, lambda, seed.
        on_update: told of every update once it is made; False ends the loop, an exception aborts it.
        allowed: plans, the fastest first; an update that runs out of memory is made again under the next one.

    Raises:
        OutOfMemoryError: not even the most economical plan fits the device.
        HostError: the gradients don't reach the coefficients, or are never finite.
    """
    m = coefficients.parameters()
    adam = torch.optim.Adam(m, lr=settings.learning_rate)
    scale = LOSS_SCALE if denoiser.dtype == torch.float16 else 1.0
    remaining = allowed or plans(settings.batching, settings.checkpointing)
    shared, ended = any(coefficients.shared()), False
    errors, updates, skipped, in_a_row = [math.nan] * len(terms), list[Update](), 0, 0
    draws_of_updates = batches(terms, coefficients.concepts, settings.seed)
    for index, draws in enumerate(itertools.islice(draws_of_updates, settings.steps)):
        with torch.no_grad():
            start = torch.stack([similarity(coefficients).to(denoiser.device), coefficients.mean_change()])
        work = functools.partial(backward, denoiser, modules, coefficients, draws, settings, scale)
        drawn, remaining = step_down(remaining, work)
        finite = torch.cat([p.grad.flatten() for p in m if p.grad is not None]).isfinite().all()
        # One copy for all of them, since each would wait for the device.
        overlap, change, is_finite, *values = torch.cat([start, finite[None], drawn]).tolist()
        if is_finite:
            adam.step()
            in_a_row = 0
        else:
            scale, skipped, in_a_row = max(scale / 2, 1.0), skipped + 1, in_a_row + 1
        if in_a_row == MOST_SKIPPED:
            raise HostError(
                f"The gradients of {MOST_SKIPPED} updates in a row were not finite: the checkpoint's activations "
                "overflow. Run the model in bf16 or fp32 instead of fp16, or lower the weights of the LoRAs."
            )
        for draw, value in zip(draws, values, strict=True):
            errors[draw.term] = value
        updates.append(Update(index, tuple(errors), overlap, change))
        ended = not on_update(updates[-1]) or (shared and overlap < SIMILARITY_IS_ZERO)
        if ended:
            break
    return TrainingResult(tuple(updates), skipped, ended and len(updates) < settings.steps, remaining[0])


def backward(
    denoiser: Denoiser,
    modules: Mapping[str, nn.Module],
    coefficients: MergerCoefficients,
    draws: Sequence[Draw],
    settings: MergeSettings,
    scale: float,
    plan: Plan,
) -> Tensor:
    """Leave the gradients of equation 5 in the coefficients' ``grad``, and return each draw's error.

    ``scale`` multiplies the loss on its way back, for fp16; the gradients come without it. They may not be finite.
    """
    m, errors = coefficients.parameters(), list[Tensor]()
    size = coefficients.concepts if plan.batched else 1
    for p in m:
        p.grad = None
    recomputed = plan.recomputed(denoiser.checkpoint_blocks())
    with lora_hooks(modules, coefficients.adapters()), checkpointed(recomputed):
        for batch in (draws[first : first + size] for first in range(0, len(draws), size)):
            x_t, t = (torch.cat([getattr(draw.sample, name) for draw in batch]) for name in ("x_t", "t"))
            output = denoiser.predict(x_t, t, Conditioning.cat([draw.sample.cond for draw in batch]))
            rows = [
                error(settings.objective, row[None], draw.sample.target, draw.sample.scale)
                for row, draw in zip(output, batch, strict=True)
            ]
            loss = torch.stack([draw.weight * row for row, draw in zip(rows, batch, strict=True)]).sum()
            (scale * loss).backward()  # eq. 5: ||(D + L_m)(x, p) - (D + L)(x, p)|| of each LoRA
            errors += [row.detach() for row in rows]
    for name, layer in coefficients.layers.items():
        if layer.m.grad is None:
            raise HostError(
                f"Layer {name} got no gradient: something in the host keeps gradients from passing through it. "
                "Turn off the extensions that change the UNet, restart, and try again."
            )
    if settings.similarity_lambda > 0 and any(coefficients.shared()):
        similar = settings.similarity_lambda * similarity_term(settings.objective, coefficients)
        (scale * similar).backward()  # eq. 5: lambda sum |m_c . m_s|
    if scale != 1.0:
        torch._foreach_div_([p.grad for p in m if p.grad is not None], scale)
    return torch.stack(errors)


@dataclass(frozen=True)
class Draw:
    """A sample of an update: the number of its term, the sample, and its weight in the objective."""

    term: int
    sample: Samples
    weight: float = 1.0


def batches(terms: Sequence[Term], at_once: int, seed: int) -> Iterator[list[Draw]]:
    """The samples of each update, for ever: one of every term in the first, of ``at_once`` terms in rotation then.

    Where there are more terms than that, their weights grow so that the gradients' mean is that of all terms.
    """
    count = len(terms)
    at_once = min(at_once, count)
    rows = [shuffled(len(term.samples), seed + index) for index, term in enumerate(terms)]
    rotation = (range(first, first + at_once) for first in itertools.count(0, at_once))
    for turn in itertools.chain([range(count)], rotation):
        drawn = [(k, next(rows[k])) for k in (place % count for place in turn)]
        share = count / len(turn)
        yield [Draw(k, terms[k].samples[row : row + 1], share * terms[k].weight) for k, row in drawn]


def shuffled(count: int, seed: int) -> Iterator[int]:
    """0 to count - 1 for ever, in a new order at each pass."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


@torch.no_grad()
def evaluate(
    denoiser: Denoiser,
    modules: Mapping[str, nn.Module],
    coefficients: MergerCoefficients,
    samples: Sequence[Samples],
) -> tuple[float, ...]:
    """Each LoRA's mean relative error on its samples, whatever objective was trained.

    0 is perfect; 1 is what no LoRA at all would give.
    """
    means = []
    with lora_hooks(modules, coefficients.adapters()):
        for part in samples:
            rows = (part[i : i + 1] for i in range(len(part)))
            errors = [
                relative_error(denoiser.predict(row.x_t, row.t, row.cond), row.target, row.scale)
                for row in rows
            ]
            means.append(torch.stack(errors).mean().item())
    return tuple(means)
