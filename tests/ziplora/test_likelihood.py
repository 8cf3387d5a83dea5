"""Denoising errors tell who drew a picture, and the search for strengths ends at the share that is wanted."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from lib_ziplora.ziplora.coefficients import MergerCoefficients
from lib_ziplora.ziplora.hooks import adapters, lora_hooks
from lib_ziplora.ziplora.likelihood import HIGHEST, LOWEST, MIDDLE, denoising_error, find_angle
from lib_ziplora.ziplora.samples import Sampler

from ..support.pico import PicoDenoiser, conditioning
from .test_train import world


def schedule(kind="epsilon"):
    alphas = torch.linspace(0.999, 0.01, 100)
    return SimpleNamespace(alphas_cumprod=alphas, prediction_type=kind, device="cpu", latent_channels=4)


def knowing(denoiser, x_0, off=0.0):
    """The model, made to know the picture; its predictions are wrong by ``off`` everywhere."""

    def predict(x_t, t, cond):
        alpha = denoiser.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        noise = (x_t - alpha.sqrt() * x_0) / (1 - alpha).sqrt()
        if denoiser.prediction_type == "epsilon":
            return noise + off
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * x_0 + off

    denoiser.predict = predict
    return denoiser


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_error_is_the_mean_square_that_the_model_is_wrong_by(kind):
    denoiser, x_0 = schedule(kind), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert denoising_error(knowing(denoiser, x_0), [x_0], conditioning(1, 1)) < 1e-9
    wrong = denoising_error(knowing(denoiser, x_0, off=0.5), [x_0, x_0], conditioning(1, 1))
    assert wrong == pytest.approx(0.25, rel=1e-3)


def test_two_models_see_the_same_noise():
    denoiser, seen = schedule(), []

    def predict(x_t, t, cond):
        seen.extend(x_t)
        return x_t

    x_0, denoiser.predict = torch.zeros(1, 4, 8, 8), predict
    for _ in range(2):
        denoising_error(denoiser, [x_0, x_0], conditioning(1, 1))
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({float(x.sum()) for x in first}) == len(first), "every picture and time has noise of its own"


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_model_that_knows_the_picture_draws_it(kind, steps):
    denoiser, x_0 = schedule(kind), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    drawn = Sampler(knowing(denoiser, x_0), (8, 8), 1.0).picture(conditioning(1, 1), None, steps, 0)
    torch.testing.assert_close(drawn, x_0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("slope", [0.005, 0.02])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.65])
def test_on_a_straight_line_the_angle_is_exact(slope, target):
    angle = MIDDLE + (0.5 - target) / slope
    found = find_angle(lambda at: 0.5 - slope * (at - MIDDLE), target)
    if LOWEST <= angle <= HIGHEST:
        assert found.angle == pytest.approx(angle) and found.share == pytest.approx(target)
    assert found.subject**2 + found.style**2 == pytest.approx(1)
    assert found.subject == pytest.approx(math.cos(math.radians(found.angle)))


@pytest.mark.parametrize(("share", "end"), [(1.0, HIGHEST), (0.0, LOWEST)])
def test_where_one_always_prevails_the_search_ends_and_says_so(share, end):
    found = find_angle(lambda angle: share, 0.3)
    assert (found.angle, found.share) == (end, share)
    assert [angle for angle, _ in found.measured] == [45.0, *([60.0, 75.0] if share else [30.0, 15.0])]


def test_a_strong_style_makes_the_search_go_to_the_subject():
    asked = []

    def share_at(angle):
        asked.append(angle)
        return 1 / (1 + math.exp((angle - 35) / 5))

    found = find_angle(share_at, 0.3)
    assert asked == [45.0, 30.0] and 30 < found.angle < 45 and found.subject > found.style


def test_filled_coefficients_are_the_weighted_plain_sum():
    denoiser, concepts, _, _ = world()
    coefficients = MergerCoefficients.ones(concepts)
    coefficients.start_at((0.6, 0.8))
    assert coefficients.mean_change() == 0
    x, t, cond = torch.randn(1, 4, 8, 8), torch.tensor([500]), conditioning(1, 1)
    with torch.no_grad():
        with lora_hooks(denoiser.modules(), coefficients.adapters()):
            filled = denoiser.predict(x, t, cond)
        parts = [adapters(concept, "cpu", torch.float32) for concept in concepts]
        scaled = [
            {name: _times(factors, weight) for name, factors in part.items()}
            for part, weight in zip(parts, (0.6, 0.8), strict=True)
        ]
        with lora_hooks(denoiser.modules(), scaled[0]), lora_hooks(denoiser.modules(), scaled[1]):
            summed = denoiser.predict(x, t, cond)
        base = denoiser.predict(x, t, cond)
    assert (filled - base).norm() > 1e-3
    torch.testing.assert_close(filled, summed, rtol=1e-4, atol=1e-5)
    for m in coefficients.parameters():
        m.data.add_(0.25)
    assert float(coefficients.mean_change()) == pytest.approx(0.25, rel=1e-5)


def _times(factors, weight):
    down, up = factors()
    return lambda: (down, up * weight)


def test_the_pico_denoiser_denoises_its_own_noise_no_better_than_chance():
    """The measure has the scale of the noise: a model that says nothing is wrong by its variance."""
    denoiser = PicoDenoiser()
    x_0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    denoiser.predict = lambda x, t, c: torch.zeros_like(x)
    silent = denoising_error(denoiser, [x_0] * 4, conditioning(1, 1))
    assert silent == pytest.approx(1.0, abs=0.1)
