"""Training data: the samples that each LoRA draws by itself, and those of the plain sum for the combined prompt."""

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
from ..progress import Meter, heldout_steps
from ..ziplora.closed_form import TOKENS, LayerInputs, LayerTarget, recorded_inputs, single_lora_targets
from ..ziplora.coefficients import MergerCoefficients
from ..ziplora.hooks import lora_hooks
from ..ziplora.samples import (
    Samples,
    Trajectory,
    noised,
    predict_each,
    require_effect,
    with_measured_scale,
    with_scale_of,
)
from ..ziplora.train import Term
from .images import load_images
from .strengths import Conditions, Strengths, StrengthSearch, sampler_of

Draw = Callable[[int, int, int], Trajectory]
"""(seed, trajectories, steps of each) -> what the model draws with whatever LoRA is on it."""

HELDOUT_SEED = 1_000_003
TRAJECTORY_SEED = 7919


@dataclass(frozen=True)
class TrainingData:
    """What the coefficients are learnt from.

    Attributes:
        terms: the errors of the objective: one a LoRA, and that of the combined prompt where it counts.
        layer_targets: for the closed form; empty where it is not used.
        heldout: each LoRA's samples that are not trained on.
        strengths: of the plain sum that the coefficients start from.
    """

    terms: tuple[Term, ...]
    layer_targets: tuple[LayerTarget, ...]
    heldout: tuple[Samples, ...]
    strengths: Strengths


