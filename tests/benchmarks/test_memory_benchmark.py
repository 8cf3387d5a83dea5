"""The command that measures a GPU runs, on a small UNet, where there is none."""

from __future__ import annotations

import json

import pytest

from benchmarks import memory
from lib_ziplora.ziplora.memory import plans


def test_every_plan_and_a_whole_run_are_measured(tmp_path):
    file = tmp_path / "figures.json"
    arguments = ["--tiny", "--dtype", "fp32", "--size", "64", "--rank", "2", "--updates", "2", "--profile"]
    memory.main([*arguments, "--json", str(file)])
    figures = json.loads(file.read_text())
    assert [row["plan"] for row in figures["plans"]] == [plan.description for plan in plans("auto", "auto")]
    assert all(row["fits"] and row["seconds_an_update"] > 0 for row in figures["plans"])
    assert figures["run"]["plan"] and figures["run"]["updates"] == 2


def test_a_plan_that_fails_is_told_and_the_others_go_on(monkeypatch):
    denoiser = memory.RandomDenoiser(memory.TINY_UNET, memory.torch.device("cpu"), memory.torch.float32)
    modules = memory.attention_only(memory.canonical_modules(denoiser.unet))
    concepts = [memory.random_lora(modules, 2, seed) for seed in (0, 1)]

    def fails(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr(denoiser.unet, "forward", fails)
    found = memory.of_plan(denoiser, concepts, plans("auto", "auto")[0], 64, 2)
    assert not found["fits"] and found["problem"] == "no room"
    assert found["estimated_gb"] == pytest.approx(0.5, abs=0.2)
