"""Conditioning and latents: what the WebUI itself computes, with and without text-encoder LoRAs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_ziplora.errors import HostError, IncompatibleError
from lib_ziplora.hosts.a1111 import A1111Host
from lib_ziplora.lora.io.read import read_lora

from . import a1111_webui as webui

pytestmark = webui.marks
SIZE = {"width": 128, "height": 192}
PROMPTS = ["a sks icon", "a (red:1.3) rose, " + "with many leaves, " * 30]


@pytest.fixture
def session() -> Iterator[Any]:
    with webui.cleaned(), A1111Host().open() as opened:
        yield opened


def webui_conditioning(prompts: list[str], negative: bool = False) -> tuple[Tensor, Tensor]:
    """The rows of one picture's prompts, as process_images asks for them."""
    parser, model = webui.module("modules.prompt_parser"), webui.boot().sd_model
    batch = parser.SdConditioning(prompts, is_negative_prompt=negative, **SIZE)
    with torch.no_grad():
        if negative:
            cond = parser.reconstruct_cond_batch(parser.get_learned_conditioning(model, batch, 20), 0)
        else:
            _, cond = parser.reconstruct_multicond_batch(
                parser.get_multicond_learned_conditioning(model, batch, 20), 0
            )
    return cond["crossattn"], cond["vector"]


def test_conditioning_is_the_webuis(session: Any) -> None:
    own = webui_conditioning(PROMPTS)
    tagged = [PROMPTS[0] + "<lora:some:1>", "<hypernet:other:1>" + PROMPTS[1]]
    cond = session.encode_prompts(tagged, **SIZE, negative=False, deltas={})
    assert cond.context.shape[1] > 77
    assert torch.equal(cond.context, own[0]) and torch.equal(cond.vector, own[1])


def test_an_empty_negative_prompt_has_no_text(session: Any) -> None:
    own = webui_conditioning([""], negative=True)
    cond = session.encode_prompts(["", " <lora:some:1>", "blurry"], **SIZE, negative=True, deltas={})
    assert torch.equal(cond.context[:2], own[0].expand(2, -1, -1)) and torch.equal(cond.vector[1:2], own[1])
    assert cond.context[:2].abs().max() == 0 and cond.context[2].abs().max() > 0
    positive = session.encode_prompts([""], **SIZE, negative=False, deltas={})
    assert positive.context.abs().max() > 0


def test_sizes_go_into_the_vector(session: Any) -> None:
    a = session.encode_prompts(["a"], width=128, height=128, negative=False, deltas={})
    b = session.encode_prompts(["a"], width=128, height=256, negative=False, deltas={})
    assert torch.equal(a.context, b.context) and not torch.equal(a.vector, b.vector)


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_text_deltas_equal_the_webuis_lora(strength: float) -> None:
    webui.write_lora("both encoders", 3, unet=False)
    with webui.cleaned():
        webui.use_loras(("both encoders", strength, 0.0))
        matched = len(webui.module("networks").loaded_networks[0].modules)
        own = webui_conditioning(PROMPTS)
    base = webui_conditioning(PROMPTS)
    layers = read_lora(A1111Host().resolve("both encoders")).text_layers()
    assert matched == len(layers)
    pristine = webui.weights()
    with A1111Host().open() as session:
        deltas = {name: lambda layer=layer: strength * layer.delta() for name, layer in layers.items()}
        cond = session.encode_prompts(PROMPTS, **SIZE, negative=False, deltas=deltas)
        assert webui.same_weights(pristine)
        assert torch.equal(
            session.encode_prompts(PROMPTS, **SIZE, negative=False, deltas={}).context, base[0]
        )
    assert webui.relative(cond.context, own[0]) < 1e-5 and webui.relative(cond.vector, own[1]) < 1e-5
    width = own[0].shape[2] // 2
    for encoder in (slice(0, width), slice(width, None)):
        assert webui.relative(base[0][..., encoder], own[0][..., encoder]) > 0.05
    assert webui.relative(base[1], own[1]) > 0.01


def test_layers_that_the_webui_leaves_out_are_left_out(session: Any) -> None:
    deltas = {"lora_te2_text_projection": lambda: torch.ones(64, 64)}
    plain = session.encode_prompts(["a"], **SIZE, negative=False, deltas={})
    cond = session.encode_prompts(["a"], **SIZE, negative=False, deltas=deltas)
    assert torch.equal(cond.vector, plain.vector)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", (3, 3)),
        ("lora_te2_text_model_encoder_layers_0_self_attn_v_proj", (192, 64)),
        ("lora_te2_text_model_encoder_layers_77_mlp_fc1", (64, 64)),
    ],
)
def test_deltas_that_do_not_fit_leave_no_trace(session: Any, name: str, shape: tuple[int, ...]) -> None:
    good = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    deltas = {good: lambda: torch.ones(64, 64), name: lambda: torch.ones(shape)}
    pristine = webui.weights()
    with pytest.raises(IncompatibleError, match=name):
        session.encode_prompts(["a"], **SIZE, negative=False, deltas=deltas)
    assert webui.same_weights(pristine)


def test_images_become_scaled_latents(session: Any) -> None:
    model = webui.boot().sd_model
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    latents = session.encode_images(images, seed=4)
    assert latents.shape == (2, 4, 8, 12) and latents.dtype == torch.float32 and not latents.is_inference()
    assert torch.equal(session.encode_images(images, seed=4), latents)
    assert not torch.equal(session.encode_images(images, seed=5), latents)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        drawn = model.decode_first_stage(latents)
        vae = model.first_stage_model
        mean = vae.quant_conv(vae.encoder(images * 2 - 1))[:, :4] * model.scale_factor
    assert webui.relative(latents, mean) < 0.5 and drawn.shape == images.shape


def test_nans_of_the_vae_are_told(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    common = webui.module("modules.sd_samplers_common")
    monkeypatch.setattr(common, "images_tensor_to_samples", lambda *a: torch.full((1, 4, 8, 8), float("nan")))
    with pytest.raises(HostError, match="no-half-vae"):
        session.encode_images(torch.rand(1, 3, 64, 64), seed=1)


def test_a_replaced_file_is_really_new() -> None:
    """The WebUI knows LoRAs by name: without ``refresh`` the old weights and conditioning stay."""
    host = A1111Host()
    webui.write_lora("first", 1)
    webui.write_lora("second", 2)
    with webui.cleaned():
        webui.picture("a cat <lora:first:1>")
        expected = webui.picture("a cat <lora:second:1>")
        first, second = (
            Path(webui.boot().cmd_opts.lora_dir) / f"{name}.safetensors" for name in ("first", "second")
        )
        old = webui.picture("a cat <lora:first:1>")
        first.write_bytes(second.read_bytes())
        host.refresh(first)
        new = webui.picture("a cat <lora:first:1>", keep_caches=True)
    assert (new == expected).all() and (new != old).any()
