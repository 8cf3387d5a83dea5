"""fp16 and bf16 on MiniXL: the coefficients of fp32, and nothing but numbers where activations overflow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import lessons, precision
from benchmarks.lessons import Desk
from benchmarks.methods import Pair
from lib_ziplora.training.target_samples import TrainingData

PAIR = Pair("rocket", "streamline-cyber-color")
SETTINGS = dataclasses.replace(
    lessons.SETTINGS, width=64, height=64, steps=8, trajectories=2, sampling_steps=2, auto_balance=False
)
LARGEST = torch.finfo(torch.float16).max


@pytest.fixture(scope="module")
def given() -> TrainingData:
    return precision.lessons_of(PAIR, SETTINGS)


@pytest.fixture(scope="module")
def exact(given: TrainingData) -> precision.Learnt:
    return precision.learnt(PAIR, "fp32", SETTINGS, given)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_learns_the_coefficients_of_fp32(
    given: TrainingData, exact: precision.Learnt, dtype: str
) -> None:
    found = precision.learnt(PAIR, dtype, SETTINGS, given)
    assert found.skipped == exact.skipped == 0
    assert (found.values - exact.values).abs().mean() < 2e-2 < (exact.values - 1).abs().mean()
    assert not torch.equal(found.values, exact.values), "the dtype reaches the computation"


def test_a_whole_run_in_bf16_is_nearer_to_fp32_than_another_seed_is() -> None:
    settings = dataclasses.replace(SETTINGS, steps=4)
    rows = {row.run: row for row in precision.rows(PAIR, settings, ["bf16"])}
    assert rows["fp32"].mean == rows["fp32"].largest == 0
    assert 0 < rows["bf16, whole run"].mean < rows["fp32, another seed"].mean


@contextmanager
def overflowing_attention(at: Desk, factor: float) -> Iterator[None]:
    """Attention whose scores pass through fp16 unscaled, ``factor`` times as large, as in fp16 kernels."""

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> torch.Tensor:
        wide = query.float() @ key.float().transpose(-1, -2) * factor
        scores = wide.to(torch.float16).float() / query.shape[-1] ** 0.5 / factor
        scores = scores - scores.amax(-1, keepdim=True)
        return (scores.softmax(-1) @ value.float()).to(query.dtype)

    kept = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = kept


@torch.no_grad()
def largest_scores(at: Desk, given: TrainingData) -> list[float]:
    """Each sample's largest unscaled attention score, in rising order."""
    found: list[float] = []
    kept = F.scaled_dot_product_attention

    def attention(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **rest: object
    ) -> torch.Tensor:
        found[-1] = max(found[-1], (query @ key.transpose(-1, -2)).max().item())
        return kept(query, key, value, **rest)

    F.scaled_dot_product_attention = attention
    try:
        for samples in (term.samples for term in given.terms):
            for i in range(len(samples)):
                found.append(0.0)
                at.denoiser.predict(samples.x_t[i : i + 1], samples.t[i : i + 1], samples.cond[i : i + 1])
    finally:
        F.scaled_dot_product_attention = kept
    return sorted(found)


def test_attention_that_overflows_on_some_samples_leaves_numbers_and_is_counted(given: TrainingData) -> None:
    with lessons.desk(PAIR) as at:
        scores = largest_scores(at, dataclasses.replace(given, terms=given.terms[:2]))
        factor = 2 * LARGEST / (scores[-3] + scores[-4])
        at.denoiser.dtype = torch.float16  # what the loss scale goes by; the arithmetic stays that of fp32
        at.denoiser.predict = in_fp32(at)
        with overflowing_attention(at, factor):
            plain = dataclasses.replace(SETTINGS, combined_weight=0.0)
            pair = dataclasses.replace(given, terms=given.terms[:2])
            coefficients, result = lessons.learn(at, pair, plain, at.ones())
    values = lessons.flat(coefficients)
    assert 0 < result.skipped < len(result.updates)
    assert any(not all(map(math.isfinite, update.errors)) for update in result.updates), (
        "it is attention that overflows"
    )
    assert torch.isfinite(values).all() and (values != 1).any()


def in_fp32(at: Desk) -> object:
    """The denoiser's prediction, whatever its ``dtype`` says."""
    denoiser = at.denoiser

    def predict(x_t: torch.Tensor, t: torch.Tensor, cond: lessons.Conditioning) -> torch.Tensor:
        unet: nn.Module = denoiser.unet
        added = {"text_embeds": cond.vector[:, :-6], "time_ids": cond.vector[:, -6:]}
        return unet(x_t, t, encoder_hidden_states=cond.context, added_cond_kwargs=added).sample

    return predict
