"""A fault at any layer call leaves diffusers' models bit for bit what they were (``benchmarks.faults`` runs many)."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from benchmarks import faults

CASES, SEED = 20, 3


def test_faults_leave_no_trace(tmp_path: Path) -> None:
    found, endings = faults.campaign(faults.diffusers_place(tmp_path), CASES, SEED)
    assert not found, found
    assert sum(endings.values()) == CASES and len(endings) > CASES / 3, endings


def test_the_harness_sees_what_a_fault_leaves_behind(tmp_path: Path) -> None:
    place = faults.diffusers_place(tmp_path)
    campaign = faults.Campaign(place)
    assert campaign.changes() == []
    weight = next(place.parts[0].parameters())
    before = weight.detach().clone()
    weight.data.flatten()[0] += 1e-3
    assert campaign.changes() == ["weights or buffers changed"]
    weight.data.copy_(before)
    handle = place.parts[1].register_forward_hook(lambda *_: None)
    assert len(campaign.changes()) == 1
    handle.remove()
    (place.folder / "left").touch()
    assert campaign.changes() == ["1 things changed, ['files']"]
    (place.folder / "left").unlink()
    assert campaign.changes() == []
