"""Numbers that hold in half precision: what overflows is left out, and the coefficients come out the same."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, contextmanager

import pytest
import torch

from lib_ziplora.ziplora import train as loop
from lib_ziplora.ziplora.coefficients import MergerCoefficients
from lib_ziplora.ziplora.train import Draw, Term, backward

from .test_train import BATCHED, SETTINGS, world

LARGEST = torch.finfo(torch.float16).max


@contextmanager
def rounded_to(unet, dtype):
    """Every module's output, and the gradient that comes back to it, pass through a dtype."""
    with ExitStack() as stack:
        for module in unet.modules():
            if hasattr(module, "weight"):
                handle = module.register_forward_hook(lambda _, __, output: output.to(dtype).to(output.dtype))
                stack.callback(handle.remove)
        yield


def learnt(dtype, steps=40, on_unet=lambda unet: None):
    """The coefficients of a run in a dtype, and its outcome; a loss scale where the dtype has one."""
    denoiser, concepts, train, _ = world()
    on_unet(denoiser.unet)
    denoiser.dtype = dtype
    denoiser.predict = lambda x_t, t, cond: denoiser.unet(x_t, t, cond.context)
    coefficients = MergerCoefficients.ones(concepts)
    with rounded_to(denoiser.unet, dtype):
        settings = dataclasses.replace(SETTINGS, steps=steps)
        terms = [Term(str(number), samples) for number, samples in enumerate(train)]
        result = loop.train(denoiser, denoiser.modules(), coefficients, terms, settings)
    return torch.cat([m.detach().flatten() for m in coefficients.parameters()]), result


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coefficients_of_half_precision_runs_are_those_of_fp32(dtype):
    exact, outcome = learnt(torch.float32)
    found, rounded = learnt(dtype)
    assert rounded.skipped == outcome.skipped == 0
    assert (found - exact).abs().mean() < 2e-2 < (exact - 1).abs().mean()


def first_gradient(dtype, loss_scale):
    denoiser, concepts, train, _ = world()
    faint = [dataclasses.replace(part, scale=part.scale * 1e6) for part in train]
    settings = dataclasses.replace(SETTINGS, similarity_lambda=0.0)
    coefficients = MergerCoefficients.ones(concepts)
    draws = [Draw(0, faint[0][0:1]), Draw(1, faint[1][1:2])]
    with rounded_to(denoiser.unet, dtype):
        backward(denoiser, denoiser.modules(), coefficients, draws, settings, loss_scale, BATCHED)
    return torch.cat([m.grad.flatten() for m in coefficients.parameters()])


def test_the_loss_scale_keeps_gradients_that_fp16_would_lose():
    exact = first_gradient(torch.float32, 1.0)
    with_scale = (first_gradient(torch.float16, 2.0**12) - exact).norm() / exact.norm()
    without = (first_gradient(torch.float16, 1.0) - exact).norm() / exact.norm()
    assert with_scale < 0.02 < 0.1 < without


def test_gradients_that_overflow_at_first_are_left_out_until_the_loss_scale_has_come_down():
    def steep(unet):
        """Outputs as before, gradients a thousand times as large on the way back."""
        unet.conv_out.register_full_backward_pre_hook(lambda _, grads: tuple(1e3 * grad for grad in grads))

    found, outcome = learnt(torch.float16, on_unet=steep)
    assert 0 < outcome.skipped < len(outcome.updates) / 2
    assert torch.isfinite(found).all() and (found - 1).abs().mean() > 0.05


def test_activations_that_overflow_now_and_then_leave_no_nan_and_are_counted():
    calls = []

    def sometimes(module, inputs, output):
        calls.append(1)
        return output * (LARGEST if len(calls) % 5 == 0 else 1.0)

    found, outcome = learnt(
        torch.float16, on_unet=lambda unet: unet.blocks[0].conv.register_forward_hook(sometimes)
    )
    assert 0 < outcome.skipped < len(outcome.updates)
    assert torch.isfinite(found).all() and (found != 1).any()
