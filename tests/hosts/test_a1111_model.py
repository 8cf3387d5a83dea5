"""The WebUI's model as ``Session``: clean inside, untouched afterwards, equal to the WebUI's own numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lib_ziplora.denoiser import Conditioning
from lib_ziplora.errors import HostError
from lib_ziplora.hosts import KnowsLayers
from lib_ziplora.hosts.a1111 import A1111Host
from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.ziplora.hooks import adapters, checkpointed, lora_hooks

from . import a1111_webui as webui

pytestmark = webui.marks
SUBJECT, STYLE = "minixl_subject_rocket", "minixl_style_streamline-cyber-color"


@pytest.fixture
def host() -> Any:
    webui.boot()
    with webui.cleaned():
        yield A1111Host()


def predict(session: Any) -> Tensor:
    x_t, t, cond = webui.inputs()
    with torch.no_grad():
        return session.denoiser.predict(x_t, t, Conditioning(cond["crossattn"], cond["vector"]))


def test_base_prediction_is_the_webuis(host: A1111Host) -> None:
    base = webui.webui_prediction()
    with host.open() as session:
        output = predict(session)
        assert output.dtype == torch.float32 and session.denoiser.prediction_type == "epsilon"
        assert session.denoiser.alphas_cumprod.shape == (1000,)
        assert session.denoiser.alphas_cumprod[0].item() == pytest.approx(0.99915, abs=1e-5)
    assert webui.relative(output, base) < 1e-5  # another attention, the same function


def test_the_checkpoints_layers_are_known_before_it_is_opened(host: A1111Host) -> None:
    unet = webui.boot().sd_model.model.diffusion_model
    loaded = {
        f"lora_unet_{name.replace('.', '_')}": tuple(module.weight.shape)
        for name, module in unet.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }
    known = {name: shape for name, shape in host.layer_shapes().items() if name.startswith("lora_unet")}
    assert known == loaded
    assert isinstance(host, KnowsLayers) and host.distilled() == ""


@pytest.mark.parametrize("strength", [1.0, -0.6])
def test_a_branch_equals_the_webuis_own_lora(host: A1111Host, strength: float) -> None:
    own = webui.webui_prediction((SUBJECT, 0.0, strength))
    base = webui.webui_prediction()
    layers = read_lora(host.resolve(SUBJECT)).unet_layers()
    with host.open() as session:
        modules = canonical_modules(session.denoiser.unet)
        assert set(layers) <= set(modules)
        factors = adapters(layers, "cpu", torch.float32)
        scaled = {name: (lambda f=f: (f()[0], strength * f()[1])) for name, f in factors.items()}
        with lora_hooks(modules, scaled):
            ours = predict(session)
    assert webui.relative(base, own) > 0.02
    assert webui.relative(ours, own) < 1e-5


def test_a_lora_of_an_earlier_picture_does_not_leak(host: A1111Host) -> None:
    webui.webui_prediction()
    pristine = webui.weights()
    with host.open() as session:
        base = predict(session)
    webui.picture(f"a sks icon <lora:{SUBJECT}:1>")
    assert not webui.same_weights(pristine)
    with host.open() as session:
        assert webui.same_weights(pristine)
        assert torch.equal(predict(session), base)
    assert webui.same_weights(pristine)


def gradients(session: Any, recompute: bool) -> dict[str, Tensor]:
    """Of the sum of squares of a prediction with one coefficient per LoRA column."""
    layers = read_lora(A1111Host().resolve(SUBJECT)).unet_layers()
    m = {name: torch.ones(layer.in_features, requires_grad=True) for name, layer in layers.items()}
    branches = {
        name: (
            lambda layer=layer, m=m[name]: (
                (layer.down.float().flatten(1) * m).reshape(layer.down.shape),
                layer.up.float() * layer.scaling,
            )
        )
        for name, layer in layers.items()
    }
    x_t, t, cond = webui.inputs()
    blocks = session.denoiser.checkpoint_blocks() if recompute else []
    with lora_hooks(canonical_modules(session.denoiser.unet), branches), checkpointed(blocks):
        session.denoiser.predict(
            x_t, t, Conditioning(cond["crossattn"], cond["vector"])
        ).square().sum().backward()
    return {name: vector.grad for name, vector in m.items()}


def test_gradients_agree_with_and_without_checkpointing(host: A1111Host) -> None:
    webui.picture(f"a sks icon <lora:{STYLE}:1>")
    with host.open() as session:
        assert len(session.denoiser.checkpoint_blocks()) > 10
        plain, recomputed = gradients(session, recompute=False), gradients(session, recompute=True)
        assert all(p.grad is None for p in session.denoiser.unet.parameters())
    for name, gradient in plain.items():
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0, name
        assert webui.relative(recomputed[name], gradient) < 1e-5, name


class Stop(Exception):
    """Ends a session from inside."""


@pytest.mark.parametrize("ending", ["success", "exception", "out of memory"])
@pytest.mark.parametrize("drawn", ["", f"<lora:{STYLE}:0.8>"])
def test_everything_is_as_before(host: A1111Host, ending: str, drawn: str) -> None:
    webui.use_loras()
    webui.inputs()
    prompts = ["a szn icon", f"a szn icon <lora:{STYLE}:0.8>"]
    webui.webui_prediction()
    pristine = webui.weights()
    pictures = [webui.picture(prompt) for prompt in prompts]
    webui.picture(f"a szn icon {drawn}")
    before = webui.surroundings()
    errors = {"exception": Stop("here"), "out of memory": torch.cuda.OutOfMemoryError("simulated")}
    try:
        with host.open() as session:
            gradients(session, recompute=True)
            session.encode_prompts(["a (sks:1.2) icon"], width=128, height=128, negative=False, deltas={})
            torch.rand(3)
            if ending in errors:
                raise errors[ending]
    except (Stop, torch.cuda.OutOfMemoryError) as error:
        assert error is errors[ending]
    assert webui.surroundings() == before
    assert webui.same_weights(pristine)
    for prompt, picture in zip(reversed(prompts), reversed(pictures), strict=True):
        assert np.array_equal(webui.picture(prompt), picture)
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize(
    "title", ["None", "V1 - original v1", "Doggettx", "sub-quadratic", "sdp-no-mem", "InvokeAI"]
)
def test_the_attention_optimisation_comes_back_exactly(host: A1111Host, title: str) -> None:
    sd_hijack = webui.module("modules.sd_hijack")
    chosen = next((o.title() for o in sd_hijack.optimizers if o.title().startswith(title)), title)
    original = sd_hijack.current_optimizer.title()
    try:
        sd_hijack.apply_optimizations(chosen)
        before = webui.surroundings()
        with host.open():
            assert sd_hijack.current_optimizer.name in ("sdp", "sdp-no-mem")
        assert webui.surroundings() == before
    finally:
        sd_hijack.apply_optimizations(original)


def test_a_swapped_model_is_noticed(host: A1111Host, monkeypatch: pytest.MonkeyPatch) -> None:
    data = webui.module("modules.sd_models").model_data
    with host.open() as session:
        session.check_alive()
        with monkeypatch.context() as patch:
            patch.setattr(data, "sd_model", None)
            with pytest.raises(HostError, match="another checkpoint"):
                session.check_alive()
        with monkeypatch.context() as patch:
            patch.setattr(data.sd_model, "sd_model_hash", "0000000000")
            with pytest.raises(HostError, match="another checkpoint"):
                session.check_alive()
        with monkeypatch.context() as patch:
            patch.setattr(data.sd_model, "lowvram", False)
            patch.setattr(webui.module("modules.devices"), "device", torch.device("cuda"))
            with pytest.raises(HostError, match="unloaded to cpu"):
                session.check_alive()
        session.check_alive()
