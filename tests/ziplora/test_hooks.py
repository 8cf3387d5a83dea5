"""Branches equal merged weights, and leave nothing behind."""

from __future__ import annotations

import copy

import pytest
import torch

from lib_ziplora.errors import IncompatibleError
from lib_ziplora.lora.algebra import merge_layers
from lib_ziplora.ziplora.coefficients import MergerCoefficients
from lib_ziplora.ziplora.hooks import adapters, check_fit, checkpointed, lora_hooks

from ..support.pico import PicoDenoiser, conditioning, random_lora


def factors_of(layers):
    return adapters(layers, "cpu", torch.float32)


def with_merged_weights(denoiser, layers):
    merged = copy.deepcopy(denoiser)
    for name, module in merged.modules().items():
        if name in layers:
            module.weight.data += layers[name].delta().reshape(module.weight.shape)
    return merged


@pytest.fixture()
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 900]), conditioning(2)


def test_forward_with_branches_is_forward_with_the_weights_merged(inputs):
    denoiser = PicoDenoiser()
    lora = random_lora(denoiser, rank=3, seed=1)
    plain = denoiser.predict(*inputs)
    with lora_hooks(denoiser.modules(), factors_of(lora)):
        branched = denoiser.predict(*inputs)
    merged = with_merged_weights(denoiser, lora).predict(*inputs)
    torch.testing.assert_close(branched, merged, rtol=1e-4, atol=1e-5)
    assert (branched - plain).abs().max() > 0.05
    assert torch.equal(denoiser.predict(*inputs), plain)


def test_student_of_random_coefficients_is_the_file_that_would_be_written(inputs):
    denoiser = PicoDenoiser()
    subject, style = random_lora(denoiser, 3, 1), random_lora(denoiser, 5, 2)
    del subject["lora_unet_blocks.0.to_q"], style["lora_unet_conv_in"]
    coefficients = MergerCoefficients.ones([subject, style])
    for m in coefficients.parameters():
        m.data.uniform_(-1, 2)
    layers = merge_layers([subject, style], coefficients=[coefficients.vectors(i) for i in range(2)])
    with lora_hooks(denoiser.modules(), coefficients.adapters()):
        branched = denoiser.predict(*inputs)
    merged = with_merged_weights(denoiser, layers).predict(*inputs)
    torch.testing.assert_close(branched, merged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("end", ["success", "exception"])
def test_nothing_is_left_on_the_modules(inputs, end):
    denoiser = PicoDenoiser()
    before = {name: dict(module.__dict__) for name, module in denoiser.unet.named_modules()}
    weights = copy.deepcopy(denoiser.unet.state_dict())
    lora = random_lora(denoiser, 2, 3)
    blocks = denoiser.checkpoint_blocks()
    blocks[1].__dict__["forward"] = kept = blocks[1].forward
    try:
        with lora_hooks(denoiser.modules(), factors_of(lora)), checkpointed(blocks):
            denoiser.predict(*inputs)
            if end == "exception":
                raise RuntimeError("a step fails")
    except RuntimeError:
        pass
    assert blocks[1].__dict__.pop("forward") is kept
    for name, module in denoiser.unet.named_modules():
        assert not module._forward_hooks, name
        assert set(module.__dict__) == set(before[name]), name
    assert all(torch.equal(weights[key], value) for key, value in denoiser.unet.state_dict().items())
    assert all(parameter.grad is None for parameter in denoiser.unet.parameters())


def test_hooks_that_were_attached_before_a_failing_one_are_removed():
    denoiser = PicoDenoiser()
    lora = factors_of(random_lora(denoiser, 2, 3))
    with (
        pytest.raises(KeyError),
        lora_hooks(denoiser.modules(), {**lora, "lora_unet_nowhere": lora["lora_unet_down"]}),
    ):
        pass
    assert not any(module._forward_hooks for module in denoiser.unet.modules())


def test_a_lora_that_does_not_fit_is_refused_by_layer():
    denoiser = PicoDenoiser()
    lora = random_lora(denoiser, 2, 3)
    check_fit(denoiser.modules(), lora, "mine")
    wrong = {**lora, "lora_unet_down": lora["lora_unet_conv_in"]}
    with pytest.raises(IncompatibleError, match="lora_unet_down of the LoRA mine"):
        check_fit(denoiser.modules(), wrong, "mine")
    with pytest.raises(IncompatibleError, match="lora_unet_elsewhere"):
        check_fit(denoiser.modules(), {"lora_unet_elsewhere": lora["lora_unet_down"]}, "mine")


def test_each_loras_factors_are_views_of_what_the_merge_holds_whatever_its_strengths():
    denoiser = PicoDenoiser()
    concepts = [random_lora(denoiser, 3, 1), random_lora(denoiser, 2, 2)]
    coefficients = MergerCoefficients.ones(concepts)
    coefficients.start_at((0.3, 0.7))
    for index, concept in enumerate(concepts):
        expected, found = factors_of(concept), coefficients.adapters_of(index)
        assert found.keys() == expected.keys()
        for name, factors in found.items():
            for own, part in zip(expected[name](), factors(), strict=True):
                assert torch.equal(own.flatten(1), part.flatten(1)), name
            held = coefficients.layers[name]
            storages = [tensor.untyped_storage().data_ptr() for tensor in (held.down, held.up)]
            assert [tensor.untyped_storage().data_ptr() for tensor in factors()] == storages, name
