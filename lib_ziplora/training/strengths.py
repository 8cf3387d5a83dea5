"""Strength search: the strengths at which the plain sum shows both, the subject and the style, in one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import ROLES, MergeSettings, Role
from ..denoiser import Conditioning, Denoiser
from ..progress import SEARCH_PICTURES, SEARCH_STEPS
from ..ziplora.coefficients import MergerCoefficients
from ..ziplora.hooks import lora_hooks
from ..ziplora.likelihood import denoising_error, find_angle
from ..ziplora.samples import Sampler

SEED = 500_009
VAE_FACTOR = 8


def sampler_of(denoiser: Denoiser, settings: MergeSettings) -> Sampler:
    """A sampler of pictures of the settings' size."""
    shape = settings.height // VAE_FACTOR, settings.width // VAE_FACTOR
    return Sampler(denoiser, shape, settings.guidance_scale)


@dataclass(frozen=True)
class Conditions:
    """What the text encoders and the autoencoder make of a merge's inputs; the rest needs the UNet alone.

    Attributes:
        singles: a row for each LoRA's own prompt.
        combined: a row for all together.
        uncond: a row for the negative prompt.
        latents: of each LoRA's reference images, None where it has none.
    """

    singles: Conditioning
    combined: Conditioning | None = None
    uncond: Conditioning | None = None
    latents: tuple[Tensor | None, ...] = ()


@dataclass(frozen=True)
class Strengths:
    """Each LoRA's strength in the plain sum for the combined prompt.

    Attributes:
        values: in the LoRAs' order.
        subject_share: the subject's share in a picture of all together, 1 for what the subject's LoRA draws
            by itself and 0 for the style's; None where it was not measured.
    """

    values: tuple[float, ...]
    subject_share: float | None = None


@dataclass(frozen=True)
class StrengthSearch:
    """Search for strengths by the log-likelihood ratio of subjects and styles on pictures of the combined prompt.

    Attributes:
        denoiser: the base.
        modules: its modules by canonical name.
        coefficients: hold every LoRA's factors, with ``roles`` in the same order; their values are changed.
        conditions: the prompts' conditioning; ``combined`` is the combined prompt's row.
        settings: size, guidance, seed, and the share that is wanted.
    """

    denoiser: Denoiser
    modules: Mapping[str, nn.Module]
    coefficients: MergerCoefficients
    roles: Sequence[Role]
    conditions: Conditions
    combined: Conditioning
    settings: MergeSettings

    @torch.no_grad()
    def strengths(self) -> Strengths:
        """The strengths at which the subject's share is ``MergeSettings.balance``.

        Where all LoRAs have one role, or draw alike, there is nothing to tell apart: all are equally strong.
        """
        if len(set(self.roles)) == 1:
            return Strengths(self.by_role(1.0, 1.0))
        subject, style = (self.log_likelihood_ratio(self.pictures_of(role)) for role in ROLES)
        if not subject > style:
            return Strengths(self.by_role(math.sqrt(0.5), math.sqrt(0.5)))

        def share_at(angle: float) -> float:
            turn = math.radians(angle)
            pictures = self.combined_pictures(self.by_role(math.cos(turn), math.sin(turn)))
            return (self.log_likelihood_ratio(pictures) - style) / (subject - style)

        end = find_angle(share_at, self.settings.balance)
        return Strengths(self.by_role(end.subject, end.style), end.share)

    def by_role(self, subject: float, style: float) -> tuple[float, ...]:
        """Each LoRA's strength: the squares of those of one role add up to the role's square."""
        total = {"subject": subject, "style": style}
        return tuple(total[role] / math.sqrt(self.roles.count(role)) for role in self.roles)

    def log_likelihood_ratio(self, pictures: Sequence[Tensor]) -> float:
        """How much better the subjects' LoRAs denoise pictures than the styles' do, given the combined prompt."""
        errors: dict[str, list[float]] = {"subject": [], "style": []}
        for index, role in enumerate(self.roles):
            with self._single(index):
                errors[role].append(denoising_error(self.denoiser, pictures, self.combined))
        return sum(errors["style"]) / len(errors["style"]) - sum(errors["subject"]) / len(errors["subject"])

    def pictures_of(self, role: Role) -> list[Tensor]:
        """What the LoRAs of a role draw for their own prompts, each by itself."""
        pictures: list[Tensor] = []
        for index, other in enumerate(self.roles):
            if other == role:
                with self._single(index):
                    pictures += self._draw(self.conditions.singles[index : index + 1])
        return pictures

    def combined_pictures(self, strengths: Sequence[float]) -> list[Tensor]:
        """What the plain sum at these strengths draws for the combined prompt."""
        self.coefficients.start_at(strengths)
        with lora_hooks(self.modules, self.coefficients.adapters()):
            return self._draw(self.combined)

    def _single(self, index: int) -> AbstractContextManager[None]:
        return lora_hooks(self.modules, self.coefficients.adapters_of(index))

    def _draw(self, cond: Conditioning) -> list[Tensor]:
        sampler, seed = sampler_of(self.denoiser, self.settings), self.settings.seed + SEED
        return [
            sampler.picture(cond, self.conditions.uncond, SEARCH_STEPS, seed + number)
            for number in range(SEARCH_PICTURES)
        ]
