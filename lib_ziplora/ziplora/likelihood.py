"""Log-likelihood ratios of LoRAs on pictures (the diffusion classifier), and a search for strengths by them.

Of two models, the one with the lower denoising error on a noised picture is the likelier author (Li et al.,
arXiv 2303.16203). On pictures of the combined prompt this tells whether the subject or the style prevails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Conditioning, Denoiser

TIMES = (0.2, 0.4, 0.6, 0.8)
"""Where on the noise schedule a picture's errors are measured, as shares of it."""
AT_ONCE = 2
"""Pictures in a forward: as many samples as guidance draws with, so that it takes no more memory."""
MIDDLE, STRIDE, LOWEST, HIGHEST = 45.0, 15.0, 15.0, 75.0
"""Angles in degrees: where the search begins, how far it goes at once, and its ends."""


@dataclass(frozen=True)
class AngleSearch:
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
def denoising_error(denoiser: Denoiser, pictures: Sequence[Tensor], cond: Conditioning) -> float:
    """Mean squared error of a model's predictions of the noise in pictures, over them and ``TIMES``.

    Args:
        denoiser: the model, with whatever LoRA is on it.
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
        for first in range(0, len(pictures), AT_ONCE):
            x_0 = torch.cat(list(pictures[first : first + AT_ONCE]))
            seeds = [len(alphas) * (first + row) + t for row in range(len(x_0))]
            noise = torch.cat([_noise(x_0[:1].shape, seed) for seed in seeds]).to(device)
            truth = noise if denoiser.prediction_type == "epsilon" else signal * noise - sigma * x_0
            rows = torch.full((len(x_0),), t, device=device)
            prediction = denoiser.predict(signal * x_0 + sigma * noise, rows, cond.expand(len(x_0)))
            total = total + (prediction.float() - truth).square().flatten(1).mean(1).sum()
    return float(total) / (len(TIMES) * len(pictures))


def _noise(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def find_angle(share_at: Callable[[float], float], target: float) -> AngleSearch:
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
            return AngleSearch(near + part * (far - near), target, tuple(measured))
    return AngleSearch(*measured[-1], tuple(measured))
