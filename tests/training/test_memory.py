"""Text encoders and autoencoder off the GPU while the loop runs, where that is needed."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from lib_ziplora.errors import Interrupted
from lib_ziplora.pipeline import merge
from lib_ziplora.training import memory
from lib_ziplora.ziplora.memory import plans

from ..support.small_merges import pico_host, request


@pytest.fixture()
def host(tmp_path, monkeypatch):
    """Parking frees the bytes of ``parked_bytes``; ``log`` tells of it and of the updates."""
    host = pico_host(tmp_path)
    host.free, host.parked_bytes, host.log = 10**15, 0, []

    @contextmanager
    def unet_alone():
        host.log.append("parked")
        host.free += host.parked_bytes
        try:
            yield
        finally:
            host.free -= host.parked_bytes
            host.log.append("back")

    def before_forward(count):
        if torch.is_grad_enabled():
            host.log.append("update")

    monkeypatch.setattr(host, "unet_alone", unet_alone, raising=True)
    monkeypatch.setattr(memory, "free_memory", lambda device: host.free)
    host.before_forward = before_forward
    return host


def run(host, **settings):
    return merge.run(
        request(method="ziplora", steps=2, auto_balance=False, combined_weight=0.0, **settings), host
    )


def needs(host, asked):
    layers = [memory_layers(host, name) for name in ("dog", "ink")]
    return memory.predicted_needs(layers, asked.settings, host.denoiser, plans("auto", "auto"))


def memory_layers(host, name):
    from lib_ziplora.lora.io.read import read_lora

    return read_lora(host.folder / f"{name}.safetensors").unet_layers()


def test_where_the_fastest_plan_fits_nothing_is_moved(host):
    run(host)
    assert host.log == ["update"] * 2


def test_where_it_does_not_fit_the_loop_runs_with_the_unet_alone_under_the_plan_that_fits_then(host):
    fast, *_, small = needs(host, request(method="ziplora", width=128, height=128))
    host.free, host.parked_bytes = small, fast - small
    report = run(host, width=128, height=128)
    assert report.learnt.plan == plans("auto", "auto")[0].description
    assert host.log == ["parked", "back", "parked", "update", "update", "back"]
    assert host.free == small


def test_an_interrupted_loop_brings_the_parts_back(host):
    host.free = needs(host, request(method="ziplora", width=128, height=128))[-1]
    told = host.before_forward

    def stop_in_the_loop(count):
        told(count)
        host.stop = torch.is_grad_enabled()

    host.before_forward = stop_in_the_loop
    with pytest.raises(Interrupted):
        run(host, width=128, height=128)
    assert host.log == ["parked", "back", "parked", "update", "back"]


def test_a_method_without_updates_moves_nothing(host):
    host.free = 0
    merge.run(request(method="instant"), host)
    assert host.log == []
