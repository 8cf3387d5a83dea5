"""The closed form: the least-squares solution, the columns that the weights really see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.ziplora import closed_form as analytic
from lib_ziplora.ziplora import train as loop
from lib_ziplora.ziplora.closed_form import (
    LayerTarget,
    input_rows,
    recorded_inputs,
    single_lora_targets,
    solve,
)
from lib_ziplora.ziplora.coefficients import MergerCoefficients
from lib_ziplora.ziplora.hooks import adapters, lora_hooks

from ..support.pico import PicoDenoiser, conditioning
from .test_train import world

MODULES = [
    nn.Linear(5, 7, bias=False),
    nn.Conv2d(5, 7, 3, padding=1, bias=False),
    nn.Conv2d(5, 7, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(5, 7, 1, bias=False),
]


@pytest.mark.parametrize("module", MODULES, ids=["linear", "conv", "strided", "1x1"])
def test_kept_columns_times_the_weight_are_the_modules_output(module):
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(1, 6, 5)
        if isinstance(module, nn.Linear)
        else torch.randn(1, 5, 6, 4, generator=generator)
    )
    output = module(x)
    expected = output[0] if isinstance(module, nn.Linear) else output[0].flatten(1).T
    columns = input_rows(module, x)
    torch.testing.assert_close(
        columns @ module.weight.detach().flatten(1).T, expected.detach(), rtol=1e-4, atol=1e-5
    )


def test_recording_keeps_the_first_samples_columns_and_leaves_no_hook():
    denoiser = PicoDenoiser()
    modules = denoiser.modules()
    with recorded_inputs(modules, 4, torch.Generator().manual_seed(0)) as kept, torch.no_grad():
        for _ in range(3):
            denoiser.predict(torch.randn(2, 4, 8, 8), torch.tensor([5, 6]), conditioning(2))
    for name, module in modules.items():
        per_forward = 3 if name.endswith("to_k") else 4
        # to_k is called twice in a forward
        calls = 6 if name.endswith("to_k") else 3
        assert [len(part) for part in kept[name]] == [per_forward] * calls, name
        assert kept[name][0].shape[1] == module.weight[0].numel()
    assert not any(module._forward_pre_hooks for module in denoiser.unet.modules())


def test_what_is_recorded_does_not_depend_on_when_it_is_brought_to_the_cpu(monkeypatch):
    def recorded(pending):
        denoiser, generator = PicoDenoiser(), torch.Generator().manual_seed(0)
        monkeypatch.setattr(analytic, "PENDING_VALUES", pending)
        with recorded_inputs(denoiser.modules(), 4, generator) as kept, torch.no_grad():
            for step in range(3):
                x_t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(step))
                denoiser.predict(x_t, torch.tensor([5]), conditioning(1))
        return kept

    at_once, late = recorded(1), recorded(2**24)
    for name, rows in at_once.items():
        assert all(torch.equal(a, b) for a, b in zip(rows, late[name], strict=True)), name


def dense_solution(layers, inputs, ridge, strengths, weights, start):
    """The same problem by a dense solver: stack every residual as a linear map of (m_c, m_s).

    ``strengths``: for each input those of the LoRAs in its teacher; ``start``: of each LoRA.
    """
    owners = [index for index, layer in enumerate(layers) if layer is not None]
    deltas = [layer.delta().flatten(1).double() for layer in layers if layer is not None]
    columns = deltas[0].shape[1]
    wanted = [
        sum(row[owner] * delta for owner, delta in zip(owners, deltas, strict=True)) @ x.double().T
        for row, x in zip(strengths, inputs, strict=True)
    ]
    effects = torch.stack([w.square().sum() for w in wanted])
    effects[effects == 0] = effects[effects > 0].mean()
    rows, right = [], []
    for x, effect, weight, answer in zip(inputs, effects, weights, wanted, strict=True):
        factor = (weight / effect).sqrt()
        system = torch.cat([torch.einsum("oj,nj->onj", delta, x.double()) for delta in deltas], dim=2)
        rows.append(factor * system.reshape(-1, columns * len(deltas)))
        right.append(factor * answer.reshape(-1))
    system, right = torch.cat(rows), torch.cat(right)
    hessian = system.T @ system
    pull = ridge * hessian.diagonal().mean()
    begin = torch.cat([torch.full((columns,), start[owner], dtype=torch.float64) for owner in owners])
    d = torch.linalg.solve(hessian + pull * torch.eye(len(hessian)), system.T @ (right - system @ begin))
    return (begin + d).reshape(len(deltas), columns).float()


@pytest.mark.parametrize("present", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_the_solution_is_the_least_squares_solution(present, kernel):
    generator = torch.Generator().manual_seed(3)
    layers = [
        LoraLayer(
            "a", torch.randn(2, 4, *kernel, generator=generator), torch.randn(6, 2, generator=generator), 1.0
        ),
        LoraLayer(
            "a", torch.randn(3, 4, *kernel, generator=generator), torch.randn(6, 3, generator=generator), 6.0
        ),
    ]
    layers = [layer if kept else None for layer, kept in zip(layers, present, strict=True)]
    columns = next(layer for layer in layers if layer).in_features
    inputs = [torch.randn(count, columns, generator=generator) * count / 50 for count in (50, 70, 60)]
    strengths, weights, start = [(1.0, 0.0), (0.0, 1.0), (0.9, 0.4)], [1.0, 1.0, 5.0], (0.9, 0.4)
    coefficients = MergerCoefficients.ones([{"a": layer} if layer else {} for layer in layers])
    coefficients.start_at(start)
    targets = [
        LayerTarget({"a": [part]}, row, weight)
        for part, row, weight in zip(inputs, strengths, weights, strict=True)
    ]
    solve(coefficients, targets, iterations=200, ridge=0.05)
    expected = dense_solution(layers, inputs, 0.05, strengths, weights, start)
    torch.testing.assert_close(coefficients.layers["a"].m.detach(), expected, rtol=1e-3, atol=1e-3)
    if all(present):
        assert (coefficients.layers["a"].m - torch.tensor(start)[:, None]).abs().max() > 0.1


def test_single_lora_targets_ask_for_every_lora_by_itself():
    targets = single_lora_targets([{"a": []}, {"b": []}, {"c": []}])
    assert [target.strengths for target in targets] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert [list(target.inputs) for target in targets] == [["a"], ["b"], ["c"]]
    assert {target.weight for target in targets} == {1.0}


def test_columns_that_no_input_uses_stay_at_one():
    layers = [LoraLayer("a", torch.randn(2, 4), torch.randn(5, 2), 2.0) for _ in range(2)]
    x = torch.randn(30, 4)
    x[:, 2] = 0
    coefficients = MergerCoefficients.ones([{"a": layer} for layer in layers])
    solve(coefficients, single_lora_targets([{"a": [x]}, {"a": [x]}]))
    m = coefficients.layers["a"].m
    assert (m[:, 2] == 1).all() and (m[:, [0, 1, 3]] != 1).all()


def test_a_lora_without_effect_changes_nothing_and_makes_no_nan():
    silent = LoraLayer("a", torch.randn(2, 4), torch.zeros(5, 2), 2.0)
    coefficients = MergerCoefficients.ones([{"a": silent}, {"a": silent}])
    solve(coefficients, single_lora_targets([{"a": [torch.randn(9, 4)]}] * 2))
    assert (coefficients.layers["a"].m == 1).all()


def test_the_objective_falls_on_samples_that_were_not_recorded():
    denoiser, concepts, train, heldout = world()
    coefficients = MergerCoefficients.ones(concepts)
    before = loop.evaluate(denoiser, denoiser.modules(), coefficients, heldout)
    recordings = []
    for layers, samples in zip(concepts, train, strict=True):
        factors = adapters(layers, "cpu", torch.float32)
        generator = torch.Generator().manual_seed(0)
        with (
            torch.no_grad(),
            lora_hooks(denoiser.modules(), factors),
            recorded_inputs(denoiser.modules(), 16, generator) as kept,
        ):
            for row in range(len(samples)):
                part = samples[row : row + 1]
                denoiser.predict(part.x_t, part.t, part.cond)
        recordings.append(kept)
    solve(coefficients, single_lora_targets(recordings))
    after = loop.evaluate(denoiser, denoiser.modules(), coefficients, heldout)
    assert sum(after) < 0.8 * sum(before)


def layer_and_inputs(generator, columns, ranks):
    layers = [
        LoraLayer(
            "x",
            torch.randn(rank, columns, generator=generator),
            torch.randn(6, rank, generator=generator),
            1.0,
        )
        for rank in ranks
    ]
    return layers, [torch.randn(40, columns, generator=generator) for _ in ranks]


def test_layers_that_are_solved_side_by_side_are_solved_as_each_by_itself(monkeypatch):
    generator = torch.Generator().manual_seed(5)
    shapes = {"a": (8, (2, 3)), "b": (8, (2, 3)), "c": (8, (3, 3)), "d": (6, (2, 3)), "e": (8, (2, 3))}
    made = {name: layer_and_inputs(generator, *shape) for name, shape in shapes.items()}
    made["b"][1][0].mul_(100)

    def solved(names):
        coefficients = MergerCoefficients.ones([{n: made[n][0][k] for n in names} for k in range(2)])
        batches = []
        recordings = [{n: [made[n][1][k]] for n in names} for k in range(2)]
        solve(coefficients, single_lora_targets(recordings), on_batch=lambda: batches.append(1))
        return {n: layer.m.detach() for n, layer in coefficients.layers.items()}, len(batches)

    together, batches = solved(shapes)
    assert batches == 3
    for name in shapes:
        torch.testing.assert_close(together[name], solved([name])[0][name], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(analytic, "BATCH_VALUES", 2 * 8 * 80)
    smaller, batches = solved(shapes)
    assert batches == 4
    for name in shapes:
        torch.testing.assert_close(smaller[name], together[name], rtol=1e-4, atol=1e-5)


def test_solving_can_be_interrupted_between_batches():
    layers, inputs = layer_and_inputs(torch.Generator().manual_seed(0), 8, (2, 2))
    coefficients = MergerCoefficients.ones([{"a": layer} for layer in layers])

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(coefficients, single_lora_targets([{"a": [x]} for x in inputs]), on_batch=stop)
    assert (coefficients.layers["a"].m == 1).all()


@pytest.mark.parametrize("seed", [0, 3])
def test_going_on_after_the_solution_is_exact_changes_nothing(seed):
    generator = torch.Generator().manual_seed(seed)
    layers = [
        LoraLayer("a", torch.randn(1, 6, generator=generator), torch.randn(6, 1, generator=generator), 1.0)
        for _ in range(2)
    ]
    inputs = [{"a": [torch.randn(4, 6, generator=generator)]} for _ in range(2)]
    found = []
    for iterations in (24, 400):
        coefficients = MergerCoefficients.ones([{"a": layer} for layer in layers])
        solve(coefficients, single_lora_targets(inputs), iterations=iterations)
        found.append(coefficients.layers["a"].m.detach().clone())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
