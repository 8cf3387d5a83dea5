"""The self-test passes on a sound model and names what is wrong with others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lib_ziplora.errors import HostError
from lib_ziplora.jobs.service import Service
from lib_ziplora.training.self_test import checksums, layer_gradients, self_test

from ..support.pico_host import Attention, PicoHost, PicoSdxl, module_names


@pytest.fixture
def host(tmp_path: Path) -> PicoHost:
    return PicoHost(tmp_path)


def test_a_sound_model_passes_with_every_layer(host: PicoHost) -> None:
    found = self_test(host)
    layers = len(module_names())
    assert found.problem == "" and found.paragraph.startswith("ZipLoRA self-test passed. ")
    assert found.facts["layers with a gradient"] == f"{layers} of {layers}"
    assert found.facts["attention's among them"] == "8 of 8"  # two blocks, two attentions, queries and keys
    assert found.facts["weights that changed"] == f"0 of {len(list(host.unet.parameters()))}"
    assert "checkpoint: pico" in found.paragraph and "computes in: float32" in found.paragraph


def test_the_gradient_is_that_of_a_lora_of_rank_one(host: PicoHost) -> None:
    """Of the last layer, whose output the probe multiplies, it can be written down."""
    generator = torch.Generator().manual_seed(0)
    downs = {}
    for name, shape in module_names().items():
        down = torch.randn(1, *shape[1:], generator=generator)
        downs[name] = down / down.norm()
    torch.randn(1, 4, 8, 8, generator=generator)  # the latents
    probe = torch.randn(1, 4, 8, 8, generator=generator)
    seen: list[torch.Tensor] = []
    host.unet.out[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    found = layer_gradients(host)["lora_unet_out_2"]
    hidden = torch.nn.functional.conv2d(seen[0], downs["lora_unet_out_2"], padding=1)
    assert found == pytest.approx(float((probe * hidden).sum((0, 2, 3)).norm()), rel=1e-5)


def test_layers_that_no_gradient_reaches_are_named(host: PicoHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attention, "forward", cut_attention)
    found = self_test(host)
    assert "No usable gradient reaches lora_unet_" in found.problem and "attn1_to_q" in found.problem
    assert found.facts["attention's among them"] == "0 of 8"
    assert found.paragraph.startswith("ZipLoRA self-test failed. ")


def cut_attention(self: Any, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """As Sage and Flash attention do it: no gradient for queries and keys."""
    weights = (self.to_q(tokens) @ self.to_k(context).transpose(1, 2)).softmax(-1).detach()
    return self.to_out[0](weights @ self.to_v(context))


class Careless(PicoHost):
    """Leaves one bit of one weight changed."""

    @contextmanager
    def open(self) -> Iterator[PicoHost]:
        with super().open() as session:
            yield session
        weight = self.unet.out[2].weight
        weight.data.view(torch.int32).flatten()[3] ^= 1


def test_weights_that_changed_are_named(tmp_path: Path) -> None:
    found = self_test(Careless(tmp_path))
    assert "out.2.weight" in found.problem and found.facts["weights that changed"].startswith("1 of ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_checksum_sees_one_bit_and_an_exchange(dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 2, bias=False)
    layer.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3).to(dtype), requires_grad=False)
    before = checksums(layer)
    assert checksums(layer) == before
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32}[layer.weight.element_size()]
    view = layer.weight.data.view(bits).flatten()
    view[0] ^= 1
    assert checksums(layer) != before
    view[0] ^= 1
    assert checksums(layer) == before
    view[1], view[2] = view[2].clone(), view[1].clone()
    assert checksums(layer) != before


def test_what_the_host_refuses_is_the_result(host: PicoHost, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refuse(self: PicoHost) -> Iterator[PicoHost]:
        raise HostError("Choose an SDXL base checkpoint.")
        yield self

    monkeypatch.setattr(PicoHost, "open", refuse)
    found = self_test(host)
    assert found.problem == "Choose an SDXL base checkpoint." and "torch: " in found.paragraph


def test_a_model_without_known_layers_is_no_success(host: PicoHost) -> None:
    host.unet = PicoSdxl()
    for name in ("input_blocks", "out"):
        setattr(host.unet, name, nn.ModuleList())
    host.unet.forward = lambda x, t, context: x  # type: ignore[method-assign]
    assert "no layer that ZipLoRA knows" in self_test(host).problem


def test_the_service_refuses_while_a_job_waits(host: PicoHost, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(host)
    assert service.self_test().problem == ""
    monkeypatch.setattr(service, "jobs", lambda: [SimpleNamespace(ended=False)])
    with pytest.raises(HostError, match="when it has ended"):
        service.self_test()
