"""What the merge learns from: (x_t, t, conditioning, the LoRA's own output).

A LoRA that draws its own sampling trajectory gives such a sample at every step of it, so
no training images are needed; reference images give them by adding noise. Teachers'
outputs do not depend on the coefficients: each is computed once and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Conditioning, Denoiser, PredictionType
from ..errors import HostError, IncompatibleError
from .loss import effect


@dataclass(frozen=True)
class Samples:
    """A batch of n samples of one concept, on the denoiser's device.

    Attributes:
        x_t: (n, channels, height, width), fp32, variance preserving.
        t: (n,), long.
        cond: n rows.
        target: the teacher's output for them, same shape as ``x_t``, fp32.
        scale: (n,), the LoRA's effect on the prediction (mean squared), positive.
    """

    x_t: Tensor
    t: Tensor
    cond: Conditioning
    target: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows: slice) -> Samples:
        return Samples(self.x_t[rows], self.t[rows], self.cond[rows], self.target[rows], self.scale[rows])


Predictor = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""(x_t, t, cond) -> prediction; raises to stop the run."""


def stratified_timesteps(count: int, total: int, generator: torch.Generator) -> Tensor:
    """``count`` timesteps in falling order, one drawn from each equal part of 0..total-1."""
    jitter = torch.rand(count, generator=generator, dtype=torch.float64)
    parts = (torch.arange(count, dtype=torch.float64) + jitter) * (total / count)
    return parts.long().clamp(max=total - 1).flip(0)


def clean_and_noise(
    prediction: Tensor, x_t: Tensor, alpha_bar: Tensor, kind: PredictionType
) -> tuple[Tensor, Tensor]:
    """The x_0 and the noise that a prediction means, for x_t = sqrt(a) x_0 + sqrt(1 - a) noise.

    ``epsilon``: the prediction is the noise. ``v_prediction``: it is
    sqrt(a) noise - sqrt(1 - a) x_0 (Salimans and Ho, arXiv 2202.00512).
    """
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if kind == "epsilon":
        return (x_t - sigma * prediction) / signal.clamp(min=1e-4), prediction
    return signal * x_t - sigma * prediction, signal * prediction + sigma * x_t


def trajectory(
    denoiser: Denoiser,
    predict: Predictor,
    cond: Conditioning,
    uncond: Conditioning | None,
    *,
    shape: tuple[int, int],
    steps: int,
    guidance_scale: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one picture by DDIM and keep what the UNet saw and said on the way.

    Args:
        denoiser: for its noise schedule and device.
        predict: the UNet with the LoRA attached.
        cond: one row, the prompt.
        uncond: one row, or None for no guidance (then ``guidance_scale`` is not used).
        shape: (height, width) of the latents.
        steps: denoising steps, at jittered timesteps.
        guidance_scale: classifier-free guidance.
        generator: on the CPU; the same seed gives the same trajectory.

    Returns:
        x_t (steps, channels, h, w), t (steps,), conditional predictions like x_t.
    """
    device = denoiser.device
    alphas = denoiser.alphas_cumprod
    timesteps = stratified_timesteps(steps, len(alphas), generator)
    x_t = torch.randn(1, denoiser.latent_channels, *shape, generator=generator).to(device)
    seen: list[Tensor] = []
    said: list[Tensor] = []
    for index, t in enumerate(timesteps.tolist()):
        out, negative = _predict_both(predict, x_t, torch.full((1,), t, device=device), cond, uncond)
        seen.append(x_t)
        said.append(out)
        guided = out if negative is None else negative + guidance_scale * (out - negative)
        x_0, noise = clean_and_noise(guided, x_t, alphas[t].to(device), denoiser.prediction_type)
        following = (
            alphas[timesteps[index + 1]].to(device) if index + 1 < steps else torch.ones((), device=device)
        )
        x_t = following.sqrt() * x_0 + (1 - following).sqrt() * noise
    return torch.cat(seen), timesteps.to(device), torch.cat(said)


def _predict_both(
    predict: Predictor, x_t: Tensor, t: Tensor, cond: Conditioning, uncond: Conditioning | None
) -> tuple[Tensor, Tensor | None]:
    """Predictions under ``cond`` and, where there is one, ``uncond``, in one batch where that is possible.

    A longer ``uncond`` goes by itself: ``cond`` must not be padded to its length, because the
    student will see ``cond`` as it is.
    """
    if uncond is None:
        return predict(x_t, t, cond).float(), None
    if uncond.context.shape[1] > cond.context.shape[1]:
        return predict(x_t, t, cond).float(), predict(x_t, t, uncond).float()
    out = predict(x_t.expand(2, -1, -1, -1), t.expand(2), Conditioning.cat([cond, uncond])).float()
    return out[:1], out[1:]


def noised(
    denoiser: Denoiser, latents: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``count`` noisy versions (x_t, t) of reference latents (n, channels, h, w), in turn."""
    t = stratified_timesteps(count, len(denoiser.alphas_cumprod), generator)
    x_0 = latents[torch.arange(count) % len(latents)].to(denoiser.device)
    noise = torch.randn(x_0.shape, generator=generator).to(denoiser.device)
    alpha_bar = denoiser.alphas_cumprod[t].to(denoiser.device).reshape(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise, t.to(denoiser.device)


def predict_each(predict: Predictor, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Predictions for many samples, one at a time (so that memory stays that of one)."""
    rows = [predict(x_t[i : i + 1], t[i : i + 1], cond) for i in range(len(t))]
    return torch.cat(rows).float()


def assemble(x_t: Tensor, t: Tensor, cond: Conditioning, target: Tensor, base: Tensor) -> Samples:
    """Samples with their scale: what the LoRA does to each prediction.

    The scale has a floor at a thousandth of the batch's mean, for timesteps at which the
    LoRA does nothing.
    """
    scale = effect(target, base)
    floor = scale.mean().clamp(min=torch.finfo(torch.float32).tiny) * 1e-3
    return Samples(x_t, t, cond.expand(len(t)), target, torch.maximum(scale, floor))


def require_effect(samples: Samples, lora: str) -> None:
    """Refuse samples that nothing can be learnt from.

    Raises:
        HostError: the model's outputs hold NaN or infinity.
        IncompatibleError: the LoRA changes no output.
    """
    if not bool(torch.isfinite(samples.target).all() and torch.isfinite(samples.scale).all()):
        raise HostError(
            f"The checkpoint's predictions with the LoRA {lora} hold NaN or infinity, so there is nothing to "
            "learn from. Lower the LoRA's weight, or run the model in bf16 or fp32 instead of fp16."
        )
    rounding = torch.finfo(torch.float32).eps * samples.target.norm() / samples.target.numel() ** 0.5
    if samples.scale.max() <= rounding**2:
        raise IncompatibleError(
            f"The LoRA {lora} changes nothing in what the checkpoint predicts, so there is nothing to learn. "
            "Its weights are zero or far too small: choose another save of it, or raise its weight."
        )
