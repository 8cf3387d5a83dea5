"""From a host's clean model to learnt coefficients: samples, optimisation, held-out figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import LoraInput, MergeSettings, labels
from ..denoiser import Conditioning, Denoiser, TextDeltas
from ..hosts import Session
from ..lora.algebra import Vectors
from ..lora.keys import canonical_modules
from ..merge.analytic import TOKENS, Recording, recorded, solve
from ..merge.coefficients import Concept, MergerCoefficients
from ..merge.loss import similarity
from ..merge.optimize import Outcome, Step, evaluate, optimize
from ..merge.patch import attach, check_fit, static_factors
from ..merge.plans import Plan
from ..merge.samples import (
    Samples,
    assemble,
    noised,
    predict_each,
    require_effect,
    scaled_like,
    trajectory,
)
from .balancing import Balance, Conditions, Scales
from .images import load_images
from .memory import fitting_plans
from .progress import Meter, heldout_steps, update_units
from .report import Learnt

Drawn = tuple[Tensor, Tensor, Tensor]
"""x_t, t and the LoRA's own predictions of a batch of samples."""

Draw = Callable[[int, int, int], Drawn]
"""(seed, trajectories, steps of each) -> samples of the LoRA that is attached."""

VAE_FACTOR = 8
HELDOUT_SEED = 1_000_003
TRAJECTORY_SEED = 7919


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
    allowed = fitting_plans(concepts, settings, denoiser) if settings.updates else []
    teacher = _Teacher(session, denoiser, used, settings, meter)
    conditions = teacher.conditioning(chosen, text_deltas)
    drawn = [
        teacher.samples(layers, lora, conditions, index)
        for index, (layers, lora) in enumerate(zip(concepts, chosen, strict=True))
    ]
    names = labels([lora.role for lora in chosen])
    terms = [_Term(name, part.train) for name, part in zip(names, drawn, strict=True)]
    balance = teacher.balance(concepts, chosen, conditions)
    if settings.combines:
        both = teacher.combined(concepts, balance.strengths, conditions)
        terms.append(_Term("combined", both, settings.combined_weight))
    heldout = [samples.heldout for samples in drawn]
    coefficients = MergerCoefficients.ones(concepts, denoiser.device, denoiser.dtype)
    before = _evaluate(denoiser, used, coefficients, heldout, meter)
    if settings.solves:
        meter.enter("solving", "Solving every layer by itself")
        solve(coefficients, [samples.recording for samples in drawn], on_layer=meter.stop_if_interrupted)
    else:
        coefficients.fill(balance.strengths)
    outcome = _loop(denoiser, used, coefficients, terms, settings, meter, allowed)
    after = _evaluate(denoiser, used, coefficients, heldout, meter)
    vectors = tuple(coefficients.vectors(index) for index in range(len(concepts)))
    return _figures(outcome, before, after, balance), vectors


@dataclass(frozen=True)
class _Drawn:
    """What one LoRA has drawn: to train on, to be kept out, and layer inputs for the closed form."""

    train: Samples
    heldout: Samples
    recording: Recording


@dataclass(frozen=True)
class _Term:
    """One error of the objective: what it is called, its samples, its weight."""

    name: str
    samples: Samples
    weight: float = 1.0


