"""Text encoders and autoencoder off the GPU from the end of encoding on."""

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


@pytest.mark.parametrize("method", ["ziplora", "instant", "balanced"])
def test_once_everything_is_encoded_the_unet_is_alone(host, method):
    encode = host.encode_prompts

    def logged(*given, **options):
        host.log.append("encoded")
        return encode(*given, **options)

    host.encode_prompts = logged
    merge.run(request(method=method, steps=2, combined_prompt="a dog in ink"), host)
    encoded = host.log.index("parked")
    assert (
        encoded
        and set(host.log[:encoded]) == {"encoded"}
        and set(host.log[encoded:-1]) <= {"parked", "update"}
    )
    assert host.log.count("update") == (2 if method == "ziplora" else 0) and host.log[-1] == "back"


def test_a_plan_is_chosen_by_the_memory_that_the_other_models_leave(host):
    fast, *_, small = needs(host, request(method="ziplora", width=128, height=128))
    host.free, host.parked_bytes = small, fast - small
    report = run(host, width=128, height=128)
    assert report.learnt.plan == plans("auto", "auto")[0].description
    assert host.log == ["parked", "update", "update", "back"] and host.free == small


def test_an_interrupted_loop_brings_the_parts_back(host):
    host.free = needs(host, request(method="ziplora", width=128, height=128))[-1]
    told = host.before_forward

    def stop_in_the_loop(count):
        told(count)
        host.stop = torch.is_grad_enabled()

    host.before_forward = stop_in_the_loop
    with pytest.raises(Interrupted):
        run(host, width=128, height=128)
    assert host.log == ["parked", "update", "back"]
