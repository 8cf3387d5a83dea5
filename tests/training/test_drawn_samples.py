"""Which samples a job trains on and which it keeps out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.pipeline import merge
from lib_ziplora.training import run as training
from lib_ziplora.training.learnt import Learnt
from lib_ziplora.ziplora.objective import effect
from lib_ziplora.ziplora.samples import effect_at

from ..support.pico_host import PicoHost, module_names, write_kohya

SETTINGS = MergeSettings(steps=1, width=64, height=64, sampling_steps=3, trajectories=2, combined_weight=0.0)
REQUEST = MergeRequest.pair(
    LoraInput("dog", "a dog"), LoraInput("ink", "ink style"), "both", settings=SETTINGS
)


@pytest.fixture()
def drawn(tmp_path, monkeypatch):
    """Runs a job with a seed; gives each LoRA's training and held-out samples."""
    write_kohya(tmp_path / "dog.safetensors", module_names(), seed=1)
    write_kohya(tmp_path / "ink.safetensors", module_names(), seed=2)
    seen = {}
    train, evaluate = training.train, training.evaluate

    def watched_train(denoiser, modules, coefficients, terms, *rest):
        seen["train"] = [term.samples for term in terms]
        return train(denoiser, modules, coefficients, terms, *rest)

    def watched_evaluate(denoiser, modules, coefficients, samples):
        seen["heldout"] = list(samples)
        return evaluate(denoiser, modules, coefficients, samples)

    monkeypatch.setattr(training, "train", watched_train)
    monkeypatch.setattr(training, "evaluate", watched_evaluate)

    def run(seed, subject=REQUEST.loras[0]):
        settings = dataclasses.replace(SETTINGS, seed=seed)
        request = MergeRequest.pair(subject, REQUEST.loras[1], "both", True, settings)
        merge.run(request, PicoHost(tmp_path))
        return seen["train"], seen["heldout"]

    return run


def distances(a, b):
    return torch.cdist(a.x_t.flatten(1), b.x_t.flatten(1))


def test_every_trajectory_is_another_and_none_is_kept_out_and_trained_on(drawn):
    train, heldout = drawn(0)
    assert [len(part) for part in train] == [6, 6] and [len(part) for part in heldout] == [3, 3]
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


@pytest.mark.parametrize("weight", [1.0, -0.6])
def test_the_teacher_is_the_lora_at_the_users_weight_and_the_scale_its_effect_on_the_base(
    drawn, tmp_path, weight
):
    train, heldout = drawn(0, LoraInput("dog", "a dog", weight))
    host = PicoHost(tmp_path)
    part, kept_out, modules = train[0], heldout[0], canonical_modules(host.unet)
    with torch.no_grad():
        base = host.denoiser.predict(kept_out.x_t, kept_out.t, kept_out.cond)
        for name, layer in read_lora(tmp_path / "dog.safetensors").unet_layers().items():
            modules[name].weight += weight * layer.delta().reshape(modules[name].weight.shape)
        for samples in (part, kept_out):
            teacher = host.denoiser.predict(samples.x_t, samples.t, samples.cond)
            torch.testing.assert_close(samples.target, teacher, rtol=1e-2, atol=1e-2)
    found = effect(teacher, base)
    torch.testing.assert_close(
        kept_out.scale, found.clamp(min=1e-3 * found.mean().item()), rtol=1e-2, atol=1e-4
    )
    torch.testing.assert_close(part.scale, effect_at(part.t, kept_out.t, kept_out.scale))


def test_a_merge_that_is_worse_than_the_plain_sum_says_so():
    figures = {"steps": 9, "mean_travel": 0.3, "similarity_start": 1.0, "similarity_end": 0.5}
    losses = {"loss_start": 2.0, "loss_end": 1.0, "skipped_steps": 0, "stopped_early": False}
    better = Learnt(**figures, **losses, heldout_loss_start=2.0, heldout_loss_end=1.0)
    assert better.warnings() == []
    (warning,) = dataclasses.replace(better, heldout_loss_end=2.5).warnings()
    assert "2.50 against 2.00" in warning
