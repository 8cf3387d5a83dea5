"""A small version of ``benchmarks.quality``: merged, drawn and judged, on the repository's own pairs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import methods, scoring
from benchmarks.drawing import draw
from benchmarks.methods import SUBJECT_PROMPT, Pair
from benchmarks.minixl.embedding import load_judge
from lib_ziplora.hosts.standalone import StandaloneHost
from tests import minixl

PAIRS = (Pair("turtle", "emojione-monotone"), Pair("crown", "emojione-monotone"))
LEARNT = "ziplora,steps=40,learning_rate=0.02,combined_prompt=a sks emoji in szn style"
SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Method -> prompt -> mean subject score over the pairs."""
    judge, host = load_judge(), StandaloneHost(minixl.MODEL)
    pipeline = host.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    scores: dict[str, list[np.ndarray]] = {"single": [], "sum": [], "learnt": []}
    for pair in PAIRS:
        folder = tmp_path_factory.mktemp(pair.subject)
        files = {
            "single": pair.files()[0],
            "sum": methods.merge("sum", pair, host, folder).file,
            "learnt": methods.merge(LEARNT, pair, host, folder).file,
        }
        for name, file in files.items():
            pictures = draw(pipeline, file, SUBJECT_PROMPT, SEEDS)
            scores[name].append(scoring.score(judge, pictures, pair.subject, pair.style)["subject_rr"])
    return {name: float(np.mean(values)) for name, values in scores.items()}


def test_a_learnt_merge_keeps_the_subject_that_the_plain_sum_loses_to_a_strong_style(found):
    assert found["learnt"] > found["sum"] + 0.2


def test_a_learnt_merge_draws_the_subject_nearly_as_its_lora_does(found):
    assert found["single"] > 0.8
    assert found["learnt"] > 0.8 * found["single"]
