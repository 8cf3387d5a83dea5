"""From a host's clean model to learnt coefficients: samples, optimisation, held-out figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import LoraInput, MergeSettings, labels
from ..denoiser import Conditioning, Denoiser, TextDeltas
from ..hosts import Session
from ..lora.algebra import Vectors
from ..lora.formats.keys import canonical_modules
from ..progress import Meter, update_units
from ..ziplora.closed_form import Answer, each_alone, solve
from ..ziplora.coefficients import Concept, MergerCoefficients
from ..ziplora.hooks import check_fit
from ..ziplora.memory import Plan
from ..ziplora.objective import similarity
from ..ziplora.samples import Samples
from ..ziplora.train import Term, TrainingResult, Update, evaluate, train
from .learnt import Learnt
from .memory import fits_at_once, fitting_plans
from .strengths import Balance
from .target_samples import Teacher


class WatchedDenoiser:
    """The host's denoiser, which before every forward asks whether to go on.

    So an interrupt takes effect within a step, and a model that was swapped is noticed.
    Forwards without gradients are told to the meter; an update tells of itself.
    """

    def __init__(self, session: Session, meter: Meter) -> None:
        inner = session.denoiser
        self._session, self._inner, self._meter = session, inner, meter
        self.unet: nn.Module = inner.unet
        self.alphas_cumprod, self.prediction_type = inner.alphas_cumprod, inner.prediction_type
        self.latent_channels, self.device, self.dtype = inner.latent_channels, inner.device, inner.dtype

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        self._meter.stop_if_interrupted()
        self._session.check_alive()
        output = self._inner.predict(x_t, t, cond)
        if not torch.is_grad_enabled():
            self._meter.advance(len(x_t))
        return output

    def checkpoint_blocks(self) -> Sequence[nn.Module]:
        return self._inner.checkpoint_blocks()


def learn(
    session: Session,
    concepts: Sequence[Concept],
    chosen: Sequence[LoraInput],
    text_deltas: TextDeltas,
    settings: MergeSettings,
    meter: Meter,
) -> tuple[Learnt, tuple[Vectors, ...]]:
    """Learn the coefficients of several LoRAs against the host's model.

    Args:
        session: the host's model, clean.
        concepts: each LoRA's UNet layers, user's weight included.
        chosen: each LoRA's prompt and reference images.
        text_deltas: the text-encoder layers of the file to be written: teacher and student see
            the same conditioning, the one that the file will produce.
        settings: what to compute.
        meter: told of every step.

    Returns:
        The figures, and for each LoRA layer name -> coefficients (columns,), on the CPU.
    """
    denoiser = WatchedDenoiser(session, meter)
    modules = canonical_modules(denoiser.unet)
    for layers, lora in zip(concepts, chosen, strict=True):
        check_fit(modules, layers, lora.lora)
    used = {name: modules[name] for layers in concepts for name in layers}
    alone, allowed = _room(session, concepts, settings)
    teacher = Teacher(session, denoiser, used, settings, meter)
    taught = _lessons(teacher, concepts, chosen, text_deltas, settings)
    coefficients = MergerCoefficients.ones(concepts, denoiser.device, denoiser.dtype)
    before = _evaluate(denoiser, used, coefficients, taught.heldout, meter)
    _begin(coefficients, taught, settings, meter)
    with alone():
        outcome = _loop(denoiser, used, coefficients, taught.terms, settings, meter, allowed)
    after = _evaluate(denoiser, used, coefficients, taught.heldout, meter)
    vectors = tuple(coefficients.vectors(index) for index in range(len(concepts)))
    return _figures(outcome, coefficients, before, after, taught.balance), vectors


def _room(
    session: Session, concepts: Sequence[Concept], settings: MergeSettings
) -> tuple[Callable[[], AbstractContextManager[None]], list[Plan]]:
    """What is to be off the GPU while the loop runs, and the plans that then fit.

    Text encoders and autoencoder stay where they are as long as the fastest plan fits beside them.

    Raises:
        OutOfMemoryError: not even the smallest plan fits.
    """
    if not settings.needs.updates:
        return nullcontext, []
    denoiser = session.denoiser
    alone = nullcontext if fits_at_once(concepts, settings, denoiser) else session.unet_alone
    with alone():
        return alone, fitting_plans(concepts, settings, denoiser)


@dataclass(frozen=True)
class _Lessons:
    """What the coefficients are learnt from.

    Attributes:
        terms: the errors of the objective.
        answers: what every layer by itself should answer, for the closed form.
        heldout: each LoRA's samples that are not trained on.
        balance: the strengths that the combined prompt is drawn at.
    """

    terms: list[Term]
    answers: list[Answer]
    heldout: list[Samples]
    balance: Balance


def _lessons(
    teacher: Teacher,
    concepts: Sequence[Concept],
    chosen: Sequence[LoraInput],
    text_deltas: TextDeltas,
    settings: MergeSettings,
) -> _Lessons:
    """Draw what each LoRA draws by itself, and what they draw together."""
    conditions = teacher.conditioning(chosen, text_deltas)
    drawn = [
        teacher.samples(layers, lora, conditions, index)
        for index, (layers, lora) in enumerate(zip(concepts, chosen, strict=True))
    ]
    names = labels([lora.role for lora in chosen])
    terms = [Term(name, part.train) for name, part in zip(names, drawn, strict=True)]
    answers = each_alone([part.recording for part in drawn])
    balance = teacher.balance(concepts, chosen, conditions)
    if settings.needs.closed_form and conditions.both is not None:
        both, recording = teacher.combined(concepts, balance.strengths, conditions)
        terms.append(Term("combined", both, settings.combined_weight))
        weight = 1.0 if settings.needs.updates else settings.combined_weight  # the updates bring their own
        answers.append(Answer(recording, balance.strengths, weight))
    return _Lessons(terms, answers, [part.heldout for part in drawn], balance)


def _begin(coefficients: MergerCoefficients, taught: _Lessons, settings: MergeSettings, meter: Meter) -> None:
    """Set the coefficients to where the loop begins, and free the layers' recorded inputs."""
    coefficients.start_at(taught.balance.strengths)
    if settings.uses_closed_form:
        meter.enter("solving", "Solving every layer by itself")
        solve(coefficients, taught.answers, on_batch=meter.stop_if_interrupted)
    taught.answers.clear()


