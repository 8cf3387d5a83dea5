"""The loop: right gradients, coefficients that move, an objective that falls where it was not trained."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lib_ziplora.config import MergeSettings
from lib_ziplora.errors import HostError, Interrupted, OutOfMemoryError
from lib_ziplora.ziplora import train as loop
from lib_ziplora.ziplora.coefficients import MergerCoefficients
from lib_ziplora.ziplora.hooks import adapters, lora_hooks
from lib_ziplora.ziplora.memory import Plan
from lib_ziplora.ziplora.objective import (
    effect,
    error,
    relative_error,
    similarity,
    similarity_sum,
    similarity_term,
)
from lib_ziplora.ziplora.samples import Sampler, Trajectory, noised, predict_each, with_measured_scale
from lib_ziplora.ziplora.train import Draw, Term, backward

from ..support.pico import PicoDenoiser, conditioning, random_lora

OBJECTIVES = ("relative", "cosine", "public", "paper")
BATCHED = Plan(True, 0.0)
SETTINGS = MergeSettings(steps=30, width=64, height=64, similarity_lambda=0.1)


def world(strength: float = 1.5, count: int = 12):
    """A pico model, two LoRAs, and samples of each (train, held out)."""
    denoiser = PicoDenoiser()
    concepts = [random_lora(denoiser, 3, 1, strength), random_lora(denoiser, 2, 2, strength)]
    train, heldout = [], []
    for index, layers in enumerate(concepts):
        cond = conditioning(1, seed=index)
        generator = torch.Generator().manual_seed(index)
        latents = torch.randn(2, 4, 8, 8, generator=generator)
        x_t, t = noised(denoiser, latents, count + 6, generator)
        with torch.no_grad():
            factors = adapters(layers, "cpu", torch.float32)
            with lora_hooks(denoiser.modules(), factors):
                target = predict_each(denoiser, x_t, t, cond)
            base = predict_each(denoiser, x_t, t, cond)
        samples = with_measured_scale(Trajectory(x_t, t, target), cond, base)
        train.append(samples[0::3])
        heldout.append(samples[1::3])
    return denoiser, concepts, train, heldout


def run(denoiser, concepts, train, settings=SETTINGS, on_update=lambda update: True):
    """The coefficients after the loop, and its result."""
    coefficients = MergerCoefficients.ones(concepts)
    terms = [Term(str(number), samples) for number, samples in enumerate(train)]
    return coefficients, loop.train(denoiser, denoiser.modules(), coefficients, terms, settings, on_update)


def gradients(world, coefficients, settings=SETTINGS, weights=(1.0, 1.0), plan=BATCHED, scale=1.0):
    """All gradients, flat, for the first sample of the first LoRA and the second of the second."""
    denoiser, _, train, _ = world
    draws = [Draw(k, part[k : k + 1], weights[k]) for k, part in enumerate(train)]
    backward(denoiser, denoiser.modules(), coefficients, draws, settings, scale, plan)
    return torch.cat([m.grad.flatten() for m in coefficients.parameters()])


def first_gradients(settings, plan):
    denoiser, concepts, train, _ = world()
    coefficients = MergerCoefficients.ones(concepts)
    for m in coefficients.parameters():
        m.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(m.numel()))
    gradients((denoiser, concepts, train, _), coefficients, settings, plan=plan)
    return {name: layer.m.grad.clone() for name, layer in coefficients.layers.items()}


def test_gradients_are_the_same_under_every_plan():
    every = [Plan(batched, share) for batched in (True, False) for share in (0.0, 1.0)]
    reference, *others = [first_gradients(SETTINGS, plan) for plan in every]
    for other in others:
        for name, gradient in reference.items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("batched", [True, False])
def test_the_weights_of_the_errors_scale_their_gradients(batched):
    settings = dataclasses.replace(SETTINGS, similarity_lambda=0.0)
    found = []
    for weights in ([1.0, 0.0], [0.0, 1.0], [2.0, 3.0]):
        given = world()
        ones = MergerCoefficients.ones(given[1])
        found.append(gradients(given, ones, settings, weights, Plan(batched, 0.0)))
    torch.testing.assert_close(found[2], 2 * found[0] + 3 * found[1], rtol=1e-4, atol=1e-6)
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_by_finite_differences(objective):
    settings = dataclasses.replace(SETTINGS, objective=objective, similarity_lambda=0.3)
    denoiser, concepts, train, _ = world()
    denoiser.unet.double()
    denoiser.dtype = torch.float64
    coefficients = MergerCoefficients.ones(concepts, dtype=torch.float64)
    for layer in coefficients.layers.values():
        layer.m = (torch.rand(layer.m.shape, dtype=torch.float64) + 0.5).requires_grad_(True)
    batch = [part[0:1] for part in train]

    def objective_value():
        with lora_hooks(denoiser.modules(), coefficients.adapters()):
            errors = [
                error(objective, _predict64(denoiser, part), part.target.double(), part.scale.double())
                for part in batch
            ]
        return sum(errors) + settings.similarity_lambda * similarity_term(objective, coefficients)

    objective_value().backward()
    for name, layer in coefficients.layers.items():
        for row, column in ((0, 0), (len(layer.concepts) - 1, layer.m.shape[1] - 1)):
            with torch.no_grad():
                values = []
                for shift in (1e-5, -2e-5):
                    layer.m[row, column] += shift
                    values.append(objective_value())
                layer.m[row, column] += 1e-5
            numeric = (values[0] - values[1]) / 2e-5
            torch.testing.assert_close(layer.m.grad[row, column], numeric, rtol=2e-3, atol=1e-6, msg=name)


def _predict64(denoiser, part):
    return denoiser.unet(part.x_t.double(), part.t, part.cond.context.double())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_coefficient_gets_a_gradient_in_the_first_step(objective):
    gradients = first_gradients(dataclasses.replace(SETTINGS, objective=objective), Plan(True, True))
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), name
        assert (gradient != 0).all(), name


def test_the_objective_falls_on_samples_that_were_not_trained_on():
    denoiser, concepts, train, heldout = world()
    plain = MergerCoefficients.ones(concepts)
    before = loop.evaluate(denoiser, denoiser.modules(), plain, heldout)
    coefficients, _ = run(denoiser, concepts, train, dataclasses.replace(SETTINGS, steps=60))
    after = loop.evaluate(denoiser, denoiser.modules(), coefficients, heldout)
    assert sum(after) < 0.7 * sum(before)
    assert coefficients.mean_change() > 0.05
    assert similarity(coefficients) < 0.95


def test_the_same_seed_gives_the_same_coefficients_and_another_seed_others():
    results = []
    for seed in (3, 3, 4):
        denoiser, concepts, train, _ = world()
        results.append(run(denoiser, concepts, train, dataclasses.replace(SETTINGS, steps=5, seed=seed)))
    first, again, other = [
        torch.cat([m.detach().flatten() for m in coefficients.parameters()]) for coefficients, _ in results
    ]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_callback_can_finish_early_and_an_exception_leaves_no_hook():
    denoiser, concepts, train, _ = world()
    _, result = run(denoiser, concepts, train, on_update=lambda update: update.index < 3)
    assert len(result.updates) == 4 and result.stopped_early

    def interrupt(update):
        raise Interrupted("stop")

    with pytest.raises(Interrupted):
        run(denoiser, concepts, train, on_update=interrupt)
    assert not any(module._forward_hooks for module in denoiser.unet.modules())
    assert all(parameter.grad is None for parameter in denoiser.unet.parameters())


def test_the_loop_stops_when_the_similarity_reaches_zero():
    denoiser, concepts, train, _ = world()
    settings = dataclasses.replace(SETTINGS, steps=300, learning_rate=0.02, similarity_lambda=100.0)
    _, result = run(denoiser, concepts, train, settings)
    assert result.stopped_early and len(result.updates) < 300
    assert result.updates[-1].similarity < loop.SIMILARITY_IS_ZERO


def test_a_step_that_runs_out_of_memory_is_repeated_under_the_next_plan():
    denoiser, concepts, train, _ = world()
    reference, _ = run(denoiser, concepts, train, dataclasses.replace(SETTINGS, steps=3))
    predict = denoiser.predict

    def small_batches_only(x_t, t, cond):
        if len(x_t) > 1:
            raise torch.cuda.OutOfMemoryError("simulated")
        return predict(x_t, t, cond)

    denoiser.predict = small_batches_only
    found, result = run(denoiser, concepts, train, dataclasses.replace(SETTINGS, steps=3))
    assert result.plan == Plan(False, 0.0)
    for ours, theirs in zip(found.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)

    def never(x_t, t, cond):
        raise torch.cuda.OutOfMemoryError("simulated")

    denoiser.predict = never
    with pytest.raises(OutOfMemoryError, match="smaller"):
        run(denoiser, concepts, train)
    assert not any(module._forward_hooks for module in denoiser.unet.modules())


def test_a_host_that_cuts_the_gradient_is_noticed_in_the_first_step():
    denoiser, concepts, train, _ = world()
    block = denoiser.unet.blocks[0]
    whole = block.forward
    block.forward = lambda x, context: whole(x, context).detach()
    with pytest.raises(HostError, match="got no gradient"):
        run(denoiser, concepts, train)


def test_updates_with_gradients_that_are_not_finite_are_left_out():
    denoiser, concepts, train, _ = world()
    predict = denoiser.predict
    calls = []

    def overflow_once(x_t, t, cond):
        calls.append(1)
        return predict(x_t, t, cond) * (float("inf") if len(calls) == 2 else 1.0)

    denoiser.predict = overflow_once
    coefficients, result = run(denoiser, concepts, train, dataclasses.replace(SETTINGS, steps=4))
    assert result.skipped == 1
    assert all(torch.isfinite(m).all() for m in coefficients.parameters())


def test_similarity_counts_shared_layers_only():
    denoiser = PicoDenoiser()
    subject, style = random_lora(denoiser, 2, 1), random_lora(denoiser, 2, 2)
    only = {"lora_unet_down": subject["lora_unet_down"]}
    coefficients = MergerCoefficients.ones([only, style])
    coefficients.layers["lora_unet_conv_in"].m.data.fill_(5.0)
    assert similarity(coefficients).item() == 1.0
    assert similarity_sum(coefficients).item() == subject["lora_unet_down"].in_features
    apart = {"lora_unet_down": subject["lora_unet_down"]}, {"lora_unet_conv_in": style["lora_unet_conv_in"]}
    assert similarity(MergerCoefficients.ones(apart)).item() == 0.0


def test_relative_error_is_one_without_a_lora_and_zero_for_the_teacher():
    generator = torch.Generator().manual_seed(0)
    base, teacher = torch.randn(2, 3, 4, 5, 5, generator=generator)
    scale = effect(teacher, base)
    assert relative_error(base, teacher, scale).item() == pytest.approx(1.0)
    assert relative_error(teacher, teacher, scale).item() == 0.0


def test_a_trajectory_keeps_what_the_unet_saw_and_repeats_with_its_seed():
    denoiser = PicoDenoiser()
    cond, uncond = conditioning(1, 1), conditioning(1, 2)

    def draw(seed, guidance):
        with torch.no_grad():
            uncond_row = uncond if guidance > 1 else None
            drawn = Sampler(denoiser, (8, 8), guidance).trajectory(cond, uncond_row, 6, seed)
            return drawn.x_t, drawn.t, drawn.prediction

    x_t, t, target = draw(0, 3.0)
    assert x_t.shape == target.shape == (6, 4, 8, 8) and (t[:-1] > t[1:]).all()
    with torch.no_grad():
        torch.testing.assert_close(predict_each(denoiser, x_t, t, cond), target, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(draw(0, 3.0), (x_t, t, target), strict=True))
    assert not torch.equal(draw(1, 3.0)[0], x_t)
    assert not torch.equal(draw(0, 1.0)[0][1:], x_t[1:])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddim_with_a_perfect_prediction_ends_at_the_picture(kind):
    denoiser = PicoDenoiser()
    denoiser.prediction_type = kind
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))

    def oracle(x_t, t, cond):
        alpha = denoiser.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        noise = (x_t - alpha.sqrt() * picture) / (1 - alpha).sqrt()
        return noise if kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * picture

    denoiser.predict = oracle
    drawn = Sampler(denoiser, (8, 8), 1.0).trajectory(conditioning(1), None, 5, 0)
    x_t, t = drawn.x_t, drawn.t
    alpha = denoiser.alphas_cumprod[t[-1]]
    first = denoiser.alphas_cumprod[t[0]]
    noise = (x_t[:1] - first.sqrt() * picture) / (1 - first).sqrt()
    expected = alpha.sqrt() * picture + (1 - alpha).sqrt() * noise
    torch.testing.assert_close(x_t[-1:], expected, rtol=1e-3, atol=1e-4)
