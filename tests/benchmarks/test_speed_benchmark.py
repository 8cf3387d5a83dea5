"""The public script's step as the speed benchmark has it learns what our loop learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import lessons, speed
from benchmarks.methods import Pair

SETTINGS = dataclasses.replace(
    speed.EQUATION_5, width=64, height=64, steps=3, trajectories=2, sampling_steps=2
)


@pytest.mark.parametrize("objective", ["relative", "public"])
def test_both_learn_the_same_coefficients_from_the_same_samples(objective: str) -> None:
    settings = dataclasses.replace(SETTINGS, objective=objective)
    with lessons.desk(Pair("rocket", "streamline-cyber-color")) as at:
        data = lessons.draw(at, settings)
        before = [weight.clone() for weight in at.denoiser.unet.parameters()]
        one = speed.one_round(at, data, settings)
        assert all(torch.equal(a, b) for a, b in zip(before, at.denoiser.unet.parameters(), strict=True))
        assert not any("forward" in module.__dict__ for module in at.modules.values())
    assert one.mean_apart < 1e-5 < 1e-2 < one.travel
    assert one.most_apart < one.travel
