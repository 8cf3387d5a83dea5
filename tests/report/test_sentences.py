"""Verdicts on finished merges."""

from __future__ import annotations

import pytest

from lib_ziplora.config import MergeSettings
from lib_ziplora.report.report import MergeReport
from lib_ziplora.report.sentences import verdict
from lib_ziplora.training.learnt import Learnt


def report(*errors: float, names: tuple[str, ...] = ("subject", "style")) -> MergeReport:
    layers = dict.fromkeys(names, 0)
    return MergeReport("o", "n", "ziplora", MergeSettings(), 1, layers, 4, Learnt(heldout_errors=errors))


@pytest.mark.parametrize(
    ("errors", "begins", "tells"),
    [
        ((0.09, 0.2), "Keeps both LoRAs well.", "91 % of the subject's and 80 % of the style's"),
        ((0.1, 0.3), "Keeps both LoRAs. ", "70 % of the style's"),
        ((0.1, 0.55), "The style is weak.", "45 % of the style's"),
        ((1.4, 0.2), "The subject is weak.", "0 % of the subject's"),
        ((0.7, 0.8), "Keeps neither well.", "20 % of the style's"),
    ],
)
def test_the_verdict_says_what_is_left_of_each_lora(errors, begins: str, tells: str) -> None:
    assert verdict(report(*errors)).startswith(begins)
    assert tells in verdict(report(*errors))
    assert ("Adjust strengths" in verdict(report(*errors))) == (max(errors) > 0.4)


def test_several_loras_are_called_all_and_nothing_is_said_where_nothing_was_measured() -> None:
    three = report(0.1, 0.1, 0.1, names=("subject 1", "subject 2", "style"))
    assert verdict(three).startswith("Keeps all LoRAs well.") and "90 % of the subject 2's" in verdict(three)
    assert verdict(report()) == ""
