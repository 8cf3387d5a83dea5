"""Which samples a job trains on and which it keeps out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lib_ziplora import job
from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.job import training

from .pico_host import PicoHost, module_names, write_kohya

SETTINGS = MergeSettings(steps=1, width=64, height=64, sampling_steps=3, trajectories=2)
REQUEST = MergeRequest(LoraInput("dog", "a dog"), LoraInput("ink", "ink style"), "both", settings=SETTINGS)


@pytest.fixture()
def drawn(tmp_path, monkeypatch):
    """Runs a job with a seed; gives each LoRA's training and held-out samples."""
    write_kohya(tmp_path / "dog.safetensors", module_names(), seed=1)
    write_kohya(tmp_path / "ink.safetensors", module_names(), seed=2)
    seen = {}
    optimize, evaluate = training.optimize, training.evaluate

    def watched_optimize(denoiser, modules, coefficients, samples, *rest):
        seen["train"] = list(samples)
        return optimize(denoiser, modules, coefficients, samples, *rest)

    def watched_evaluate(denoiser, modules, coefficients, samples):
        seen["heldout"] = list(samples)
        return evaluate(denoiser, modules, coefficients, samples)

    monkeypatch.setattr(training, "optimize", watched_optimize)
    monkeypatch.setattr(training, "evaluate", watched_evaluate)

    def run(seed):
        settings = dataclasses.replace(SETTINGS, seed=seed)
        job.run(
            dataclasses.replace(REQUEST, settings=settings, output=f"both{seed}", overwrite=True),
            PicoHost(tmp_path),
        )
        return seen["train"], seen["heldout"]

    return run


def distances(a, b):
    return torch.cdist(a.x_t.flatten(1), b.x_t.flatten(1))


def test_every_trajectory_is_another_and_none_is_kept_out_and_trained_on(drawn):
    train, heldout = drawn(0)
    assert [len(part) for part in train] == [6, 6] and [len(part) for part in heldout] == [4, 4]
    for trained, kept in zip(train, heldout, strict=True):
        assert distances(trained, kept).min() > 1
        others = distances(trained, trained)[~torch.eye(6, dtype=torch.bool)]
        assert others.min() > 0.01
        assert distances(trained[0:1], trained[3:4]) > 1
    assert distances(*train).min() > 0.1


def test_the_seed_decides_the_samples(drawn):
    first, again, other = (drawn(seed)[0] for seed in (0, 0, 5))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.x_t, b.x_t) and torch.equal(a.t, b.t)
        assert distances(a, c).min() > 0.1
