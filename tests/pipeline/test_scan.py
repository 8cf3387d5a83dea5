"""Which LoRAs go together: overlaps that are known beforehand, what can't be told, and what is left for later."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file

from lib_ziplora.errors import ConfigError
from lib_ziplora.pipeline import scan as module
from lib_ziplora.pipeline.scan import ScanRequest, scan

from ..support.pico_host import PicoHost

LAYER = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
ROWS, COLUMNS = 64, 4
CHANCE = math.sqrt(2 / (math.pi * ROWS))


def put(folder, name, up, down):
    """A LoRA of one layer whose delta weight is up @ down."""
    tensors = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(float(down.shape[0]))}
    save_file(
        {f"{LAYER}.{key}": value.contiguous() for key, value in tensors.items()},
        folder / f"{name}.safetensors",
    )


@pytest.fixture
def host(tmp_path):
    """A subject, and styles that pull on its columns not at all, at an angle, and in its own direction."""
    rows, ones = torch.eye(ROWS), torch.ones(1, COLUMNS)
    put(tmp_path, "dog", rows[:, :1], ones)
    put(tmp_path, "same", rows[:, :1] * -3, ones)
    put(tmp_path, "half", rows[:, :1] + math.sqrt(24) * rows[:, 1:2], ones)
    put(tmp_path, "other", rows[:, 2:3], ones)
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    return PicoHost(tmp_path)


def test_the_pairs_that_disturb_each_other_least_come_first(host):
    found = scan(ScanRequest(("dog",), ("same", "broken", "half", "other")), host)
    assert [pair.style for pair in found.pairs] == ["other", "half", "same", "broken"]
    assert [pair.overlap for pair in found.pairs[:3]] == pytest.approx([0, 0.2, 1], abs=1e-6)
    assert [pair.ratio for pair in found.pairs[:3]] == pytest.approx([0, 0.2 / CHANCE, 1 / CHANCE], abs=1e-5)
    assert [pair.advice.split()[0] for pair in found.pairs[:3]] == ["hardly", "overlap", "pull"]
    assert found.pairs[3].overlap is None and "broken" in found.pairs[3].advice and found.pending == 0


def test_without_styles_every_lora_is_one_that_can_be_merged_and_is_no_subject(host):
    found = scan(ScanRequest(("dog", "other")), host)
    pairs = {(pair.subject, pair.style) for pair in found.pairs}
    assert pairs == {(subject, style) for subject in ("dog", "other") for style in ("same", "half")}


def test_a_lora_is_not_compared_with_itself(host):
    assert [pair.style for pair in scan(ScanRequest(("dog",), ("dog", "half")), host).pairs] == ["half"]


def test_a_scan_that_is_cut_short_goes_on_where_it_ended(host, monkeypatch):
    measured, real = [], module.overlap_of
    monkeypatch.setattr(module, "overlap_of", lambda *files: measured.append(files) or real(*files))
    cut = scan(ScanRequest(("dog",), ("same", "half", "other")), host, patience=0)
    assert (len(cut.pairs), cut.pending, len(measured)) == (1, 2, 1)
    whole = scan(ScanRequest(("dog",), ("same", "half", "other")), host)
    assert (len(whole.pairs), whole.pending) == (3, 0) and cut.pairs[0] in whole.pairs


def test_scans_that_make_no_sense(host):
    with pytest.raises(ConfigError, match="No subject"):
        ScanRequest(())
    with pytest.raises(ConfigError, match="0 pairs"):
        scan(ScanRequest(("dog", "same", "half", "other")), host)
    with pytest.raises(ConfigError, match="500 pairs"):
        scan(ScanRequest(tuple(map(str, range(50))), tuple(map(str, range(10)))), host)
