"""What a run takes: UNet forwards as they are foretold, and the plan that the free memory has room for."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from lib_ziplora.config import LoraInput, MergeSettings
from lib_ziplora.errors import OutOfMemoryError
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.preflight import preflight
from lib_ziplora.progress import combined_units, lora_units
from lib_ziplora.training import memory
from lib_ziplora.training.memory import estimate_memory
from lib_ziplora.ziplora.memory import Plan, plans

from ..support.small_merges import pico_host, request


@pytest.fixture()
def host(tmp_path):
    return pico_host(tmp_path)


def forwards(host, asked, monkeypatch):
    """Samples that go through the UNet without gradients, and with them."""
    counts = {False: 0, True: 0}
    predict = type(host.denoiser).predict

    def watched(denoiser, x_t, t, cond):
        counts[torch.is_grad_enabled()] += len(x_t)
        return predict(denoiser, x_t, t, cond)

    monkeypatch.setattr(type(host.denoiser), "predict", watched)
    run(dataclasses.replace(asked, overwrite=True), host)
    return counts[False], counts[True]


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("shape", [(3, 3), (2, 8)])
def test_the_units_of_the_samples_are_the_forwards_that_they_take(host, monkeypatch, guidance, shape):
    settings = {"trajectories": shape[0], "sampling_steps": shape[1], "guidance_scale": guidance}
    asked = request(method="ziplora", steps=4, combined_weight=0.0, **settings)
    without, trained = forwards(host, asked, monkeypatch)
    assert without == sum(lora_units(asked.settings, lora) for lora in asked.loras)
    assert trained == 2 * 4


def test_the_combined_prompt_takes_its_own_samples_and_no_more_of_an_update(host, monkeypatch):
    plain = request(method="ziplora", steps=4, combined_weight=0.0)
    both = request(
        method="ziplora", steps=4, auto_balance=False, combined_weight=1.0, combined_prompt="a dog in ink"
    )
    without, with_term = forwards(host, plain, monkeypatch), forwards(host, both, monkeypatch)
    assert with_term[0] - without[0] == combined_units(both.settings)
    assert with_term[1] == without[1] + 1, "all terms in the first update, then as many as there are LoRAs"


def test_a_default_run_of_two_loras_keeps_to_its_budget():
    """DESIGN, Promises: samples and teachers of a whole run take at most 60 units."""
    assert 2 * lora_units(MergeSettings(), LoraInput("a")) <= 60


def given(free, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: free)


def learnt_layers(host):
    return [read_lora(host.folder / f"{name}.safetensors").unet_layers() for name in ("dog", "ink")]


@pytest.mark.parametrize("index", range(len(plans("auto", "auto"))))
def test_the_fastest_plan_that_the_free_memory_has_room_for_is_taken_and_told(
    host, monkeypatch, caplog, index
):
    asked = request(method="ziplora", steps=1, width=1024, height=1024)
    every = plans("auto", "auto")
    needs = [estimate_memory(learnt_layers(host), 1024, 1024, plan, itemsize=4) for plan in every]
    given(needs[index], monkeypatch)
    with caplog.at_level(logging.INFO):
        found = memory.fitting_plans(learnt_layers(host), asked.settings, host.denoiser)
    assert found == every[index:]
    assert every[index].description in caplog.text


def test_the_report_says_which_plan_was_taken(host, monkeypatch):
    assert run(request(method="ziplora", steps=1), host).learnt.plan == Plan(True, 0.0).description
    asked = request(method="ziplora", steps=1, batching="separate", checkpointing="on")
    assert run(dataclasses.replace(asked, overwrite=True), host).learnt.plan == Plan(False, 1.0).description
    direct = dataclasses.replace(request(method="direct"), overwrite=True)
    assert run(direct, host).learnt.plan == ""


@pytest.mark.parametrize(
    ("settings", "advice"), [({}, "smaller sample"), ({"checkpointing": "off"}, "checkpointing to auto")]
)
def test_too_little_memory_is_told_before_anything_is_drawn(host, monkeypatch, settings, advice):
    given(10**6, monkeypatch)
    with pytest.raises(OutOfMemoryError, match=advice):
        run(request(method="ziplora", steps=1, **settings), host)
    assert host.forwards == 0 and not (host.folder / "merged.safetensors").exists()


def test_weights_that_the_host_has_yet_to_bring_are_counted(host, monkeypatch):
    denoiser = host.denoiser
    settings = request(method="ziplora", width=64, height=64).settings
    smallest = plans("auto", "auto")[-1]
    need = estimate_memory(learnt_layers(host), 64, 64, smallest, itemsize=4)
    given(need, monkeypatch)
    assert memory.fitting_plans(learnt_layers(host), settings, denoiser) == [smallest]
    elsewhere = torch.nn.Linear(need // 10**3, 10**3, device="meta")
    monkeypatch.setattr(denoiser, "unet", elsewhere)
    with pytest.raises(OutOfMemoryError):
        memory.fitting_plans(learnt_layers(host), settings, denoiser)


def test_free_memory_of_this_machine_is_known_on_linux_and_unknown_for_other_devices():
    free = memory.free_memory(torch.device("cpu"))
    assert free is None or free > 10**6
    assert memory.free_memory(torch.device("meta")) is None


def test_preflight_tells_of_the_gpus_memory_where_there_is_one(host, monkeypatch):
    assert not any("GPU memory" in remark for remark in preflight(request(method="ziplora"), host).remarks)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    given(20 * 10**9, monkeypatch)
    (remark,) = [one for one in preflight(request(method="ziplora"), host).remarks if "GPU memory" in one]
    assert "20.0 GB free" in remark and plans("auto", "auto")[0].description in remark
    assert not any("GPU memory" in remark for remark in preflight(request(method="direct"), host).remarks)


@pytest.mark.parametrize("gpu", [True, False])
def test_the_memory_is_told_beforehand(host, monkeypatch, gpu):
    asked = request(method="ziplora", width=512, height=512)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**12)
    found = preflight(asked, host)
    (words,) = [one for one in found.remarks if "memory" in one]
    assert words.startswith("GPU memory" if gpu else "There is no CUDA GPU here")
    layers = [read_lora(host.resolve(lora.lora)).unet_layers() for lora in asked.loras]
    first = plans(asked.settings.batching, asked.settings.checkpointing)[0]
    assert found.memory == estimate_memory(layers, 512, 512, first, itemsize=2 if gpu else 4)
    assert f"{found.memory / 1e9:.1f} GB" in words and "1000.0 GB free" in words
    assert preflight(request(method="direct"), host).memory is None


def test_the_hosts_own_size_counts_where_none_is_given(host, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    sdxl, small = (
        request(method="ziplora", width=0, height=0),
        request(method="ziplora", width=128, height=128),
    )
    assert preflight(sdxl, host).memory > preflight(small, host).memory
    host.picture_size = lambda: 128
    assert preflight(sdxl, host).memory == preflight(small, host).memory
    assert not any("free" in one for one in preflight(sdxl, host).remarks)
