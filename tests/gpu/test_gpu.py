"""The arithmetic and the memory of a CUDA device, as ``benchmarks.gpu`` measures them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="runs diffusers' UNet")

from benchmarks import gpu, memory
from benchmarks.cost import SDXL_UNET, chosen_layers
from lib_ziplora.ziplora.memory import plans

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_every_dtype_computes_what_the_cpu_does_and_leaves_the_model_as_it_was():
    for row in gpu.correctness("cuda"):
        assert row["right"], row


@pytest.mark.parametrize("number", [1, -1])
def test_the_estimate_is_above_the_peak(number):
    device = torch.device("cuda")
    denoiser = memory.RandomDenoiser(SDXL_UNET, device, torch.float16)
    concepts = [memory.random_lora(chosen_layers(denoiser.unet, "kohya"), 64, seed) for seed in (0, 1)]
    row = memory.of_plan(denoiser, concepts, plans("auto", "auto")[number], 1024, 2)
    if not row["fits"] and "out of memory" in row["problem"]:
        pytest.skip("the card is too small")
    assert row["peak_gb"] <= row["estimated_gb"]
