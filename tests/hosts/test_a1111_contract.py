"""The WebUI's host keeps the contract of every host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import nn

from lib_ziplora.hosts.a1111 import A1111Host

from . import a1111_webui as webui
from .contract import HostContract

pytestmark = webui.marks


class TestA1111Host(HostContract):
    @pytest.fixture
    def host(self) -> Iterator[A1111Host]:
        model = webui.boot().sd_model
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        modes = [(module, module.training) for module in model.modules()]
        with webui.cleaned():
            yield A1111Host()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode

    @pytest.fixture
    def parts(self, host: A1111Host) -> list[nn.Module]:
        model = webui.boot().sd_model
        return [model.model.diffusion_model, model.first_stage_model, model.conditioner]
