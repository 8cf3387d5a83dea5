"""More than two LoRAs in one merge: one vector each, their own samples, and words that fit."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_ziplora.config import LoraInput, MergeRequest
from lib_ziplora.errors import IncompatibleError
from lib_ziplora.lora.io.metadata import read_recipe
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.prepare import prepare
from lib_ziplora.training import run as training

from ..support.pico_host import TEXT_LAYER, module_names, write_kohya
from ..support.small_merges import Q, merged, pico_host, request

ROLES = {"dog": "subject", "cat": "subject", "ink": "style"}
OUT = "lora_unet_out_2"
IN = "lora_unet_input_blocks_0_0"


@pytest.fixture()
def host(tmp_path):
    host = pico_host(tmp_path)
    shapes = {name: shape for name, shape in module_names().items() if name not in (OUT, IN)}
    write_kohya(tmp_path / "cat.safetensors", {**shapes, TEXT_LAYER: (6, 6)}, rank=4, alpha=2.0, seed=3)
    return host


def many(names=("dog", "cat", "ink"), weights=(1.0, 0.7, -0.4), **settings) -> MergeRequest:
    loras = tuple(
        LoraInput(name, f"a {name}", weight, role=ROLES[name])
        for name, weight in zip(names, weights, strict=True)
    )
    base = request(
        **{"method": "ziplora", "steps": 3, "learning_rate": 0.05, "guidance_scale": 1.0, **settings}
    )
    return MergeRequest(loras, "merged", settings=base.settings)


@pytest.fixture()
def learnt(monkeypatch):
    """The coefficients of the last merge."""
    seen = []
    learn = training.learn

    def watched(*args):
        figures, vectors = learn(*args)
        seen[:] = vectors
        return figures, vectors

    monkeypatch.setitem(run.__globals__, "learn", watched)
    return seen


@pytest.mark.parametrize("method", ["ziplora", "instant", "direct"])
def test_the_file_is_the_sum_of_each_delta_with_its_own_weight_and_coefficients(host, learnt, method):
    asked = many(method=method)
    report = run(asked, host)
    whole = merged(host)
    sources = [read_lora(host.folder / f"{lora.lora}.safetensors") for lora in asked.loras]
    vectors = learnt or [{}, {}, {}]
    for name, layer in whole.layers.items():
        expected = torch.zeros(layer.out_features, layer.in_features)
        for lora, source, m in zip(asked.loras, sources, vectors, strict=True):
            if name in source.layers:
                expected += lora.weight * source.layers[name].delta().flatten(1) * m.get(name, 1)
        torch.testing.assert_close(layer.delta().flatten(1), expected, rtol=1e-4, atol=1e-5)
    if method != "direct":
        moved = [torch.cat([(m - 1).abs() for m in one.values()]).mean() for one in learnt]
        assert all(distance > 0.01 for distance in moved)
        assert not torch.allclose(learnt[0][Q], learnt[1][Q])
        assert report.learnt.heldout_loss_end < report.learnt.heldout_loss_start
    assert report.rank == 9 and report.common_layers == len(module_names()) + 1
    assert report.single_layers == {"subject 1": 0, "subject 2": 0, "style": 0}


def test_each_lora_draws_its_own_samples_and_has_its_own_loss(host):
    events = []
    report = run(many(), host, events.append)
    assert [prompts for prompts, negative, _ in host.encoded if not negative] == [["a dog", "a cat", "a ink"]]
    texts = list(dict.fromkeys(event.text for event in events))
    assert texts[:3] == ["Reading dog", "Reading cat", "Reading ink"]
    assert [text for text in texts if text.startswith("Drawing")] == [
        "Drawing with dog",
        "Drawing with cat",
        "Drawing with ink",
    ]
    figures = [event.metrics for event in events if event.metrics]
    assert len(figures) == report.learnt.steps == 3
    losses = ("subject_1_loss", "subject_2_loss", "style_loss")
    for one in figures:
        assert set(one) == {"loss", *losses, "similarity", "travel"}
        assert one["loss"] == pytest.approx(sum(one[name] for name in losses))
    steps = [event.step for event in events]
    assert steps == sorted(steps) and events[-1].step == events[-1].total
    assert events[-2].step >= 0.9 * events[-1].total


@pytest.mark.parametrize("names", [("dog", "cat"), ("ink", "dog")])
def test_two_of_any_role_in_any_order(host, names):
    roles = {"dog": "subject", "cat": "subject", "ink": "style"}
    run(many(names, (0.7, 0.4), split=True), host)
    both = [roles[name] for name in names]
    ends = both if len(set(both)) == 2 else [f"{role}{number}" for number, role in enumerate(both, 1)]
    parts = [read_lora(host.folder / f"merged_{end}.safetensors") for end in ends]
    for name, layer in merged(host).layers.items():
        found = [part.layers[name].delta() for part in parts if name in part.layers]
        torch.testing.assert_close(sum(found), layer.delta(), rtol=1e-5, atol=1e-5)


def test_every_lora_gets_a_file_of_its_part(host):
    report = run(many(split=True), host)
    assert report.split == ("merged_subject1", "merged_subject2", "merged_style")
    parts = [read_lora(host.folder / f"{name}.safetensors") for name in report.split]
    assert [max(layer.rank for layer in part.layers.values()) for part in parts] == [2, 4, 3]
    for name, layer in merged(host).layers.items():
        found = [part.layers[name].delta() for part in parts if name in part.layers]
        torch.testing.assert_close(sum(found), layer.delta(), rtol=1e-5, atol=1e-5)


def test_the_header_names_every_source_with_its_role(host):
    run(many(), host)
    recipe = read_recipe(merged(host).metadata)
    assert [(lora["lora"], lora["role"], lora["weight"]) for lora in recipe["loras"]] == [
        ("dog", "subject", 1.0),
        ("cat", "subject", 0.7),
        ("ink", "style", -0.4),
    ]
    assert [source["name"] for source in recipe["sources"]] == ["dog", "cat", "ink"]


@pytest.mark.parametrize(
    ("kept", "owners"),
    [("both", ("dog", "cat", "ink")), ("subject", ("dog", "cat")), ("style", ("ink",)), ("none", ())],
)
def test_text_layers_and_their_biases_come_from_every_lora_of_the_role(host, kept, owners):
    for name in ROLES:
        path = host.folder / f"{name}.safetensors"
        save_file({**load_file(path), f"{TEXT_LAYER}.diff_b": torch.full((6,), 1.0)}, path)
    asked = many(text_encoders=kept, method="direct")
    run(asked, host)
    whole = merged(host)
    weights = [lora.weight for lora in asked.loras if lora.lora in owners]
    deltas = [read_lora(host.folder / f"{name}.safetensors").layers[TEXT_LAYER].delta() for name in owners]
    assert (TEXT_LAYER in whole.layers) == bool(owners)
    if owners:
        expected = sum(weight * delta for weight, delta in zip(weights, deltas, strict=True))
        torch.testing.assert_close(whole.layers[TEXT_LAYER].delta(), expected)
        bias = whole.extras[f"{TEXT_LAYER}.diff_b"]
        torch.testing.assert_close(bias, torch.full((6,), sum(weights)))


def test_more_loras_take_more_units_of_progress(host):
    totals = []
    for count in (2, 3):
        events = []
        names = ("dog", "cat", "ink")[:count]
        run(dataclasses.replace(many(names, (1,) * count), output=f"m{count}"), host, events.append)
        totals.append(events[-1].total)
    assert totals[0] < totals[1] < 2 * totals[0]


@pytest.mark.parametrize("twice", list(itertools.combinations(range(3), 2)))
def test_the_same_file_twice_is_named_by_its_places(host, twice):
    names = ["dog", "cat", "ink"]
    names[twice[1]] = names[twice[0]]
    asked = many()
    loras = tuple(dataclasses.replace(lora, lora=name) for lora, name in zip(asked.loras, names, strict=True))
    first, second = (asked.labels[index] for index in twice)
    words = f"{first.capitalize()} and {second} are the same file, {names[twice[0]]}.safetensors"
    with pytest.raises(IncompatibleError, match=words):
        prepare(dataclasses.replace(asked, loras=loras), host)


def test_a_lora_that_shares_no_layer_is_named_and_the_plain_sum_takes_it(host):
    write_kohya(host.folder / "cat.safetensors", {OUT: module_names()[OUT]}, seed=4)
    for name in ("dog", "ink"):
        path = host.folder / f"{name}.safetensors"
        save_file({key: t for key, t in load_file(path).items() if not key.startswith(OUT)}, path)
    with pytest.raises(IncompatibleError, match="cat has no UNet layer in common with dog or ink"):
        run(many(), host)
    assert host.forwards == 0
    report = run(many(method="direct"), host)
    assert report.single_layers["subject 2"] == 1
