"""A small version of ``benchmarks.quality``: merged, drawn and judged, on the repository's own pairs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import methods, scoring
from benchmarks.drawing import draw
from benchmarks.methods import Pair
from benchmarks.minixl.judge import load_judge
from benchmarks.quality import PROMPTS
from lib_ziplora.hosts.standalone import StandaloneHost

from ..support import minixl

PAIRS = tuple(
    Pair(subject, style) for subject in ("rocket", "crown") for style in ("picon", "streamline-cyber-color")
)
STRONG_STYLE = "picon"
LEARNT = "ziplora,steps=40,learning_rate=0.02,combined_prompt=a sks icon in szn style"
SEEDS = {"both": [0, 1, 2, 3], "subject": [0, 1, 2], "style": [0, 1]}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Method -> prompt -> pair -> scores."""
    judge, host = load_judge(), StandaloneHost(minixl.MODEL)
    pipeline = host.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    scores: dict[str, dict[str, dict[str, scoring.Scores]]] = {}
    for pair in PAIRS:
        folder = tmp_path_factory.mktemp(pair.subject)
        files = {
            "subject alone": pair.files()[0],
            "sum": methods.merge("sum", pair, host, folder).file,
            "learnt": methods.merge(LEARNT, pair, host, folder).file,
        }
        for name, file in files.items():
            for prompt, seeds in SEEDS.items():
                pictures = draw(pipeline, file, PROMPTS[prompt], seeds)
                by_pair = scores.setdefault(name, {}).setdefault(prompt, {})
                by_pair[pair.name] = scoring.score(judge, pictures, pair.subject, pair.style)
    return scores


def subject_score(found, method):
    """With the subject's own prompt, beside the strong style."""
    by_pair = found[method]["subject"]
    return float(np.mean([by_pair[name]["subject_rr"].mean() for name in by_pair if STRONG_STYLE in name]))


def test_over_all_three_prompts_a_learnt_merge_beats_the_plain_sum(found):
    learnt, plain = (scoring.summarise(*found[method].values()).overall for method in ("learnt", "sum"))
    assert learnt.mean > plain.mean


def test_a_learnt_merge_keeps_the_subject_that_the_plain_sum_loses_to_a_strong_style(found):
    assert subject_score(found, "learnt") > subject_score(found, "sum") + 0.2


def test_a_learnt_merge_draws_the_subject_nearly_as_its_lora_does(found):
    assert subject_score(found, "subject alone") > 0.8
    assert subject_score(found, "learnt") > 0.8 * subject_score(found, "subject alone")