class _Teacher:
    """Draws each LoRA's samples from the host's model."""

    def __init__(
        self,
        session: Session,
        denoiser: Denoiser,
        modules: Mapping[str, nn.Module],
        settings: MergeSettings,
        meter: Meter,
    ) -> None:
        self.session, self.denoiser, self.modules = session, denoiser, modules
        self.settings, self.meter = settings, meter

    def conditioning(self, chosen: Sequence[LoraInput], deltas: TextDeltas) -> Conditions:
        """Rows for the prompts, for the combined one, and for the negative one when guidance needs it."""
        self.meter.enter("encoding", "Encoding the prompts")
        size = {"width": self.settings.width, "height": self.settings.height}

        def encoded(prompts: Sequence[str], negative: bool = False) -> Conditioning:
            return self.session.encode_prompts(prompts, **size, negative=negative, deltas=deltas)

        singles = encoded([lora.prompt for lora in chosen])
        together = self.settings.combined_prompt.strip() if self.settings.wants_combined else ""
        both = encoded([together]) if together else None
        guided = self.settings.guidance_scale > 1
        return Conditions(singles, both, encoded([self.settings.negative_prompt], True) if guided else None)

    @torch.no_grad()
    def samples(self, layers: Concept, lora: LoraInput, conditions: Conditions, index: int) -> _Drawn:
        """Samples to train on, and samples kept out of the training, of the LoRA at ``index``."""
        cond, uncond = conditions.singles[index : index + 1], conditions.uncond
        seed = self.settings.seed + 2 * index
        self.meter.enter("sampling", f"Drawing with {Path(lora.lora).stem}")
        device, dtype = self.denoiser.device, self.denoiser.dtype
        draw = self._noised_images(lora, cond, seed) if lora.images else self._trajectories(cond, uncond)
        with attach(
            self.modules, {name: static_factors(layer, device, dtype) for name, layer in layers.items()}
        ):
            with self._recorded(seed) as recording:
                train = draw(seed, self.settings.trajectories, self.settings.sampling_steps)
            heldout = draw(seed + HELDOUT_SEED, 1, heldout_steps(self.settings))
        measured = self._with_base(heldout, cond)
        result = _Drawn(scaled_like(*train[:2], cond, train[2], measured), measured, recording)
        for part in (result.heldout, result.train):
            require_effect(part, Path(lora.lora).stem)
        return result

    @torch.no_grad()
    def balance(
        self, concepts: Sequence[Concept], chosen: Sequence[LoraInput], conditions: Conditions
    ) -> Balance:
        """Each LoRA's strength for the combined prompt: as the settings balance them, or 1."""
        if not self.settings.balances:
            return Balance((1.0,) * len(concepts))
        self.meter.enter("sampling", "Weighing subject and style")
        roles = [lora.role for lora in chosen]
        return Scales(self.denoiser, self.modules, concepts, roles, conditions, self.settings).balanced()

    @torch.no_grad()
    def combined(
        self, concepts: Sequence[Concept], strengths: Sequence[float], conditions: Conditions
    ) -> Samples:
        """What the plain sum at these strengths draws for the combined prompt: an anchor for the merge.

        The errors of equation 5 ask only that every LoRA by itself stays as it is. That is also
        fulfilled when the subject's token switches the style off, so what both do together needs a
        term of its own.
        """
        self.meter.enter("sampling", "Drawing the combined prompt")
        cond = conditions.together
        plain = MergerCoefficients.ones(concepts, self.denoiser.device, self.denoiser.dtype)
        plain.fill(strengths)
        draw = self._trajectories(cond, conditions.uncond)
        seed = self.settings.seed + 2 * len(concepts)
        with attach(self.modules, plain.branches()):
            drawn = draw(seed, self.settings.trajectories, self.settings.sampling_steps)
        x_t, t, target = drawn
        first = slice(self.settings.sampling_steps)
        measured = self._with_base((x_t[first], t[first], target[first]), cond)
        samples = scaled_like(x_t, t, cond, target, measured)
        for part in (measured, samples):
            require_effect(part, "the plain sum")
        return samples

    def _recorded(self, seed: int) -> AbstractContextManager[Recording]:
        if not self.settings.solves:
            return nullcontext({})
        return recorded(self.modules, TOKENS, torch.Generator().manual_seed(seed))

    def _with_base(self, drawn: Drawn, cond: Conditioning) -> Samples:
        """The samples with their scale: what the LoRA does to each of the base's predictions."""
        x_t, t, target = drawn
        return assemble(x_t, t, cond, target, predict_each(self.denoiser.predict, x_t, t, cond))

    def _trajectories(self, cond: Conditioning, uncond: Conditioning | None) -> Draw:
        """Draws the LoRA's own trajectories, each with a seed of its own."""
        settings = self.settings

        def draw(seed: int, trajectories: int, steps: int) -> Drawn:
            parts = [
                trajectory(
                    self.denoiser,
                    self.denoiser.predict,
                    cond,
                    uncond,
                    shape=(settings.height // VAE_FACTOR, settings.width // VAE_FACTOR),
                    steps=steps,
                    guidance_scale=settings.guidance_scale,
                    generator=torch.Generator().manual_seed(seed + TRAJECTORY_SEED * number),
                )
                for number in range(trajectories)
            ]
            x_t, t, target = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            return x_t, t, target

        return draw

    def _noised_images(self, lora: LoraInput, cond: Conditioning, seed: int) -> Draw:
        """Draws noise over the reference images."""
        images = load_images(lora.images, self.settings.width, self.settings.height)
        latents = self.session.encode_images(images, seed=seed)

        def draw(seed: int, trajectories: int, steps: int) -> Drawn:
            generator = torch.Generator().manual_seed(seed)
            x_t, t = noised(self.denoiser, latents, trajectories * steps, generator)
            return x_t, t, predict_each(self.denoiser.predict, x_t, t, cond)

        return draw


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
    terms: Sequence[_Term],
    settings: MergeSettings,
    meter: Meter,
    allowed: Sequence[Plan],
) -> Outcome:
    """The updates of the coefficients; none where the settings want none."""
    if not settings.updates:
        return Outcome(coefficients)
    units = update_units(coefficients.concepts)
    told = _told(meter, settings, [term.name for term in terms], units)
    samples, weights = [term.samples for term in terms], [term.weight for term in terms]
    outcome = optimize(denoiser, modules, coefficients, samples, settings, told, weights, allowed)
    meter.skip(units * (settings.updates - len(outcome.steps)))
    return outcome


def _told(meter: Meter, settings: MergeSettings, names: Sequence[str], units: int) -> Callable[[Step], bool]:
    """The loop's callback: progress with figures, and the user's wish to finish now."""
    meter.enter("optimising", "First update")
    losses = [f"{name.replace(' ', '_')}_loss" for name in names]

    def on_step(step: Step) -> bool:
        metrics = {
            "loss": sum(step.errors),
            **dict(zip(losses, step.errors, strict=True)),
            "similarity": step.similarity,
            "travel": step.travel,
        }
        text = f"Update {step.index + 1} of {settings.steps}"
        meter.advance(units, text, metrics)
        return not meter.finish_requested()

    return on_step


def _figures(outcome: Outcome, heldout_before: float, heldout_after: float, balance: Balance) -> Learnt:
    first, last = outcome.steps[:10], outcome.steps[-10:]
    shared = any(True for _ in outcome.coefficients.shared())
    return Learnt(
        steps=len(outcome.steps),
        mean_travel=outcome.coefficients.travel().item(),
        similarity_start=1.0 if shared else 0.0,
        similarity_end=similarity(outcome.coefficients).item(),
        loss_start=_mean_loss(first),
        loss_end=_mean_loss(last),
        heldout_loss_start=heldout_before,
        heldout_loss_end=heldout_after,
        skipped_steps=outcome.skipped,
        stopped_early=outcome.stopped_early,
        plan=outcome.plan.words if outcome.plan else "",
        subject_share=balance.share,
        strengths=balance.strengths,
    )


def _mean_loss(steps: Sequence[Step]) -> float | None:
    return sum(sum(step.errors) for step in steps) / len(steps) if steps else None
