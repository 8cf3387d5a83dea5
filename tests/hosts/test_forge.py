"""Forge and reForge as host: clean inside, untouched afterwards, equal to their own numbers; what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.denoiser import Conditioning
from lib_ziplora.errors import HostError, Interrupted
from lib_ziplora.hosts import Progress, detect
from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.pipeline.merge import run
from lib_ziplora.training.self_test import layer_gradients, self_test
from lib_ziplora.ziplora.hooks import adapters, checkpointed, lora_hooks

from . import forge_webui as webui
from .real_webui import KIND, marks

pytestmark = marks("forge", "reforge")
SUBJECT, STYLE = "minixl_subject_rocket", "minixl_style_streamline-cyber-color"
PROMPTS = ("a sks icon", f"a sks icon <lora:{SUBJECT}:1>")
only_forge = pytest.mark.skipif(KIND != "forge", reason="Forge's own")


@pytest.fixture
def host() -> Iterator[Any]:
    webui.boot()
    with webui.cleaned():
        yield detect()


def request(output: str, **settings: Any) -> MergeRequest:
    small = {"steps": 3, "sampling_steps": 3, "width": 64, "height": 64, **settings}
    inputs = LoraInput(SUBJECT, "a sks icon"), LoraInput(STYLE, "a szn icon")
    return MergeRequest.pair(*inputs, output, settings=MergeSettings(**small))


def inputs(session: Any) -> tuple[Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(5)
    cond = session.encode_prompts(["a cat", "a dog"], width=128, height=128, negative=False, deltas={})
    return torch.randn(2, 4, 16, 16, generator=generator), torch.tensor([900, 50]), cond


def weights() -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in webui.unet().named_parameters()}


def assert_weights(expected: dict[str, Tensor]) -> None:
    for name, parameter in webui.unet().named_parameters():
        assert torch.equal(parameter.float(), expected[name].float()), name


def hooks() -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in webui.unet().modules()]


def test_the_self_test_passes_and_tells_what_it_has_found(host: Any) -> None:
    with host.exclusive():
        found = self_test(host)
    assert not found.problem, found.paragraph
    layers = len(canonical_modules(webui.unet()))
    assert found.facts["layers with a gradient"] == f"{layers} of {layers}"
    assert found.facts["weights that changed"].startswith("0 of ")
    assert "attention_pytorch for a merge" in found.paragraph and found.facts["host"] == KIND


@pytest.mark.parametrize("ending", ["done", "interrupted", "failed"])
def test_pictures_before_and_after_are_the_same(host: Any, ending: str) -> None:
    before = [webui.picture(prompt) for prompt in PROMPTS]
    assert (before[0] != before[1]).any()
    counted = hooks()

    def on_event(progress: Progress) -> None:
        if progress.stage == "optimising" and progress.metrics and ending != "done":
            if ending == "failed":
                raise ValueError("boom")
            host.interrupt()

    wanted = {"done": (), "interrupted": Interrupted, "failed": ValueError}[ending]
    with host.exclusive():
        if wanted:
            with pytest.raises(wanted):
                run(request(f"ended {ending}"), host, on_event)
        else:
            run(request(f"ended {ending}"), host, on_event)
    assert host.output_path(f"ended {ending}").exists() == (ending == "done")
    assert hooks() == counted
    for prompt, expected in reversed(list(zip(PROMPTS, before, strict=True))):
        assert np.array_equal(webui.picture(prompt, keep_caches=True), expected)


def test_a_lora_of_an_earlier_picture_does_not_leak(host: Any) -> None:
    with host.open() as session, torch.no_grad():
        base = session.denoiser.predict(*inputs(session))
    pristine = weights()
    webui.picture(PROMPTS[1])
    with host.open() as session, torch.no_grad():
        assert_weights(pristine)
        assert torch.equal(session.denoiser.predict(*inputs(session)), base)
    assert_weights(pristine)


def test_hooks_act_as_the_webuis_own_lora(host: Any) -> None:
    layers = read_lora(host.resolve(SUBJECT)).unet_layers()
    with host.open() as session, torch.no_grad():
        modules = canonical_modules(session.denoiser.unet)
        assert set(layers) <= set(modules)
        given = inputs(session)
        base = session.denoiser.predict(*given)
        with lora_hooks(modules, adapters(layers, "cpu", torch.float32)):
            ours = session.denoiser.predict(*given)
    webui.picture(PROMPTS[1])  # which leaves its LoRA in the weights
    x_t, t, cond = given
    with torch.inference_mode():
        own = webui.unet()(
            x_t, t.float(), context=cond.context, y=cond.vector, control=None, transformer_options={}
        )
    tolerance = (
        1e-5 if webui.STORAGE == "fp32" else 0.05
    )  # rounded to the storage's dtype, or cast on the way
    assert (base - own).norm() / own.norm() > 0.02
    assert (ours - own).norm() / own.norm() < tolerance


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_finite_differences(host: Any, recompute: bool) -> None:
    layers = read_lora(host.resolve(SUBJECT)).unet_layers()
    with host.open() as session:
        modules = canonical_modules(session.denoiser.unet)
        given = inputs(session)
        scale = {name: torch.ones(1, requires_grad=True) for name in layers}
        fixed = adapters(layers, "cpu", torch.float32)
        branches = {n: (lambda n=n: (fixed[n]()[0], scale[n] * fixed[n]()[1])) for n in layers}
        blocks = session.denoiser.checkpoint_blocks() if recompute else []
        with lora_hooks(modules, branches), checkpointed(blocks):
            session.denoiser.predict(*given).square().mean().backward()
        name = max((n for n in layers if n.endswith("_to_q")), key=lambda n: abs(scale[n].grad.item()))
        values = []
        for change in (-0.05, 0.05):
            with torch.no_grad(), lora_hooks(modules, branches):
                scale[name].fill_(1 + change)
                values.append(session.denoiser.predict(*given).double().square().mean().item())
    assert all(one.grad is not None and one.grad.abs() > 0 for one in scale.values())
    assert scale[name].grad.item() == pytest.approx((values[1] - values[0]) / 0.1, rel=0.05)


def test_an_attention_without_a_backward_pass_is_set_aside(host: Any) -> None:
    module, name, plain = host.backend.plain_attention()
    usual = getattr(module, name)

    def sage(*args: Any, **options: Any) -> Tensor:
        return plain(*args, **options).detach()

    setattr(module, name, sage)
    try:
        with host.open() as session:
            gradients = layer_gradients(session)
        assert all(norm > 0 for layer, norm in gradients.items() if layer.endswith(("_to_q", "_to_k")))
        assert getattr(module, name) is sage
    finally:
        setattr(module, name, usual)


@only_forge
def test_a_unet_that_was_moved_away_meanwhile_comes_back_differentiable(host: Any) -> None:
    with host.open() as session:
        x_t, t, cond = inputs(session)
        with torch.no_grad():
            expected = session.denoiser.predict(x_t, t, cond)
        with torch.inference_mode():
            webui.module("backend.memory_management").unload_all_models()
            for module in webui.unet().modules():
                for key, parameter in module._parameters.items():
                    if parameter is not None:
                        module._parameters[key] = nn.Parameter(parameter.clone(), requires_grad=False)
        assert any(parameter.is_inference() for parameter in webui.unet().parameters())
        x_t.requires_grad_()
        output = session.denoiser.predict(x_t, t, cond)
        output.sum().backward()
        assert torch.equal(output, expected) and x_t.grad.abs().sum() > 0


def test_an_overwritten_lora_is_drawn_anew(host: Any) -> None:
    for seed in (1, 2):
        webui.write_lora("written twice", seed)
        with host.exclusive():
            host.refresh(Path(webui.boot().cmd_opts.lora_dir) / "written twice.safetensors")
        drawn = webui.picture("a cat <lora:written twice:1>", keep_caches=seed == 2)
        if seed == 1:
            first = drawn
    assert (drawn != first).any()


def test_the_written_file_reports_no_unmatched_key(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (11, 12):
        webui.write_lora(f"with text {seed}", seed)
    wanted = request("with both parts")
    pair = tuple(LoraInput(f"with text {seed}", "a sks icon") for seed in (11, 12))
    with host.exclusive():
        run(MergeRequest.pair(*pair, "with both parts", settings=wanted.settings), host)
    plain = webui.picture("a cat")
    capsys.readouterr()
    assert (webui.picture("a cat <lora:with both parts:1>") != plain).any()
    told = capsys.readouterr()
    assert "unmatched" not in told.out + told.err and "not loaded" not in told.out + told.err


def refusals() -> dict[str, Any]:
    """What is wrong: (owner, attribute, value, part of the sentence), of the model that is loaded."""
    model, unet = webui.model(), webui.unet()
    queries = next(m for n, m in unet.named_modules() if n.endswith("attn1.to_q"))
    clip = model.forge_objects_original.clip.cond_stage_model
    packed = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    wide = nn.Parameter(torch.zeros(32, 9, 3, 3), requires_grad=False)
    found = {
        "SD 1.5": (vars(model), "is_sdxl", False, "not SDXL. Choose an SDXL base checkpoint"),
        "quantised": (queries._parameters, "weight", packed, "quantised"),
        "refiner": (clip._modules, "clip_l", None, "refiner"),
        "inpainting": (unet.input_blocks[0][0]._parameters, "weight", wide, "9 input channels"),
        "compiled": (vars(unet), "_compiled_call_impl", object(), "compiled"),
    }
    if KIND == "forge":
        predictor = model.forge_objects_original.unet.model.predictor
        found["flow"] = (vars(predictor), "prediction_type", "const", "neither noise nor velocity")
    return found


@pytest.mark.parametrize("wrong", ["SD 1.5", "quantised", "refiner", "inpainting", "compiled", "flow"])
def test_what_it_cannot_do_is_refused(host: Any, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    host.check()
    with monkeypatch.context() as patched:
        if wrong not in refusals():
            pytest.skip("not in this WebUI")
        owner, name, value, sentence = refusals()[wrong]
        patched.setitem(owner, name, value)
        with pytest.raises(HostError, match=sentence):
            host.check()
        with pytest.raises(HostError, match=sentence), host.open():
            pytest.fail("the session began")
    host.check()


def test_a_model_that_is_not_loaded_yet_is_loaded_by_the_first_session(host: Any) -> None:
    if KIND == "forge":
        sd_models = webui.module("modules.sd_models")
        sd_models.model_data.sd_model, sd_models.model_data.forge_hash = sd_models.FakeInitialModel(), ""
        host.check()
        assert host.checkpoint().name == "minixl"
    with host.open() as session:
        session.check_alive()
        assert session.native_size == 64 and len(session.denoiser.checkpoint_blocks()) > 20
    assert len(host.checkpoint().sha256) == 64
