"""What else may sit on the WebUI's model: it is off in a session, and exactly back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import MethodType
from typing import Any

import pytest
import torch

from lib_ziplora.hosts.a1111 import A1111Host

from . import a1111_webui as webui
from .test_a1111_model import predict

pytestmark = webui.marks


def unet() -> Any:
    return webui.boot().sd_model.model.diffusion_model


def first(suffix: str) -> Any:
    return next(module for name, module in unet().named_modules() if name.endswith(suffix))


@contextmanager
def token_merging() -> Iterator[None]:
    webui.module("modules.sd_models").apply_token_merging(webui.boot().sd_model, 0.5)
    yield


@contextmanager
def tiling() -> Iterator[None]:
    webui.module("modules.sd_hijack").model_hijack.apply_circular(True)
    yield


@contextmanager
def hypernetwork() -> Iterator[None]:
    torch.manual_seed(0)
    kind = webui.module("modules.hypernetworks.hypernetwork").Hypernetwork
    made = kind(
        name="guest",
        enable_sizes=[first("attn2.to_k").in_features],
        layer_structure=[1, 2, 1],
        weight_init="Normal",
    )
    for weight in made.weights():
        torch.nn.init.normal_(weight, std=0.3)
    webui.boot().loaded_hypernetworks.append(made)
    yield


@contextmanager
def sd_unet() -> Iterator[None]:
    units = webui.module("modules.sd_unet")

    class Zero(units.SdUnet):
        def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            return torch.zeros_like(x)

    class Option(units.SdUnetOption):
        label, model_name = "[guest] zero", "none"

        def create_unet(self) -> Any:
            return Zero()

    units.unet_options.append(Option())
    units.apply_unet(Option.label)
    try:
        yield
    finally:
        units.apply_unet("None")
        units.unet_options.pop()


@contextmanager
def override_of_a_module() -> Iterator[None]:
    """As Hypertile and ControlNet do it: a ``forward`` on the instance."""
    block = first("attn1")
    block.forward = lambda x, *args, **kwargs: 2 * type(block).forward(block, x, *args, **kwargs)
    try:
        yield
    finally:
        del block.forward


@contextmanager
def override_of_the_unet() -> Iterator[None]:
    model = unet()
    model.forward = MethodType(lambda self, x, *args, **kwargs: torch.zeros_like(x), model)
    try:
        yield
    finally:
        del model.forward


@contextmanager
def another_class() -> Iterator[None]:
    """As FreeU does it: a subclass of the UNet with its own forward."""
    model, plain = unet(), type(unet())
    model.__class__ = type(
        "Free", (plain,), {"forward": lambda self, *a, **k: 2 * plain.forward(self, *a, **k)}
    )
    try:
        yield
    finally:
        model.__class__ = plain


@contextmanager
def another_concatenation() -> Iterator[None]:
    hijack = webui.module("modules.sd_hijack_unet")
    hijack.th.cat = lambda tensors, *args, **kwargs: 2 * torch.cat(tensors, *args, **kwargs)
    try:
        yield
    finally:
        del hijack.th.cat


GUESTS = (
    token_merging,
    tiling,
    hypernetwork,
    sd_unet,
    override_of_a_module,
    override_of_the_unet,
    another_class,
    another_concatenation,
)


@pytest.mark.parametrize("guest", GUESTS, ids=lambda g: g.__name__)
def test_a_guest_is_off_inside_and_back_afterwards(guest: Any) -> None:
    host = A1111Host()
    with webui.cleaned():
        plain = webui.webui_prediction()
        with host.open() as session:
            base = predict(session)
        installed: AbstractContextManager[None] = guest()
        with installed:
            host.check()
            disturbed = webui.webui_prediction()
            if guest is not token_merging:  # which leaves SDXL's resolutions alone at the WebUI's settings
                assert webui.relative(disturbed, plain) > 1e-3
            before = webui.surroundings()
            with host.open() as session:
                session.check_alive()
                assert webui.module("modules.sd_unet").current_unet is None
                assert not any("ToMe" in type(module).__name__ for module in unet().modules())
                assert torch.equal(predict(session), base)
            assert webui.surroundings() == before
            assert torch.equal(webui.webui_prediction(), disturbed)


def test_hypertile_is_off_inside_and_back_afterwards() -> None:
    hypertile, model = webui.module("hypertile"), webui.boot().sd_model
    hook = hypertile.hypertile_hook_model
    with webui.cleaned(), A1111Host().open() as session:
        base = predict(session)
    hook(model.model, 128, 128, enable=True, is_sdxl=True)
    assert "forward" in first("attn1").__dict__
    before = webui.surroundings()
    try:
        with A1111Host().open() as session:
            assert "forward" not in first("attn1").__dict__
            assert torch.equal(predict(session), base)
        assert webui.surroundings() == before
    finally:
        for name, module in model.model.named_modules():
            if name in model.model.__dict__["__webui_hypertile_layers"]:
                del module.__dict__["forward"]
        del model.model.__dict__["__webui_hypertile_layers"]


def test_sgms_own_checkpointing_is_off_inside() -> None:
    block = next(m for m in unet().modules() if type(m).__name__ == "ResBlock")
    block.use_checkpoint = True
    try:
        with A1111Host().open():
            assert block.use_checkpoint is False
        assert block.use_checkpoint is True
    finally:
        block.use_checkpoint = False


def test_remarks_on_our_prompts_do_not_reach_the_next_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    hijack = webui.module("modules.sd_hijack").model_hijack
    monkeypatch.setitem(webui.boot().opts.data, "emphasis", "No norm")
    hijack.comments.append("of the last picture")
    before = webui.surroundings()
    with A1111Host().open() as session:
        session.encode_prompts(["a (red:1.2) cat"], width=128, height=128, negative=False, deltas={})
        assert "Emphasis" in hijack.extra_generation_params
    assert webui.surroundings() == before
    hijack.comments.clear()


def test_the_schedule_follows_the_settings() -> None:
    opts = webui.boot().opts
    with A1111Host().open() as session:
        usual = session.denoiser.alphas_cumprod
    opts.data["sd_noise_schedule"] = "Zero Terminal SNR"
    try:
        with A1111Host().open() as session:
            assert session.denoiser.alphas_cumprod[-1] < 1e-6 < usual[-1]
    finally:
        opts.data["sd_noise_schedule"] = "Default"


def test_medvrams_model_goes_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    lowvram, model = webui.module("modules.lowvram"), webui.boot().sd_model
    sent: list[str] = []
    monkeypatch.setattr(lowvram, "send_everything_to_cpu", lambda: sent.append("everything"))
    monkeypatch.setattr(model, "lowvram", True)
    with A1111Host().open() as session:
        predict(session)
        assert not sent
    assert sent == ["everything"]


def test_a_session_inside_inference_mode_still_differentiates() -> None:
    with torch.inference_mode(), A1111Host().open() as session:
        cond = session.encode_prompts(["a cat"], width=128, height=128, negative=False, deltas={})
        x_t = torch.randn(1, 4, 16, 16).requires_grad_()
        session.denoiser.predict(x_t, torch.tensor([500]), cond).sum().backward()
        assert torch.isfinite(x_t.grad).all() and not cond.context.is_inference()
