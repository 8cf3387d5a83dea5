"""One update: what it draws, Adam over all vectors at once, and plans that give the same gradients."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import islice

import pytest
import torch

from lib_ziplora.errors import HostError
from lib_ziplora.ziplora import train as loop
from lib_ziplora.ziplora.adam import FlatAdam
from lib_ziplora.ziplora.coefficients import MergerCoefficients
from lib_ziplora.ziplora.plans import Plan, in_order_of_worth, plans
from lib_ziplora.ziplora.stepping import INITIAL_LOSS_SCALE, Stepper, drawings

from ..support.pico import PicoDenoiser, random_lora
from .test_train import SETTINGS, run, world


def test_an_update_draws_one_sample_of_every_term_and_every_sample_in_a_pass():
    draws = list(islice(drawings([3, 3], 2, seed=4), 6))
    assert all([(term, share) for term, _, share in one] == [(0, 1.0), (1, 1.0)] for one in draws)
    for term in range(2):
        rows = [one[term][1] for one in draws]
        assert sorted(rows[:3]) == sorted(rows[3:]) == [0, 1, 2]


@pytest.mark.parametrize(("terms", "at_once"), [(3, 2), (4, 3), (5, 2), (3, 1)])
def test_more_terms_than_an_update_draws_take_turns_and_weigh_the_same_in_the_mean(terms, at_once):
    draws = list(islice(drawings([7] * terms, at_once, seed=0), 1 + 4 * terms))
    assert [(term, share) for term, _, share in draws[0]] == [(term, 1.0) for term in range(terms)]
    seen, weight = Counter(), Counter()
    for one in draws[1:]:
        assert len({term for term, _, _ in one}) == at_once
        seen.update(term for term, _, _ in one)
        for term, _, share in one:
            weight[term] += share
    assert set(seen.values()) == {4 * at_once}
    assert all(total == pytest.approx(4 * terms) for total in weight.values())


def test_gradients_of_a_whole_rotation_have_the_mean_of_the_full_objective():
    denoiser, concepts, train, heldout = world()
    samples = [*(part[0:1] for part in train), heldout[0][0:1]]
    settings = dataclasses.replace(SETTINGS, similarity_lambda=0.2)
    weights = [1.0, 1.0, 2.0]
    step = Stepper(denoiser, denoiser.modules(), samples, settings, varied(concepts), weights)
    full, *others = (step(draws)[0] for draws in islice(drawings([1, 1, 1], step.at_once, 0), 4))
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
    outcome = run(denoiser, concepts, [*train, heldout[0]], dataclasses.replace(SETTINGS, steps=4))
    assert sizes == [2, 1, 2, 2, 2]
    errors = [step.errors for step in outcome.steps]
    assert errors[1][2] == errors[0][2] and errors[1][0] != errors[0][0]
    assert errors[2][1] == errors[1][1] and errors[2][2] != errors[1][2]


def test_flat_adam_is_adam():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (2, 5), (1, 1)]
    ours = [torch.randn(shape, generator=generator) for shape in shapes]
    theirs = [p.clone().requires_grad_(True) for p in ours]
    flat, adam = FlatAdam(ours, 0.01), torch.optim.Adam(theirs, lr=0.01)
    for _ in range(7):
        for p in theirs:
            p.grad = torch.randn(p.shape, generator=generator)
        flat.step(torch.cat([p.grad.flatten() for p in theirs]), torch.tensor(True))
        adam.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


def test_an_unusable_gradient_leaves_adam_and_its_memory_as_they_were():
    twice = [[torch.ones(4)], [torch.ones(4)]]
    skipping, plain = (FlatAdam(parameters, 0.1) for parameters in twice)
    for index, gradient in enumerate((0.3, float("nan"), -0.7, float("inf"), 2.0)):
        usable = index % 2 == 0
        skipping.step(torch.full((4,), gradient), torch.tensor(usable))
        if usable:
            plain.step(torch.full((4,), gradient), torch.tensor(True))
    assert torch.equal(twice[0][0], twice[1][0])
    assert torch.isfinite(twice[0][0]).all()


def test_the_loss_scale_halves_where_gradients_overflow_and_never_goes_below_one():
    denoiser, concepts, train, _ = world()
    step = Stepper(denoiser, denoiser.modules(), train, SETTINGS, MergerCoefficients.ones(concepts))
    step.loss_scale = torch.tensor(4.0)
    predict = denoiser.predict
    denoiser.predict = lambda x_t, t, cond: predict(x_t, t, cond) * float("inf")
    for expected in (2.0, 1.0, 1.0):
        _, usable = step([(0, 0, 1.0), (1, 1, 1.0)])
        assert not usable and step.loss_scale == expected


def test_a_run_whose_gradients_are_never_finite_ends_in_words_and_leaves_the_coefficients():
    denoiser, concepts, train, _ = world()
    predict = denoiser.predict
    denoiser.predict = lambda x_t, t, cond: predict(x_t, t, cond) * float("nan")
    coefficients = MergerCoefficients.ones(concepts)
    settings = dataclasses.replace(SETTINGS, steps=200)
    told = []
    with pytest.raises(HostError, match="bf16 or fp32"):
        loop.optimize(
            denoiser,
            denoiser.modules(),
            coefficients,
            train,
            settings,
            lambda step: told.append(step) is None,
        )
    assert len(told) == loop.MOST_SKIPPED - 1
    assert all((m == 1).all() for m in coefficients.parameters())
    assert INITIAL_LOSS_SCALE < 2**loop.MOST_SKIPPED, "the loss scale has come down to 1 by then"


def test_figures_that_travel_one_update_behind_are_told_in_order():
    outcome = loop.Outcome(MergerCoefficients.ones([random_lora(PicoDenoiser(), 2, 1)]))
    told = []

    def on_step(step):
        told.append(step.errors[0])
        return step.index < 2

    log = loop._Log(outcome, on_step)
    goes_on = []
    for number in range(4):
        log.add(loop._Reading([torch.tensor(float(number)), *torch.ones(3)]))
        goes_on.append(log.tell(keep=1))
    assert goes_on == [True, True, True, False] and told == [0.0, 1.0, 2.0]
    assert [step.index for step in outcome.steps] == [0, 1, 2]


def test_plans_come_from_fast_to_small_within_the_settings():
    every = plans("auto", "auto")
    assert every[0] == Plan(True, 0.0) and every[-1] == Plan(False, 1.0)
    assert [plan.checkpointing for plan in every[1:]] == sorted(plan.checkpointing for plan in every[1:])
    assert not any(plan.together for plan in every[1:])
    assert plans("together", "on") == [Plan(True, 1.0)]
    assert plans("separate", "off") == [Plan(False, 0.0)]
    assert plans("auto", "on") == [Plan(True, 1.0), Plan(False, 1.0)]
    assert len({plan.words for plan in every}) == len(every)


def test_a_share_of_the_blocks_recomputes_and_those_with_most_activations_for_their_work_first():
    wide, narrow = (torch.nn.Sequential(torch.nn.Linear(n, n), torch.nn.Linear(n, n)) for n in (16, 4))
    convolution = torch.nn.Conv2d(16, 16, 3)
    blocks = [convolution, wide, narrow]
    assert in_order_of_worth(blocks) == [narrow, wide, convolution]
    assert Plan(True, 0.0).recomputed(blocks) == []
    assert Plan(True, 1 / 3).recomputed(blocks) == [narrow]
    assert Plan(True, 1.0).recomputed(blocks) == [narrow, wide, convolution]
