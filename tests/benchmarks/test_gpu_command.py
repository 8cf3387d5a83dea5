"""The command for a machine with a GPU runs where there is none, on a small UNet, and its tables are made."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("diffusers", reason="runs diffusers' UNet")

from benchmarks import gpu, memory
from lib_ziplora.ziplora.memory import plans


def test_all_of_it_is_measured_and_told(tmp_path, capsys):
    arguments = ["--tiny", "--device", "cpu", "--dtype", "fp32", "--updates", "2", "--out", str(tmp_path)]
    gpu.main(arguments)
    (file,) = tmp_path.glob("*.json")
    found = json.loads(file.read_text())
    assert [row["right"] for row in found["correctness"]] == [True]
    full = found["full_size"]
    assert [row["plan"] for row in full["plans"]] == [plan.description for plan in plans("auto", "auto")]
    assert all(row["fits"] and row["seconds_an_update"] > 0 for row in full["plans"])
    assert full["run"]["plan"] and "First update" in full["run"]["stages"]
    assert "First update" not in full["instant"]["stages"] and "aten::" in full["profile"]
    capsys.readouterr()
    gpu.main(["--docs", "--out", str(tmp_path)])
    told = capsys.readouterr().out
    assert f"### {found['machine']}" in told and "| one sample at a time, checkpointing | " in told


def test_without_time_nothing_is_begun():
    found = gpu.full_size(memory.torch.device("cpu"), "fp32", True, 2, until=0.0)
    assert found["plans"] == [] and found["run"] is None
    assert "| stage |" in gpu.tables([{"machine": "a card", "correctness": [], "full_size": found}])


def test_a_plan_that_fails_is_told_and_the_others_go_on(monkeypatch):
    denoiser = memory.RandomDenoiser(memory.TINY_UNET, memory.torch.device("cpu"), memory.torch.float32)
    concepts = [memory.random_lora(memory.canonical_modules(denoiser.unet), 2, seed) for seed in (0, 1)]

    def fails(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr(denoiser.unet, "forward", fails)
    found = memory.of_plan(denoiser, concepts, plans("auto", "auto")[0], 64, 2)
    assert not found["fits"] and found["problem"] == "no room"