def _evaluate(
    denoiser: Denoiser,
    modules: Mapping[str, nn.Module],
    coefficients: MergerCoefficients,
    heldout: Sequence[Samples],
    meter: Meter,
) -> float:
    meter.enter("sampling", "Measuring on samples that are not trained on")
    return evaluate(denoiser, modules, coefficients, heldout)


def _loop(
    denoiser: Denoiser,
    modules: Mapping[str, nn.Module],
    coefficients: MergerCoefficients,
    terms: Sequence[Term],
    settings: MergeSettings,
    meter: Meter,
    allowed: Sequence[Plan],
) -> TrainingResult:
    """The updates of the coefficients; none where the settings want none."""
    if not settings.needs.updates:
        return TrainingResult()
    units = update_units(coefficients.concepts)
    on_update = _told(meter, settings, [term.name for term in terms], units)
    outcome = train(denoiser, modules, coefficients, terms, settings, on_update, allowed)
    meter.skip(units * (settings.steps - len(outcome.updates)))
    return outcome


def _told(
    meter: Meter, settings: MergeSettings, names: Sequence[str], units: int
) -> Callable[[Update], bool]:
    """The loop's callback: progress with figures, and the user's wish to finish now."""
    meter.enter("optimising", "First update")
    losses = [f"{name.replace(' ', '_')}_loss" for name in names]

    def on_update(step: Update) -> bool:
        metrics = {
            "loss": sum(step.errors),
            **dict(zip(losses, step.errors, strict=True)),
            "similarity": step.similarity,
            "travel": step.mean_change,
        }
        text = f"Update {step.index + 1} of {settings.steps}"
        meter.advance(units, text, metrics)
        return not meter.finish_requested()

    return on_update


def _figures(
    outcome: TrainingResult,
    coefficients: MergerCoefficients,
    heldout_before: float,
    heldout_after: float,
    balance: Balance,
) -> Learnt:
    first, last = outcome.updates[:10], outcome.updates[-10:]
    shared = any(True for _ in coefficients.shared())
    return Learnt(
        steps=len(outcome.updates),
        mean_travel=coefficients.mean_change().item(),
        similarity_start=1.0 if shared else 0.0,
        similarity_end=similarity(coefficients).item(),
        loss_start=_mean_loss(first),
        loss_end=_mean_loss(last),
        heldout_loss_start=heldout_before,
        heldout_loss_end=heldout_after,
        skipped_steps=outcome.skipped,
        stopped_early=outcome.stopped_early,
        plan=outcome.plan.description if outcome.plan else "",
        subject_share=balance.share,
        strengths=balance.strengths,
    )


def _mean_loss(steps: Sequence[Update]) -> float | None:
    return sum(sum(step.errors) for step in steps) / len(steps) if steps else None
