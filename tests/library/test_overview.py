"""What ``inspect`` tells about files of other families."""

from __future__ import annotations

import json
import math

import torch
from safetensors.torch import save_file

from lib_ziplora.library.overview import describe_file, file_text

Q = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
NORM = "lora_unet_input_blocks_4_1_transformer_blocks_0_norm1"


def test_layers_that_became_low_rank_are_listed_with_their_error(tmp_path):
    generator = torch.Generator().manual_seed(0)
    content = {
        f"{Q}.lokr_w1": torch.randn(4, 4, generator=generator),
        f"{Q}.lokr_w2": torch.randn(4, 4, generator=generator),
        f"{NORM}.w_norm": torch.ones(4),
        f"{NORM}.b_norm": torch.ones(4),
    }
    save_file(content, tmp_path / "a.safetensors")
    header = describe_file(tmp_path / "a.safetensors")
    assert header["family"] == "lokr+norm" and "approximations" not in header
    summary = describe_file(tmp_path / "a.safetensors", layers=True)
    json.dumps(summary)
    (found,) = summary["approximations"]
    assert (found["layer"], found["family"]) == (Q, "lokr")
    assert 0 < found["error"] < 0.005**0.5
    assert math.isclose(found["error"], summary["approximation_error"], rel_tol=1e-9)
    text = file_text(summary)
    assert "converted 1 layers to low rank" in text and "of lokr, error" in text
    assert f"{NORM}.w_norm" in text
