"""Target samples: under the conditioning that the merge will see; useless ones are refused."""

from __future__ import annotations

import pytest
import torch

from lib_ziplora.denoiser import Conditioning
from lib_ziplora.errors import HostError, IncompatibleError
from lib_ziplora.ziplora.samples import (
    Sampler,
    Trajectory,
    effect_at,
    predict_each,
    require_effect,
    with_measured_scale,
    with_scale_of,
)

from ..support.pico import PicoDenoiser, conditioning


def longer(cond, tokens):
    generator = torch.Generator().manual_seed(9)
    more = torch.randn(len(cond), tokens, cond.context.shape[2], generator=generator)
    return Conditioning(torch.cat([cond.context, more], dim=1), cond.vector)


@torch.no_grad()
@pytest.mark.parametrize(("prompt", "negative"), [(0, 0), (0, 4), (4, 0)])
def test_targets_are_the_outputs_for_the_prompt_itself_whatever_the_negative_prompts_length(prompt, negative):
    denoiser = PicoDenoiser()
    cond, uncond = longer(conditioning(1, 1), prompt), longer(conditioning(1, 2), negative)

    def draw(guidance):
        drawn = Sampler(denoiser, (8, 8), guidance).trajectory(cond, uncond, 4, 0)
        return drawn.x_t, drawn.t, drawn.prediction

    x_t, t, target = draw(5.0)
    torch.testing.assert_close(predict_each(denoiser, x_t, t, cond), target, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(draw(1.0)[0][-1], x_t[-1])


@pytest.mark.parametrize("extra", [0, 2])
def test_a_trajectory_takes_ddim_steps_along_the_guided_prediction(extra):
    denoiser = PicoDenoiser()
    cond, uncond = conditioning(1, 1), longer(conditioning(1, 2), extra)
    toward, away = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    def predict(x_t, t, rows):
        asked = [torch.equal(row[: cond.context.shape[1]], cond.context[0]) for row in rows.context]
        return torch.cat([toward if yes else away for yes in asked])

    denoiser.predict = predict
    drawn = Sampler(denoiser, (8, 8), 4.0).trajectory(cond, uncond, 3, 0)
    x_t, t, target = drawn.x_t, drawn.t, drawn.prediction
    noise = away + 4.0 * (toward - away)
    for here in (0, 1):
        now, following = denoiser.alphas_cumprod[t[here]], denoiser.alphas_cumprod[t[here + 1]]
        clean = (x_t[here] - (1 - now).sqrt() * noise[0]) / now.sqrt()
        expected = following.sqrt() * clean + (1 - following).sqrt() * noise[0]
        torch.testing.assert_close(x_t[here + 1], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(target, toward.expand(3, -1, -1, -1))


def test_a_scale_is_never_below_a_thousandth_of_the_mean():
    x_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([9, 500])
    base = x_t.clone()
    base[1] += 2.0
    scale = with_measured_scale(Trajectory(x_t, t, x_t), conditioning(1), base).scale
    torch.testing.assert_close(scale, torch.tensor([2.0 * 1e-3, 4.0]))


def test_a_lora_without_effect_is_refused():
    x_t, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([9, 500]), conditioning(1)
    require_effect(with_measured_scale(Trajectory(x_t, t, x_t), cond, 0.999 * x_t), "mine")
    with pytest.raises(IncompatibleError, match="mine changes nothing"):
        require_effect(with_measured_scale(Trajectory(x_t, t, x_t), cond, x_t.clone()), "mine")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["target", "base"])
def test_predictions_that_are_not_finite_are_refused(value, which):
    x_t, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([9, 500]), conditioning(1)
    target, base = x_t.clone(), 0.5 * x_t
    (target if which == "target" else base)[1, 2, 3, 4] = value
    with pytest.raises(HostError, match="mine hold NaN or infinity"):
        require_effect(with_measured_scale(Trajectory(x_t, t, target), cond, base), "mine")


def test_an_effect_is_read_off_between_the_measured_timesteps_and_level_beyond_them():
    known, effects = torch.tensor([700, 100, 400]), torch.tensor([1.0, 100.0, 10.0])
    t = torch.tensor([100, 400, 700, 250, 550, 0, 999])
    expected = torch.tensor([100.0, 10.0, 1.0, 1000**0.5, 10**0.5, 100.0, 1.0])
    torch.testing.assert_close(effect_at(t, known, effects), expected)
    torch.testing.assert_close(effect_at(t, torch.tensor([5]), torch.tensor([3.0])), torch.full((7,), 3.0))
    twice = effect_at(torch.tensor([5, 6]), torch.tensor([5, 5]), torch.tensor([3.0, 3.0]))
    torch.testing.assert_close(twice, torch.full((2,), 3.0))


def test_samples_take_their_scale_from_those_that_were_measured():
    x_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([900, 100])
    measured = with_measured_scale(Trajectory(x_t, t, x_t), conditioning(1), 0.5 * x_t)
    found = with_scale_of(Trajectory(x_t, t, x_t), conditioning(1), measured)
    torch.testing.assert_close(found.scale, measured.scale)
    assert torch.equal(found.target, x_t) and len(found.cond) == 2


@torch.no_grad()
def test_the_last_step_of_a_trajectory_goes_without_guidance():
    seen = []

    class Watched(PicoDenoiser):
        def predict(self, x_t, t, cond):
            seen.append(len(x_t))
            return super().predict(x_t, t, cond)

    Sampler(Watched(), (8, 8), 5.0).trajectory(conditioning(1, 1), conditioning(1, 2), 3, 0)
    assert seen == [2, 2, 1]
