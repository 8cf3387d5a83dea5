"""The WebUI's text encoders and autoencoder off the GPU while the loop runs; the live preview meanwhile and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lib_ziplora.hosts.a1111 import A1111Host

from . import a1111_webui as webui
from .contract import Boom, assert_same, snapshot
from .test_offload import GPU, Devices

pytestmark = webui.marks
CPU = torch.device("cpu")


@pytest.fixture
def model() -> Iterator[Any]:
    loaded = webui.boot().sd_model
    with webui.cleaned():
        yield loaded


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch, model: Any) -> Devices:
    devices = Devices(monkeypatch)
    devices.put(model, GPU)
    return devices


def where(devices: Devices, model: Any) -> list[set[torch.device]]:
    return [devices.all_of(part) for part in (model.model, model.conditioner, model.first_stage_model)]


@pytest.mark.parametrize("fails", [False, True])
def test_all_but_the_unet_leave_and_come_back(model: Any, devices: Devices, fails: bool) -> None:
    with A1111Host().open() as session:
        before = snapshot([model])
        try:
            with session.unet_alone():
                assert where(devices, model) == [{GPU}, {CPU}, {CPU}]
                session.check_alive()
                if fails:
                    raise Boom
        except Boom:
            assert fails
        assert where(devices, model) == [{GPU}] * 3
        assert_same(before, snapshot([model]))


def test_what_the_webui_moves_by_itself_is_left_to_it(
    model: Any, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    with A1111Host().open() as session:
        monkeypatch.setattr(model, "lowvram", True)
        with session.unet_alone():
            assert devices.moved == []
        monkeypatch.undo()


def test_no_preview_is_decoded_meanwhile_and_one_is_afterwards(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = webui.boot()
    samplers = webui.module("modules.sd_samplers_common")
    latent = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = samplers.single_sample_to_image(latent, 0)
    host = A1111Host()
    with host.exclusive(), host.open() as session, session.unet_alone():
        monkeypatch.setitem(shared.opts.data, "live_previews_enable", True)
        monkeypatch.setattr(model, "decode_first_stage", lambda *_: pytest.fail("a preview was decoded"))
        shared.state.sampling_step = 1000
        shared.state.set_current_image()
        assert shared.state.current_image is None
    monkeypatch.undo()
    with torch.no_grad():
        after = samplers.single_sample_to_image(latent, 0)
    assert np.array_equal(np.asarray(before), np.asarray(after))
