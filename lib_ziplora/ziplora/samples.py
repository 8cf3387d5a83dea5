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
from .objective import effect


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
    timesteps = stratified_timesteps(steps, len(denoiser.alphas_cumprod), generator)
    noise = _noise(denoiser, shape, generator)
    guided = steps - 1  # the last step's direction leads to nothing that is kept
    seen, said, _ = _denoised(denoiser, predict, noise, timesteps, cond, uncond, guidance_scale, guided)
    return torch.cat(seen), timesteps.to(denoiser.device), torch.cat(said)


def picture(
    denoiser: Denoiser,
    predict: Predictor,
    cond: Conditioning,
    uncond: Conditioning | None,
    *,
    shape: tuple[int, int],
    steps: int,
    guidance_scale: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw one picture by DDIM, at evenly spaced timesteps; the arguments are those of ``trajectory``.

    Returns:
        Its latents x_0, (1, channels, h, w).
    """
    total = len(denoiser.alphas_cumprod)
    timesteps = ((torch.arange(steps, 0, -1) - 0.25) * (total / steps)).long()
    noise = _noise(denoiser, shape, generator)
    return _denoised(denoiser, predict, noise, timesteps, cond, uncond, guidance_scale, steps)[2]


def _noise(denoiser: Denoiser, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randn(1, denoiser.latent_channels, *shape, generator=generator).to(denoiser.device)


def _denoised(
    denoiser: Denoiser,
    predict: Predictor,
    x_t: Tensor,
    timesteps: Tensor,
    cond: Conditioning,
    uncond: Conditioning | None,
    guidance_scale: float,
    guided_steps: int,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """DDIM from noise to x_0: what the UNet saw and said at each timestep, and the picture.

    Steps after the first ``guided_steps`` go without guidance.
    """
    device, alphas = denoiser.device, denoiser.alphas_cumprod
    seen: list[Tensor] = []
    said: list[Tensor] = []
    for index, t in enumerate(timesteps.tolist()):
        away = uncond if index < guided_steps else None
        out, negative = _predict_both(predict, x_t, torch.full((1,), t, device=device), cond, away)
        seen.append(x_t)
        said.append(out)
        guided = out if negative is None else negative + guidance_scale * (out - negative)
        x_0, noise = clean_and_noise(guided, x_t, alphas[t].to(device), denoiser.prediction_type)
        last = index + 1 == len(timesteps)
        following = torch.ones((), device=device) if last else alphas[timesteps[index + 1]].to(device)
        x_t = following.sqrt() * x_0 + (1 - following).sqrt() * noise
    return seen, said, x_t


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


def scaled_like(x_t: Tensor, t: Tensor, cond: Conditioning, target: Tensor, measured: Samples) -> Samples:
    """Samples whose scale is read off those of the same LoRA that were measured against the base.

    A LoRA's effect varies with the timestep far more than from picture to picture.
    """
    return Samples(x_t, t, cond.expand(len(t)), target, effect_at(t, measured.t, measured.scale))


def effect_at(t: Tensor, measured_t: Tensor, effects: Tensor) -> Tensor:
    """Effects at timesteps t, (n,), linear in log(effect) between the measured ones and level beyond them.

    Args:
        t: (n,).
        measured_t: (m,), m at least 1, in any order.
        effects: (m,), positive, as ``effect`` gives them.
    """
    order = measured_t.argsort()
    known, logs = measured_t[order].float(), effects[order].log()
    above = torch.searchsorted(known, t.float()).clamp(max=len(known) - 1)
    below = (above - 1).clamp(min=0)
    gap = (known[above] - known[below]).clamp(min=1.0)
    share = ((t - known[below]) / gap).clamp(0.0, 1.0)
    return torch.lerp(logs[below], logs[above], share).exp()


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