@dataclass(frozen=True)
class DataSampler:
    """Draws training data with the host's model.

    Attributes:
        session: encodes prompts and images.
        denoiser: the base.
        modules: those that the LoRAs change, by canonical name.
        settings: of the merge.
        meter: told of every stage.
    """

    session: Session
    denoiser: Denoiser
    modules: Mapping[str, nn.Module]
    settings: MergeSettings
    meter: Meter

    @torch.no_grad()
    def training_data(
        self,
        coefficients: MergerCoefficients,
        chosen: Sequence[LoraInput],
        conditions: Conditions,
        strengths: Strengths | None = None,
    ) -> TrainingData:
        """All that a merge learns from, by the UNet alone.

        Args:
            coefficients: hold every LoRA's factors on the device; their values are changed.
            chosen: the LoRAs.
            conditions: as ``conditions`` gives them.
            strengths: that are known, and not searched again.
        """
        settings, names = self.settings, labels([lora.role for lora in chosen])
        drawn = [
            self._lora_samples(coefficients, lora, conditions, index) for index, lora in enumerate(chosen)
        ]
        terms = [Term(name, train) for name, (train, _, _) in zip(names, drawn, strict=True)]
        targets = single_lora_targets([inputs for _, _, inputs in drawn])
        strengths = strengths or self._strengths(coefficients, chosen, conditions)
        if settings.needs.closed_form and conditions.combined is not None:
            coefficients.start_at(strengths.values)
            samples, inputs = self._combined_samples(coefficients, conditions.combined, conditions.uncond)
            terms.append(Term("combined", samples, settings.combined_weight))
            # Where updates follow, they bring the weight.
            weight = 1.0 if settings.needs.updates else settings.combined_weight
            targets.append(LayerTarget(inputs, strengths.values, weight))
        layer_targets = tuple(targets) if settings.uses_closed_form else ()
        return TrainingData(tuple(terms), layer_targets, tuple(heldout for _, heldout, _ in drawn), strengths)

    @torch.no_grad()
    def conditions(self, chosen: Sequence[LoraInput], deltas: TextDeltas) -> Conditions:
        """Rows for the prompts, for the combined one, and for the negative one when guidance needs it; latents of
        the reference images."""
        self.meter.enter("encoding", "Encoding the prompts")
        settings = self.settings

        def encoded(prompts: Sequence[str], negative: bool = False) -> Conditioning:
            size = {"width": settings.width, "height": settings.height}
            return self.session.encode_prompts(prompts, **size, negative=negative, deltas=deltas)

        singles = encoded([lora.prompt for lora in chosen])
        prompt = settings.combined_prompt.strip() if settings.uses_combined_prompt else ""
        combined = encoded([prompt]) if prompt else None
        guided = settings.guidance_scale > 1
        uncond = encoded([settings.negative_prompt], True) if guided else None
        latents = tuple(self._latents(lora, settings.seed + 2 * index) for index, lora in enumerate(chosen))
        return Conditions(singles, combined, uncond, latents)

    def _latents(self, lora: LoraInput, seed: int) -> Tensor | None:
        if not lora.images:
            return None
        images = load_images(lora.images, self.settings.width, self.settings.height)
        return self.session.encode_images(images, seed=seed)

    def _lora_samples(
        self, coefficients: MergerCoefficients, lora: LoraInput, conditions: Conditions, index: int
    ) -> tuple[Samples, Samples, LayerInputs]:
        """Samples to train on, samples kept out of the training, and layer inputs, of the LoRA at ``index``."""
        cond, settings = conditions.singles[index : index + 1], self.settings
        seed, name = settings.seed + 2 * index, Path(lora.lora).stem
        self.meter.enter("sampling", f"Drawing with {name}")
        latents = conditions.latents[index]
        draw = (
            self._trajectories(cond, conditions.uncond)
            if latents is None
            else self._noised_images(latents, cond)
        )
        with lora_hooks(self.modules, coefficients.adapters_of(index)):
            with self._recorded(seed) as inputs:
                train = draw(seed, settings.trajectories, settings.sampling_steps)
            heldout = draw(seed + HELDOUT_SEED, 1, heldout_steps(settings))
        measured = self._measured(heldout, cond)
        samples = with_scale_of(train, cond, measured)
        for part in (measured, samples):
            require_effect(part, name)
        return samples, measured, inputs

    def _strengths(
        self, coefficients: MergerCoefficients, chosen: Sequence[LoraInput], conditions: Conditions
    ) -> Strengths:
        """Each LoRA's strength for the combined prompt: searched, or 1."""
        if not self.settings.searches_strengths or conditions.combined is None:
            return Strengths((1.0,) * len(chosen))
        self.meter.enter("sampling", "Weighing subject and style")
        roles, combined = [lora.role for lora in chosen], conditions.combined
        return StrengthSearch(
            self.denoiser, self.modules, coefficients, roles, conditions, combined, self.settings
        ).strengths()

    def _combined_samples(
        self, coefficients: MergerCoefficients, cond: Conditioning, uncond: Conditioning | None
    ) -> tuple[Samples, LayerInputs]:
        """What the plain sum at its strengths, set before, draws for the combined prompt: an anchor for the merge.

        The errors of equation 5 ask only that every LoRA by itself stays as it is. That is also
        fulfilled when the subject's token switches the style off, so what both do together needs a
        term of its own.
        """
        self.meter.enter("sampling", "Drawing the combined prompt")
        settings = self.settings
        seed = settings.seed + 2 * coefficients.concepts
        with lora_hooks(self.modules, coefficients.adapters()), self._recorded(seed) as inputs:
            drawn = self._trajectories(cond, uncond)(seed, settings.trajectories, settings.sampling_steps)
        measured = self._measured(drawn[: settings.sampling_steps], cond)
        samples = with_scale_of(drawn, cond, measured)
        for part in (measured, samples):
            require_effect(part, "the plain sum")
        return samples, inputs

    def _recorded(self, seed: int) -> AbstractContextManager[LayerInputs]:
        if not self.settings.uses_closed_form:
            return nullcontext({})
        return recorded_inputs(self.modules, TOKENS, torch.Generator().manual_seed(seed))

    def _measured(self, drawn: Trajectory, cond: Conditioning) -> Samples:
        """The samples with their scale, measured against the base."""
        return with_measured_scale(drawn, cond, predict_each(self.denoiser, drawn.x_t, drawn.t, cond))

    def _trajectories(self, cond: Conditioning, uncond: Conditioning | None) -> Draw:
        """Draws the model's own trajectories, each with a seed of its own."""
        sampler = sampler_of(self.denoiser, self.settings)

        def draw(seed: int, trajectories: int, steps: int) -> Trajectory:
            seeds = [seed + TRAJECTORY_SEED * number for number in range(trajectories)]
            return Trajectory.cat([sampler.trajectory(cond, uncond, steps, each) for each in seeds])

        return draw

    def _noised_images(self, latents: Tensor, cond: Conditioning) -> Draw:
        """Draws noise over the reference images' latents."""

        def draw(seed: int, trajectories: int, steps: int) -> Trajectory:
            generator = torch.Generator().manual_seed(seed)
            x_t, t = noised(self.denoiser, latents, trajectories * steps, generator)
            return Trajectory(x_t, t, predict_each(self.denoiser, x_t, t, cond))

        return draw
