"""One update: what it draws, what it skips, and the plans that give the same gradients."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import islice

import pytest
import torch

from lib_ziplora.errors import HostError
from lib_ziplora.ziplora import train as loop
from lib_ziplora.ziplora.coefficients import MergerCoefficients
from lib_ziplora.ziplora.memory import Plan, in_order_of_worth, plans
from lib_ziplora.ziplora.samples import Samples
from lib_ziplora.ziplora.train import LOSS_SCALE, MOST_SKIPPED, Term, backward, batches

from ..support.pico import conditioning
from .test_train import BATCHED, SETTINGS, run, world


def numbered(counts, weights=None):
    """Terms whose samples are told apart by their timestep."""
    weights = weights or [1.0] * len(counts)
    return [
        Term(
            str(k),
            Samples(torch.zeros(n, 4, 8, 8), torch.arange(n), conditioning(n), torch.zeros(n), torch.ones(n)),
            weight,
        )
        for k, (n, weight) in enumerate(zip(counts, weights, strict=True))
    ]


def test_an_update_draws_one_sample_of_every_term_and_every_sample_in_a_pass():
    draws = list(islice(batches(numbered([3, 3], [1.0, 2.5]), 2, seed=4), 6))
    assert all([(draw.term, draw.weight) for draw in update] == [(0, 1.0), (1, 2.5)] for update in draws)
    for term in range(2):
        rows = [update[term].sample.t.item() for update in draws]
        assert sorted(rows[:3]) == sorted(rows[3:]) == [0, 1, 2]


@pytest.mark.parametrize(("terms", "at_once"), [(3, 2), (4, 3), (5, 2), (3, 1)])
def test_more_terms_than_an_update_draws_take_turns_and_weigh_the_same_in_the_mean(terms, at_once):
    draws = list(islice(batches(numbered([7] * terms), at_once, seed=0), 1 + 4 * terms))
    assert [(draw.term, draw.weight) for draw in draws[0]] == [(term, 1.0) for term in range(terms)]
    seen, weight = Counter(), Counter()
    for update in draws[1:]:
        assert len({draw.term for draw in update}) == at_once
        seen.update(draw.term for draw in update)
        for draw in update:
            weight[draw.term] += draw.weight
    assert set(seen.values()) == {4 * at_once}
    assert all(total == pytest.approx(4 * terms) for total in weight.values())


def test_gradients_of_a_whole_rotation_have_the_mean_of_the_full_objective():
    denoiser, concepts, train, heldout = world()
    samples = [*(part[0:1] for part in train), heldout[0][0:1]]
    settings, coefficients = dataclasses.replace(SETTINGS, similarity_lambda=0.2), varied(concepts)
    terms = [
        Term(str(k), part, weight) for k, (part, weight) in enumerate(zip(samples, (1, 1, 2), strict=True))
    ]
    found = []
    for draws in islice(batches(terms, len(concepts), 0), 4):
        backward(denoiser, denoiser.modules(), coefficients, draws, settings, 1.0, BATCHED)
        found.append(torch.cat([m.grad.flatten() for m in coefficients.parameters()]))
    full, *others = found
    torch.testing.assert_close(torch.stack(others).mean(0), full, rtol=1e-4, atol=1e-6)
    assert (others[0] - others[1]).abs().max() > 1e-3


def varied(concepts):
    coefficients = MergerCoefficients.ones(concepts)
    for m in coefficients.parameters():
        m.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(m.numel()))
    return coefficients


def test_no_batch_is_larger_than_one_sample_of_each_lora_and_a_term_keeps_its_last_error():
    denoiser, concepts, train, heldout = world()
    sizes, predict = [], denoiser.predict

    def watched(x_t, t, cond):
        sizes.append(len(x_t))
        return predict(x_t, t, cond)

    denoiser.predict = watched
    _, result = run(denoiser, concepts, [*train, heldout[0]], dataclasses.replace(SETTINGS, steps=4))
    assert sizes == [2, 1, 2, 2, 2]
    errors = [update.errors for update in result.updates]
    assert errors[1][2] == errors[0][2] and errors[1][0] != errors[0][0]
    assert errors[2][1] == errors[1][1] and errors[2][2] != errors[1][2]


def test_the_loop_is_adam_on_the_gradients_of_its_updates():
    denoiser, concepts, train, _ = world()
    settings = dataclasses.replace(SETTINGS, steps=7, seed=2)
    found, _ = run(denoiser, concepts, train, settings)
    expected = MergerCoefficients.ones(concepts)
    adam = torch.optim.Adam(expected.parameters(), lr=settings.learning_rate)
    terms = [Term(str(k), part) for k, part in enumerate(train)]
    for draws in islice(batches(terms, 2, settings.seed), settings.steps):
        backward(denoiser, denoiser.modules(), expected, draws, settings, 1.0, BATCHED)
        adam.step()
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_an_update_that_is_skipped_leaves_adam_and_its_memory_as_they_were():
    """As if the overflowing updates had not been: the same samples, without their gradients."""
    found = []
    for overflowing in (True, False):
        denoiser, concepts, train, _ = world()
        same = [part[0:1] for part in train]
        predict, calls = denoiser.predict, []

        def sometimes(x_t, t, cond, predict=predict, calls=calls):
            calls.append(1)
            return predict(x_t, t, cond) * (float("inf") if len(calls) % 2 == 0 else 1.0)

        if overflowing:
            denoiser.predict = sometimes
        steps = 5 if overflowing else 3
        coefficients, result = run(denoiser, concepts, same, dataclasses.replace(SETTINGS, steps=steps))
        assert result.skipped == (2 if overflowing else 0)
        found.append(torch.cat([m.detach().flatten() for m in coefficients.parameters()]))
    assert torch.equal(*found)


def test_the_loss_scale_halves_where_gradients_overflow_and_never_goes_below_one(monkeypatch):
    denoiser, concepts, train, _ = world()
    monkeypatch.setattr(loop, "LOSS_SCALE", 4.0)
    unet, upstream, calls = denoiser.unet, [], []
    unet.conv_out.register_full_backward_hook(lambda _, __, out: upstream.append(out[0].norm()))

    def predict(x_t, t, cond):
        calls.append(1)
        output = unet(x_t, t, cond.context)
        broken = len(calls) <= 3
        output.register_hook(lambda grad: grad * float("inf") if broken else grad)
        return output

    denoiser.predict, denoiser.dtype = predict, torch.float16
    same = [part[0:1] for part in train]
    settings = dataclasses.replace(SETTINGS, steps=4, similarity_lambda=0.0)
    _, result = run(denoiser, concepts, same, settings)
    assert result.skipped == 3
    denoiser.dtype = torch.float32
    run(denoiser, concepts, same, dataclasses.replace(settings, steps=1))
    assert upstream[3] == upstream[4], "after 4, 2 and 1 it is 1"


def test_a_run_whose_gradients_are_never_finite_ends_in_words_and_leaves_the_coefficients():
    denoiser, concepts, train, _ = world()
    predict = denoiser.predict
    denoiser.predict = lambda x_t, t, cond: predict(x_t, t, cond) * float("nan")
    coefficients = MergerCoefficients.ones(concepts)
    terms = [Term(str(k), part) for k, part in enumerate(train)]
    settings = dataclasses.replace(SETTINGS, steps=200)
    updates = []
    with pytest.raises(HostError, match="bf16 or fp32"):
        loop.train(
            denoiser, denoiser.modules(), coefficients, terms, settings, lambda u: updates.append(u) is None
        )
    assert len(updates) == MOST_SKIPPED - 1
    assert all((m == 1).all() for m in coefficients.parameters())
    assert LOSS_SCALE < 2**MOST_SKIPPED, "the loss scale has come down to 1 by then"


def test_plans_come_from_fast_to_small_within_the_settings():
    every = plans("auto", "auto")
    assert every[0] == Plan(True, 0.0) and every[-1] == Plan(False, 1.0)
    assert [plan.checkpointing for plan in every[1:]] == sorted(plan.checkpointing for plan in every[1:])
    assert not any(plan.batched for plan in every[1:])
    assert plans("together", "on") == [Plan(True, 1.0)]
    assert plans("separate", "off") == [Plan(False, 0.0)]
    assert plans("auto", "on") == [Plan(True, 1.0), Plan(False, 1.0)]
    assert len({plan.description for plan in every}) == len(every)


def test_a_share_of_the_blocks_recomputes_and_those_with_most_activations_for_their_work_first():
    wide, narrow = (torch.nn.Sequential(torch.nn.Linear(n, n), torch.nn.Linear(n, n)) for n in (16, 4))
    convolution = torch.nn.Conv2d(16, 16, 3)
    blocks = [convolution, wide, narrow]
    assert in_order_of_worth(blocks) == [narrow, wide, convolution]
    assert Plan(True, 0.0).recomputed(blocks) == []
    assert Plan(True, 1 / 3).recomputed(blocks) == [narrow]
    assert Plan(True, 1.0).recomputed(blocks) == [narrow, wide, convolution]
