"""How much of each LoRA a picture shows, by denoising errors, and strengths at which neither is lost.

Whoever drew a picture denoises it best: of two models, the one with the lower error on the noised
picture is the likelier author (the diffusion classifier, Li et al., arXiv 2303.16203). On pictures of
the combined prompt this tells whether the subject or the style prevails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Conditioning, Denoiser
from .samples import Predictor

TIMES = (0.2, 0.4, 0.6, 0.8)
"""Where on the noise schedule a picture's errors are measured, as shares of it."""
MIDDLE, STRIDE, LOWEST, HIGHEST = 45.0, 15.0, 15.0, 75.0
"""Angles in degrees: where the search begins, how far it goes at once, and its ends."""


@dataclass(frozen=True)
class Balanced:
    """Where the search ended.

    Attributes:
        angle: degrees; the subject's strength is its cosine, the style's its sine. The squares add up
            to 1, so that two deltas of one size and no overlap are together as large as one.
        share: the subject's share there.
        measured: (angle, share) of everything that was tried, in that order.
    """

    angle: float
    share: float
    measured: tuple[tuple[float, float], ...]

    @property
    def subject(self) -> float:
        return math.cos(math.radians(self.angle))

    @property
    def style(self) -> float:
        return math.sin(math.radians(self.angle))


@torch.no_grad()
def denoising_error(
    denoiser: Denoiser, predict: Predictor, pictures: Sequence[Tensor], cond: Conditioning
) -> float:
    """How badly a model predicts the noise in pictures: mean squared error over them and ``TIMES``.

    Args:
        denoiser: for its noise schedule and device.
        predict: the model.
        pictures: latents x_0, (1, channels, height, width) each.
        cond: one row.

    Returns:
        The mean. Every call adds the same noise, so that two models' errors can be compared.
    """
    alphas, device = denoiser.alphas_cumprod, denoiser.device
    total = torch.zeros((), device=device)
    for time in TIMES:
        t = int(time * len(alphas))
        signal, sigma = alphas[t].sqrt().to(device), (1 - alphas[t]).sqrt().to(device)
        for number, x_0 in enumerate(pictures):
            generator = torch.Generator().manual_seed(len(alphas) * number + t)
            noise = torch.randn(x_0.shape, generator=generator).to(device)
            truth = noise if denoiser.prediction_type == "epsilon" else signal * noise - sigma * x_0
            said = predict(signal * x_0 + sigma * noise, torch.full((1,), t, device=device), cond)
            total = total + (said.float() - truth).square().mean()
    return float(total) / (len(TIMES) * len(pictures))


def balance(share_at: Callable[[float], float], target: float) -> Balanced:
    """The angle at which the subject's share is ``target``.

    The share falls as the angle grows. From the middle the search walks in strides until the target
    lies between the last two angles, and reads the angle on the line between them.

    Args:
        share_at: the subject's share in pictures drawn at an angle, in degrees.
        target: between 0 and 1.
    """
    measured = [(MIDDLE, share_at(MIDDLE))]
    direction = 1 if measured[0][1] > target else -1
    while (measured[-1][1] - target) * direction > 0:
        following = measured[-1][0] + direction * STRIDE
        if not LOWEST <= following <= HIGHEST:
            break
        measured.append((following, share_at(following)))
    else:
        if len(measured) > 1:
            (near, near_share), (far, far_share) = measured[-2:]
            part = (near_share - target) / (near_share - far_share)
            return Balanced(near + part * (far - near), target, tuple(measured))
    return Balanced(*measured[-1], tuple(measured))
