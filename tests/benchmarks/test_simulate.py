"""A merge on a card that isn't there: what it holds, copies and waits for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("diffusers", reason="runs diffusers' UNet")
if not shutil.which("g++"):
    pytest.skip("compiles a device guard", allow_module_level=True)

KILOBYTES = 10_000
"""As much as the text encoders' own small buffers take."""


def simulated(tmp_path, *arguments):
    """The figures of the command, which must meet no torch that is imported already."""
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.simulate", *arguments, "--json", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def merge(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("merge"), "--tiny", "--size", "128", "--updates", "3")


def test_it_ends_as_it_began_and_multiplies_one_dtype(merge):
    assert merge["problem"] == "" and merge["left"] < KILOBYTES
    assert merge["mixed"] == {}


def test_an_update_waits_once_for_the_card_and_copies_nothing(merge):
    (loop,) = [stage for stage in merge["stages"] if stage["name"] == "First update"]
    assert sum(loop["waits"].values()) == 3 and loop["copies"] == {}


def test_factors_go_to_the_card_once(merge):
    lines = [line for stage in merge["stages"] for line in stage["copies"] if "coefficients.py" in line]
    assert lines and len(lines) == len(set(lines))


def test_a_card_without_room_ends_in_a_sentence_and_is_left_as_it_was(tmp_path):
    found = simulated(tmp_path, "--tiny", "--size", "512", "--card", "0.42")
    assert "memory" in found["problem"] and found["left"] < KILOBYTES


@pytest.mark.parametrize("host", [(), ("--autocast",)], ids=["diffusers", "webui"])
def test_the_estimate_is_above_the_peak_and_at_most_a_tenth(tmp_path, host):
    (row,) = simulated(tmp_path, "--plans", "--only", "5", *host)["plans"]
    assert row["peak_gb"] <= row["estimated_gb"] <= 1.1 * row["peak_gb"]
