"""What a merge learns from: the samples that the LoRAs draw from the host's model, alone and together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import LoraInput, MergeSettings
from ..denoiser import Conditioning, Denoiser, TextDeltas
from ..hosts import Session
from ..progress import Meter, heldout_steps
from ..ziplora.closed_form import TOKENS, Recording, recorded
from ..ziplora.coefficients import Concept, MergerCoefficients
from ..ziplora.hooks import adapters, lora_hooks
from ..ziplora.samples import Samples, assemble, noised, predict_each, require_effect, scaled_like, trajectory
from .images import load_images
from .strengths import Balance, Conditions, Scales, latent_shape

Walk = tuple[Tensor, Tensor, Tensor]
"""x_t, t and the LoRA's own predictions of a batch of samples."""

Draw = Callable[[int, int, int], Walk]
"""(seed, trajectories, steps of each) -> samples of the LoRA that is attached."""

HELDOUT_SEED = 1_000_003
TRAJECTORY_SEED = 7919


@dataclass(frozen=True)
class Drawn:
    """What one LoRA has drawn: to train on, to be kept out, and layer inputs for the closed form."""

    train: Samples
    heldout: Samples
    recording: Recording


class Teacher:
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
        together = self.settings.combined_prompt.strip() if self.settings.uses_combined_prompt else ""
        both = encoded([together]) if together else None
        guided = self.settings.guidance_scale > 1
        return Conditions(singles, both, encoded([self.settings.negative_prompt], True) if guided else None)

    @torch.no_grad()
    def samples(self, layers: Concept, lora: LoraInput, conditions: Conditions, index: int) -> Drawn:
        """Samples to train on, and samples kept out of the training, of the LoRA at ``index``."""
        cond, uncond = conditions.singles[index : index + 1], conditions.uncond
        seed = self.settings.seed + 2 * index
        self.meter.enter("sampling", f"Drawing with {Path(lora.lora).stem}")
        device, dtype = self.denoiser.device, self.denoiser.dtype
        draw = self._noised_images(lora, cond, seed) if lora.images else self._trajectories(cond, uncond)
        with lora_hooks(self.modules, adapters(layers, device, dtype)):
            with self._recorded(seed) as recording:
                train = draw(seed, self.settings.trajectories, self.settings.sampling_steps)
            heldout = draw(seed + HELDOUT_SEED, 1, heldout_steps(self.settings))
        measured = self._with_base(heldout, cond)
        result = Drawn(scaled_like(*train[:2], cond, train[2], measured), measured, recording)
        for part in (result.heldout, result.train):
            require_effect(part, Path(lora.lora).stem)
        return result

    @torch.no_grad()
    def balance(
        self, concepts: Sequence[Concept], chosen: Sequence[LoraInput], conditions: Conditions
    ) -> Balance:
        """Each LoRA's strength for the combined prompt: as the settings balance them, or 1."""
        if not self.settings.searches_strengths or conditions.both is None:
            return Balance((1.0,) * len(concepts))
        self.meter.enter("sampling", "Weighing subject and style")
        roles = [lora.role for lora in chosen]
        return Scales(self.denoiser, self.modules, concepts, roles, conditions, self.settings).balanced()

    @torch.no_grad()
    def combined(
        self, concepts: Sequence[Concept], strengths: Sequence[float], conditions: Conditions
    ) -> tuple[Samples, Recording]:
        """What the plain sum at these strengths draws for the combined prompt: an anchor for the merge.

        The errors of equation 5 ask only that every LoRA by itself stays as it is. That is also
        fulfilled when the subject's token switches the style off, so what both do together needs a
        term of its own.
        """
        self.meter.enter("sampling", "Drawing the combined prompt")
        cond = conditions.together
        plain = MergerCoefficients.ones(concepts, self.denoiser.device, self.denoiser.dtype)
        plain.start_at(strengths)
        draw = self._trajectories(cond, conditions.uncond)
        seed = self.settings.seed + 2 * len(concepts)
        with lora_hooks(self.modules, plain.adapters()), self._recorded(seed) as recording:
            drawn = draw(seed, self.settings.trajectories, self.settings.sampling_steps)
        x_t, t, target = drawn
        first = slice(self.settings.sampling_steps)
        measured = self._with_base((x_t[first], t[first], target[first]), cond)
        samples = scaled_like(x_t, t, cond, target, measured)
        for part in (measured, samples):
            require_effect(part, "the plain sum")
        return samples, recording

    def _recorded(self, seed: int) -> AbstractContextManager[Recording]:
        if not self.settings.uses_closed_form:
            return nullcontext({})
        return recorded(self.modules, TOKENS, torch.Generator().manual_seed(seed))

    def _with_base(self, drawn: Walk, cond: Conditioning) -> Samples:
        """The samples with their scale: what the LoRA does to each of the base's predictions."""
        x_t, t, target = drawn
        return assemble(x_t, t, cond, target, predict_each(self.denoiser.predict, x_t, t, cond))

    def _trajectories(self, cond: Conditioning, uncond: Conditioning | None) -> Draw:
        """Draws the LoRA's own trajectories, each with a seed of its own."""
        settings = self.settings

        def draw(seed: int, trajectories: int, steps: int) -> Walk:
            parts = [
                trajectory(
                    self.denoiser,
                    self.denoiser.predict,
                    cond,
                    uncond,
                    shape=latent_shape(settings),
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

        def draw(seed: int, trajectories: int, steps: int) -> Walk:
            generator = torch.Generator().manual_seed(seed)
            x_t, t = noised(self.denoiser, latents, trajectories * steps, generator)
            return x_t, t, predict_each(self.denoiser.predict, x_t, t, cond)

        return draw
