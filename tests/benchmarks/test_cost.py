"""The counted figures of the full-size UNet stay within the project's budgets."""

from __future__ import annotations

import pytest

from benchmarks import cost

UNIT_TFLOP = 6.76
"""One forward of SDXL's UNet on one sample at 1024 x 1024."""


@pytest.fixture(scope="module")
def figures():
    return cost.measure()


def test_the_unit_is_a_forward_of_sdxl(figures):
    assert figures["unit_tflop"] == pytest.approx(UNIT_TFLOP, rel=0.01)


def test_a_step_stays_near_the_floor_of_two_forwards_and_two_backwards(figures):
    assert 4 <= figures["step_units"] <= 4.5
    assert figures["step_units"] + 1 < figures["step_units_checkpointed"] <= 6.6
    assert figures["step_units"] < 0.6 * figures["public_script_step_units"]


def test_a_run_holds_factors_and_no_dense_delta(figures):
    assert figures["values_held"] <= 0.19e9
    assert figures["public_script_values_held"] > 10 * figures["values_held"]
    assert figures["coefficients"] == pytest.approx(1.57e6, rel=0.01)


def test_the_samples_of_a_run_stay_within_their_budget(figures):
    assert figures["run_overhead_units"] <= 60
