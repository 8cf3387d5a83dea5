"""Target samples: (x_t, t, conditioning, the LoRA's own prediction), from sampling trajectories or noised images.

A LoRA that draws its own trajectory gives a sample at every step of it, so no training images are needed. The
predictions do not depend on the coefficients: each is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

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
        target: the LoRA's own prediction for them, same shape as ``x_t``, fp32.
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


@dataclass(frozen=True)
class Trajectory:
    """What a model predicts on its way from noise to a picture: x_t (n, c, h, w), t (n,), prediction like x_t."""

    x_t: Tensor
    t: Tensor
    prediction: Tensor

    def __getitem__(self, rows: slice) -> Trajectory:
        return Trajectory(self.x_t[rows], self.t[rows], self.prediction[rows])

    @staticmethod
    def cat(parts: Sequence[Trajectory]) -> Trajectory:
        """Several trajectories, one after the other."""
        x_t, t, prediction = (
            torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Trajectory)
        )
        return Trajectory(x_t, t, prediction)


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


@dataclass(frozen=True)
class Sampler:
    """DDIM with classifier-free guidance (Song et al., arXiv 2010.02502; Ho and Salimans, arXiv 2207.12598).

    Attributes:
        denoiser: the model, with whatever LoRA is on it.
        shape: (height, width) of the latents.
        guidance_scale: not used where there is no ``uncond``.
    """

    denoiser: Denoiser
    shape: tuple[int, int]
    guidance_scale: float

    def trajectory(
        self, cond: Conditioning, uncond: Conditioning | None, steps: int, seed: int
    ) -> Trajectory:
        """The conditional predictions on the way to one picture, at jittered timesteps.

        Args:
            cond: one row, the prompt.
            uncond: one row, or None for no guidance.
            steps: denoising steps.
            seed: the same one gives the same trajectory.
        """
        generator = torch.Generator().manual_seed(seed)
        timesteps = stratified_timesteps(steps, len(self.denoiser.alphas_cumprod), generator)
        guided = steps - 1  # the last step's direction leads to nothing that is kept
        return self._ddim(self._noise(generator), timesteps, cond, uncond, guided)[0]

    def picture(self, cond: Conditioning, uncond: Conditioning | None, steps: int, seed: int) -> Tensor:
        """One picture's latents x_0, (1, channels, h, w), drawn at evenly spaced timesteps; else as ``trajectory``."""
        generator = torch.Generator().manual_seed(seed)
        total = len(self.denoiser.alphas_cumprod)
        timesteps = ((torch.arange(steps, 0, -1) - 0.25) * (total / steps)).long()
        return self._ddim(self._noise(generator), timesteps, cond, uncond, steps)[1]

    def _noise(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn(1, self.denoiser.latent_channels, *self.shape, generator=generator)
        return noise.to(self.denoiser.device)

    def _ddim(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        cond: Conditioning,
        uncond: Conditioning | None,
        guided_steps: int,
    ) -> tuple[Trajectory, Tensor]:
        """The trajectory from noise x_t, and its x_0; steps after the first ``guided_steps`` go without guidance."""
        device, alphas = self.denoiser.device, self.denoiser.alphas_cumprod
        inputs: list[Tensor] = []
        predictions: list[Tensor] = []
        for index, t in enumerate(timesteps.tolist()):
            negative = uncond if index < guided_steps else None
            rows = torch.full((1,), t, device=device)
            prediction, unconditional = _predict_both(self.denoiser, x_t, rows, cond, negative)
            inputs.append(x_t)
            predictions.append(prediction)
            guided = prediction
            if unconditional is not None:
                guided = unconditional + self.guidance_scale * (prediction - unconditional)
            x_0, noise = clean_and_noise(guided, x_t, alphas[t].to(device), self.denoiser.prediction_type)
            last = index + 1 == len(timesteps)
            following = torch.ones((), device=device) if last else alphas[timesteps[index + 1]].to(device)
            x_t = following.sqrt() * x_0 + (1 - following).sqrt() * noise
        return Trajectory(torch.cat(inputs), timesteps.to(device), torch.cat(predictions)), x_t


def _predict_both(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Conditioning, uncond: Conditioning | None
) -> tuple[Tensor, Tensor | None]:
    """Predictions under ``cond`` and, where there is one, ``uncond``, in one batch where that is possible.

    A longer ``uncond`` goes by itself: ``cond`` must not be padded to its length, because the
    merge will see ``cond`` as it is.
    """
    if uncond is None:
        return denoiser.predict(x_t, t, cond).float(), None
    if uncond.context.shape[1] > cond.context.shape[1]:
        return denoiser.predict(x_t, t, cond).float(), denoiser.predict(x_t, t, uncond).float()
    out = denoiser.predict(x_t.expand(2, -1, -1, -1), t.expand(2), Conditioning.cat([cond, uncond])).float()
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


def predict_each(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Predictions for many samples, one at a time (so that memory stays that of one)."""
    rows = [denoiser.predict(x_t[i : i + 1], t[i : i + 1], cond) for i in range(len(t))]
    return torch.cat(rows).float()


def with_measured_scale(trajectory: Trajectory, cond: Conditioning, base: Tensor) -> Samples:
    """Samples whose scale is the LoRA's effect on each of the base's predictions.

    The scale has a floor at a thousandth of the batch's mean, for timesteps at which the LoRA does nothing.
    """
    scale = effect(trajectory.prediction, base)
    floor = scale.mean().clamp(min=torch.finfo(torch.float32).tiny) * 1e-3
    return _samples(trajectory, cond, torch.maximum(scale, floor))


def with_scale_of(trajectory: Trajectory, cond: Conditioning, measured: Samples) -> Samples:
    """Samples whose scale is read off those of the same LoRA that were measured against the base.

    A LoRA's effect varies with the timestep far more than from picture to picture.
    """
    return _samples(trajectory, cond, effect_at(trajectory.t, measured.t, measured.scale))


def _samples(trajectory: Trajectory, cond: Conditioning, scale: Tensor) -> Samples:
    rows = cond.expand(len(trajectory.t))
    return Samples(trajectory.x_t, trajectory.t, rows, trajectory.prediction, scale)


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
