"""The pieces of the objective against their formulas, written out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from lib_ziplora.ziplora import train as loop
from lib_ziplora.ziplora.coefficients import MergerCoefficients
from lib_ziplora.ziplora.hooks import lora_hooks, low_rank
from lib_ziplora.ziplora.memory import Plan
from lib_ziplora.ziplora.objective import similarity, similarity_sum
from lib_ziplora.ziplora.samples import clean_and_noise, noised

from ..support.pico import PicoDenoiser
from .test_train import OBJECTIVES, SETTINGS, gradients, run, world


def varied(concepts):
    """Coefficients of both signs, so that |m_c . m_s| and m_c . m_s differ."""
    coefficients = MergerCoefficients.ones(concepts)
    generator = torch.Generator().manual_seed(7)
    for m in coefficients.parameters():
        m.data.uniform_(-1.5, 1.5, generator=generator)
    return coefficients


def scaled(settings, scale):
    given = world()
    return gradients(given, varied(given[1]), settings, scale=scale)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_scale_leaves_no_trace_in_the_gradients(objective):
    settings = dataclasses.replace(SETTINGS, objective=objective, similarity_lambda=0.5)
    torch.testing.assert_close(scaled(settings, 2.0**12), scaled(settings, 1.0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_descends_on_the_objective_as_the_paper_and_the_design_write_it(objective):
    weight = 0.5
    settings = dataclasses.replace(SETTINGS, objective=objective, similarity_lambda=weight)
    denoiser, concepts, train, _ = world()
    coefficients = varied(concepts)
    with lora_hooks(denoiser.modules(), coefficients.adapters()):
        batch = [part[row : row + 1] for row, part in enumerate(train)]
        wrong = [denoiser.predict(one.x_t, one.t, one.cond) - one.target for one in batch]
    pairs = [layer.m[0] * layer.m[1] for layer in coefficients.layers.values()]
    if objective == "paper":
        total = sum(d.square().sum().sqrt() for d in wrong) + weight * sum(p.sum().abs() for p in pairs)
    elif objective == "public":
        total = sum(d.square().mean() for d in wrong) + weight * torch.cat(pairs).abs().mean()
    else:
        total = sum(d.square().mean() / one.scale[0] for d, one in zip(wrong, batch, strict=True))
        if objective == "cosine":
            sizes = [layer.m[0].norm() * layer.m[1].norm() for layer in coefficients.layers.values()]
            cosines = [p.sum().abs() / size for p, size in zip(pairs, sizes, strict=True)]
            total = total + weight * sum(cosines) / len(cosines)
        else:
            total = total + weight * torch.cat(pairs).abs().mean()
    expected = torch.autograd.grad(total, coefficients.parameters())
    flat = torch.cat([gradient.flatten() for gradient in expected])
    torch.testing.assert_close(scaled(settings, 1.0), flat, rtol=1e-3, atol=1e-6)


def test_both_similarities_take_the_absolute_value():
    _, concepts, _, _ = world()
    coefficients = MergerCoefficients.ones(concepts)
    for m in coefficients.parameters():
        m.data[0] = -1
    columns = sum(layer.m.shape[1] for layer in coefficients.layers.values())
    assert similarity(coefficients).item() == pytest.approx(1.0)
    assert similarity_sum(coefficients).item() == pytest.approx(columns)


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"padding": 2}, {"dilation": 2}, {"padding": "same"}, {"stride": (1, 2)}]
)
def test_a_branch_convolves_as_its_module_does(options):
    generator = torch.Generator().manual_seed(0)
    module = nn.Conv2d(3, 5, 3, bias=False, **options)
    down = torch.randn(2, 3, 3, 3, generator=generator)
    up, x = torch.randn(5, 2, generator=generator), torch.randn(2, 3, 9, 9, generator=generator)
    with torch.no_grad():
        module.weight.copy_((up @ down.flatten(1)).reshape(5, 3, 3, 3))
        torch.testing.assert_close(low_rank(module, x, down, up), module(x), rtol=1e-4, atol=1e-4)


def test_noised_images_have_the_schedules_share_of_noise():
    denoiser = PicoDenoiser()
    generator = torch.Generator().manual_seed(0)
    images = torch.full((1, 4, 64, 64), 3.0)
    x_t, t = noised(denoiser, images, 6, generator)
    alpha_bar = denoiser.alphas_cumprod[t]
    torch.testing.assert_close(x_t.mean((1, 2, 3)), 3 * alpha_bar.sqrt(), rtol=0.05, atol=0.05)
    torch.testing.assert_close(x_t.var((1, 2, 3)), 1 - alpha_bar, rtol=0.1, atol=1e-3)
    assert len(set(t.tolist())) == 6


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_clean_picture_and_the_noise_come_back_from_a_perfect_prediction(kind):
    picture, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    alpha_bar = torch.tensor(0.3)
    x_t = alpha_bar.sqrt() * picture + (1 - alpha_bar).sqrt() * noise
    v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * picture
    x_0, found = clean_and_noise(noise if kind == "epsilon" else v, x_t, alpha_bar, kind)
    torch.testing.assert_close(x_0, picture, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, noise, rtol=1e-4, atol=1e-5)


def test_fp16_starts_with_a_loss_scale_and_other_dtypes_do_not():
    for dtype, expected in ((torch.float16, loop.LOSS_SCALE), (torch.bfloat16, 1.0), (torch.float32, 1.0)):
        denoiser, concepts, train, _ = world()
        denoiser.predict = lambda x_t, t, cond, unet=denoiser.unet: unet(x_t, t, cond.context)
        denoiser.dtype = dtype
        upstream = []
        denoiser.unet.conv_out.register_full_backward_hook(
            lambda _, __, out, seen=upstream: seen.append(out[0])
        )
        run(denoiser, concepts, train, dataclasses.replace(SETTINGS, steps=1, similarity_lambda=0.0))
        denoiser.dtype = torch.float32
        run(denoiser, concepts, train, dataclasses.replace(SETTINGS, steps=1, similarity_lambda=0.0))
        assert upstream[0].norm() / upstream[1].norm() == pytest.approx(expected, rel=1e-4)


def test_without_any_lora_the_evaluation_gives_one_for_each_concept_and_with_one_alone_zero_for_it():
    denoiser, concepts, _, heldout = world()
    modules = denoiser.modules()
    coefficients = MergerCoefficients.ones(concepts)
    for m in coefficients.parameters():
        m.data.zero_()
    assert loop.evaluate(denoiser, modules, coefficients, heldout) == pytest.approx((1.0, 1.0), rel=1e-4)
    for layer in coefficients.layers.values():
        layer.m.data[0] = 1
    assert loop.evaluate(denoiser, modules, coefficients, heldout[:1]) == pytest.approx((0.0,), abs=1e-6)


def test_checkpointing_reaches_layers_whose_inputs_need_no_gradient():
    denoiser, concepts, train, _ = world()
    inside = [{n: layer for n, layer in one.items() if "blocks" in n} for one in concepts]
    found = []
    for recompute in (False, True):
        plan = Plan(True, float(recompute))
        found.append(gradients((denoiser, inside, train, _), MergerCoefficients.ones(inside), plan=plan))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-7)
