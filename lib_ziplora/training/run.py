"""Training against a host's clean model: training data, closed form, updates, held-out figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..config import LoraInput, MergeSettings
from ..denoiser import Conditioning, TextDeltas
from ..hosts import Session
from ..lora.algebra import Vectors
from ..lora.formats.keys import canonical_modules
from ..progress import Meter, update_units
from ..ziplora.closed_form import solve
from ..ziplora.coefficients import Concept, MergerCoefficients
from ..ziplora.hooks import check_fit
from ..ziplora.train import Term, TrainingResult, Update, evaluate, train
from .learnt import Learnt
from .memory import fitting_plans
from .strengths import Conditions
from .target_samples import DataSampler


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
    """Learn the coefficients of several LoRAs against the host's model, by the stages in the method's row.

    Once everything is encoded, the UNet has the device to itself.

    Args:
        session: the host's model, clean.
        concepts: each LoRA's UNet layers, user's weight included.
        chosen: each LoRA's prompt and reference images.
        text_deltas: the text-encoder layers of the file to be written: targets and merge see
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
    sampler = DataSampler(session, denoiser, used, settings, meter)
    conditions = sampler.conditions(chosen, text_deltas)
    with session.unet_alone():  # what is on the device is gone before the rest of the model comes back
        return _on_unet(denoiser, sampler, concepts, chosen, conditions)


def _on_unet(
    denoiser: WatchedDenoiser,
    sampler: DataSampler,
    concepts: Sequence[Concept],
    chosen: Sequence[LoraInput],
    conditions: Conditions,
) -> tuple[Learnt, tuple[Vectors, ...]]:
    """The stages that need the UNet alone; see ``learn``."""
    settings, meter, used = sampler.settings, sampler.meter, sampler.modules
    allowed = fitting_plans(concepts, settings, denoiser) if settings.needs.updates else []
    coefficients = MergerCoefficients.ones(concepts, denoiser.device, denoiser.dtype)
    data = sampler.training_data(coefficients, chosen, conditions)
    coefficients.start_at((1.0,) * len(concepts))

    def heldout_errors() -> tuple[float, ...]:
        meter.enter("sampling", "Measuring on samples that are not trained on")
        return evaluate(denoiser, used, coefficients, data.heldout)

    before = heldout_errors()
    coefficients.start_at(data.strengths.values)
    if data.layer_targets:
        meter.enter("solving", "Solving every layer by itself")
        solve(coefficients, data.layer_targets, on_batch=meter.stop_if_interrupted)
        data = dataclasses.replace(data, layer_targets=())  # their inputs are no longer needed
    result, units = TrainingResult(), update_units(len(concepts))
    if settings.needs.updates:
        on_update = _on_update(meter, settings, data.terms, units)
        result = train(denoiser, used, coefficients, data.terms, settings, on_update, allowed)
        meter.skip(units * (settings.steps - len(result.updates)))
    learnt = Learnt.of(result, coefficients, data.strengths, before, heldout_errors())
    return learnt, tuple(coefficients.vectors(index) for index in range(len(concepts)))


def _on_update(
    meter: Meter, settings: MergeSettings, terms: Sequence[Term], units: int
) -> Callable[[Update], bool]:
    """The loop's callback: progress with figures, and the user's wish to finish now."""
    meter.enter("optimising", "First update")
    losses = [f"{term.name.replace(' ', '_')}_loss" for term in terms]

    def on_update(update: Update) -> bool:
        metrics = {
            "loss": sum(update.errors),
            **dict(zip(losses, update.errors, strict=True)),
            "similarity": update.similarity,
            "travel": update.mean_change,
        }
        meter.keeps_work = True
        meter.advance(units, f"Update {update.index + 1} of {settings.steps}", metrics)
        return not meter.finish_requested()

    return on_update
