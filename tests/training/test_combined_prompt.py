"""The combined prompt's term: what it trains on, what it costs, and what it keeps."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.pipeline.merge import run
from lib_ziplora.training import run as training
from lib_ziplora.ziplora.hooks import adapters, lora_hooks

from ..support.small_merges import merged, pico_host, request

PROMPT = "a dog in ink"


@pytest.fixture()
def host(tmp_path):
    return pico_host(tmp_path)


def learnt(host, monkeypatch, **settings):
    """Merges; gives the training samples, the weights of their errors, and the events."""
    seen, train = {}, training.train

    def watched(denoiser, modules, coefficients, terms, *rest):
        samples, weights = [term.samples for term in terms], [term.weight for term in terms]
        seen.update(samples=samples, weights=weights, denoiser=denoiser, modules=modules)
        return train(denoiser, modules, coefficients, terms, *rest)

    monkeypatch.setattr(training, "train", watched)
    seen["events"] = []
    asked = request(method="ziplora", **settings)
    run(dataclasses.replace(asked, overwrite=True), host, seen["events"].append)
    return seen


def test_the_third_target_is_the_plain_sums_own_prediction(host, monkeypatch):
    seen = learnt(host, monkeypatch, combined_prompt=PROMPT, combined_weight=2.0, auto_balance=False)
    assert seen["weights"] == [1.0, 1.0, 2.0]
    assert len(seen["samples"]) == 3
    anchor = seen["samples"][2]
    modules = canonical_modules(seen["denoiser"].unet)
    with torch.no_grad():
        base = seen["denoiser"].predict(anchor.x_t, anchor.t, anchor.cond)
        branches = [
            adapters(lora.unet_layers(), "cpu", torch.float32)
            for lora in (read_lora(host.folder / f"{name}.safetensors") for name in ("dog", "ink"))
        ]
        with lora_hooks(modules, branches[0]), lora_hooks(modules, branches[1]):
            both = seen["denoiser"].predict(anchor.x_t, anchor.t, anchor.cond)
    assert (anchor.target - both).norm() < 1e-3 * (both - base).norm()


def test_without_a_weight_nothing_is_added(host, monkeypatch):
    plain = learnt(host, monkeypatch)
    layers = merged(host).layers
    idle = learnt(host, monkeypatch, combined_prompt=PROMPT, combined_weight=0.0)
    for seen in (plain, idle):
        assert len(seen["samples"]) == 2
    for name, layer in merged(host).layers.items():
        assert torch.equal(layer.down, layers[name].down), name


def test_its_units_and_its_loss_are_told(host, monkeypatch):
    without = learnt(host, monkeypatch)["events"]
    settings = {"combined_prompt": PROMPT, "combined_weight": 1.0, "auto_balance": False, "start": "ones"}
    seen = learnt(host, monkeypatch, **settings)["events"]
    assert seen[-1].total > without[-1].total
    assert seen[-1].step == seen[-1].total
    losses = [
        event.metrics["combined_loss"] for event in seen if event.stage == "optimising" and event.metrics
    ]
    assert len(losses) == 2 and losses[0] < 1e-6, "the plain sum is where the coefficients start"
    assert not any("combined_loss" in event.metrics for event in without)


def test_the_merge_stays_closer_to_the_plain_sum_on_the_combined_prompt(host, monkeypatch):
    errors = {}
    for weight in (0.0, 100.0):
        settings = {
            "combined_prompt": PROMPT,
            "combined_weight": weight,
            "auto_balance": False,
            "objective": "paper",
        }
        learnt(host, monkeypatch, steps=100, learning_rate=0.003, similarity_lambda=0.0, **settings)
        layers = merged(host).unet_layers()
        seen = learnt(host, monkeypatch, combined_prompt=PROMPT, combined_weight=1.0, auto_balance=False)
        anchor, denoiser = seen["samples"][2], seen["denoiser"]
        factors = adapters(layers, "cpu", torch.float32)
        with torch.no_grad(), lora_hooks(canonical_modules(denoiser.unet), factors):
            output = denoiser.predict(anchor.x_t, anchor.t, anchor.cond)
        errors[weight] = ((output - anchor.target).square().flatten(1).mean(1) / anchor.scale).mean().item()
    assert errors[100.0] < 0.7 * errors[0.0]
