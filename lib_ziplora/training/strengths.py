"""The strengths at which the plain sum shows both, the subject and the style, in one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import MergeSettings, Role
from ..denoiser import Conditioning, Denoiser
from ..errors import ConfigError
from ..progress import WEIGHED_PICTURES, WEIGHED_STEPS
from ..ziplora.coefficients import Concept, MergerCoefficients
from ..ziplora.hooks import adapters, lora_hooks
from ..ziplora.likelihood import balance, denoising_error
from ..ziplora.samples import picture

SEED = 500_009
VAE_FACTOR = 8


def latent_shape(settings: MergeSettings) -> tuple[int, int]:
    """(height, width) of the samples' latents."""
    return settings.height // VAE_FACTOR, settings.width // VAE_FACTOR


@dataclass(frozen=True)
class Conditions:
    """Conditioning: a row for each LoRA's own prompt, one for all together, one for the negative prompt."""

    singles: Conditioning
    both: Conditioning | None = None
    uncond: Conditioning | None = None

    @property
    def together(self) -> Conditioning:
        """The combined prompt's row.

        Raises:
            ConfigError: no prompt for all together was given.
        """
        if self.both is None:
            raise ConfigError(
                "There is no prompt for both together. Write one: the subject's words and the style's."
            )
        return self.both


@dataclass(frozen=True)
class Balance:
    """Each LoRA's strength in the plain sum for the combined prompt.

    Attributes:
        strengths: in the LoRAs' order.
        share: the subject's share in a picture of all together, 1 for what the subject's LoRA draws
            by itself and 0 for the style's; None where it was not measured.
    """

    strengths: tuple[float, ...]
    share: float | None = None


class Scales:
    """Weighs pictures between the subjects and the styles of a merge.

    Args:
        denoiser: the base.
        modules: its modules by canonical name.
        concepts: each LoRA's layers, with ``roles`` in the same order.
        conditions: the prompts' conditioning.
        settings: size, guidance, seed, and the share that is wanted.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        modules: Mapping[str, nn.Module],
        concepts: Sequence[Concept],
        roles: Sequence[Role],
        conditions: Conditions,
        settings: MergeSettings,
    ) -> None:
        self.denoiser, self.modules, self.concepts, self.roles = denoiser, modules, concepts, roles
        self.conditions, self.settings = conditions, settings

    @torch.no_grad()
    def balanced(self) -> Balance:
        """The strengths at which the subject's share is ``MergeSettings.balance``.

        Where all LoRAs have one role, or draw alike, there is nothing to weigh: all are equally strong.
        """
        if len(set(self.roles)) == 1:
            return Balance(self._strengths(1.0, 1.0))
        own_subject, own_style = self._gap(self._own("subject")), self._gap(self._own("style"))
        if not own_subject > own_style:
            return Balance(self._strengths(math.sqrt(0.5), math.sqrt(0.5)))

        def share_at(angle: float) -> float:
            turn = math.radians(angle)
            pictures = self._together(self._strengths(math.cos(turn), math.sin(turn)))
            return (self._gap(pictures) - own_style) / (own_subject - own_style)

        found = balance(share_at, self.settings.balance)
        return Balance(self._strengths(found.subject, found.style), found.share)

    def _strengths(self, subject: float, style: float) -> tuple[float, ...]:
        """Each LoRA's strength: the squares of those of one role add up to the role's square."""
        total = {"subject": subject, "style": style}
        return tuple(total[role] / math.sqrt(self.roles.count(role)) for role in self.roles)

    def _gap(self, pictures: Sequence[Tensor]) -> float:
        """How much better the subjects' LoRAs denoise pictures than the styles' do, all given the combined prompt."""
        errors: dict[str, list[float]] = {"subject": [], "style": []}
        for index, role in enumerate(self.roles):
            with self._alone(index):
                error = denoising_error(
                    self.denoiser, self.denoiser.predict, pictures, self.conditions.together
                )
            errors[role].append(error)
        return sum(errors["style"]) / len(errors["style"]) - sum(errors["subject"]) / len(errors["subject"])

    def _own(self, role: Role) -> list[Tensor]:
        """What the LoRAs of a role draw for their own prompts, each by itself."""
        found: list[Tensor] = []
        for index, other in enumerate(self.roles):
            if other == role:
                with self._alone(index):
                    found += self._draw(self.conditions.singles[index : index + 1])
        return found

    def _together(self, strengths: Sequence[float]) -> list[Tensor]:
        """What the plain sum at these strengths draws for the combined prompt."""
        plain = MergerCoefficients.ones(self.concepts, self.denoiser.device, self.denoiser.dtype)
        plain.start_at(strengths)
        with lora_hooks(self.modules, plain.adapters()):
            return self._draw(self.conditions.together)

    def _alone(self, index: int) -> AbstractContextManager[None]:
        device, dtype, layers = self.denoiser.device, self.denoiser.dtype, self.concepts[index]
        return lora_hooks(self.modules, adapters(layers, device, dtype))

    def _draw(self, cond: Conditioning) -> list[Tensor]:
        return [
            picture(
                self.denoiser,
                self.denoiser.predict,
                cond,
                self.conditions.uncond,
                shape=latent_shape(self.settings),
                steps=WEIGHED_STEPS,
                guidance_scale=self.settings.guidance_scale,
                generator=torch.Generator().manual_seed(self.settings.seed + SEED + number),
            )
            for number in range(WEIGHED_PICTURES)
        ]
