"""NP-LoRA against its published formula, on small layers and as whole merges."""

from __future__ import annotations

import pytest
import torch

from lib_ziplora.errors import IncompatibleError
from lib_ziplora.lora.algebra import merge_layers
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.reexport import ReexportRequest
from lib_ziplora.ziplora.np_lora import MU, null_space_projection

from ..support.small_merges import Q, merged, pico_host, request


def layer(seed: int, rank: int = 3, columns: tuple[int, ...] = (7,), out: int = 5) -> LoraLayer:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *columns, generator=generator)
    return LoraLayer("a", down, torch.randn(out, rank, generator=generator), alpha=2.0)


def summed(subject, style, mu=0.5):
    return merge_layers(null_space_projection([subject, style], ["subject", "style"], mu))


def projector(style: LoraLayer) -> torch.Tensor:
    rows = style.down.flatten(1)
    return torch.linalg.pinv(rows) @ rows


@pytest.mark.parametrize("columns", [(7,), (2, 3, 3)])
@pytest.mark.parametrize("mu", [0.5, 3.0])
def test_the_merge_is_the_published_formula(columns, mu):
    subject, style = layer(0, 2, columns), layer(1, 4, columns)
    found = summed({"a": subject}, {"a": style}, mu)["a"]
    left = torch.eye(projector(style).shape[0]) - mu / (1 + mu) * projector(style)
    expected = style.delta().flatten(1) + subject.delta().flatten(1) @ left
    torch.testing.assert_close(found.delta().flatten(1), expected, rtol=1e-4, atol=1e-5)
    assert found.rank == 6


def test_without_strength_it_is_the_plain_sum():
    subject, style = layer(0), layer(1)
    found = summed({"a": subject}, {"a": style}, 0.0)["a"]
    torch.testing.assert_close(found.delta(), subject.delta() + style.delta())


def test_with_endless_strength_the_subject_is_silent_on_the_styles_rows():
    subject, style = layer(0), layer(1)
    found = summed({"a": subject}, {"a": style}, 1e9)["a"]
    inputs = style.down.T
    torch.testing.assert_close(found.delta() @ inputs, style.delta() @ inputs, rtol=1e-4, atol=1e-4)


def test_a_layer_of_one_lora_stays_as_it_is():
    found = summed({"a": layer(0)}, {"b": layer(1)})
    torch.testing.assert_close(found["a"].delta(), layer(0).delta())
    torch.testing.assert_close(found["b"].delta(), layer(1).delta())


def test_refuses_layers_that_do_not_match_and_a_negative_strength():
    with pytest.raises(IncompatibleError):
        summed({"a": layer(0)}, {"a": layer(1, columns=(8,))})
    with pytest.raises(ValueError, match="negative"):
        summed({"a": layer(0)}, {"a": layer(1)}, -0.1)


def test_several_styles_are_projected_out_together():
    subject, *styles = (layer(seed, 2) for seed in range(3))
    roles = ["style", "subject", "style"]
    found = null_space_projection([{"a": styles[0]}, {"a": subject}, {"a": styles[1]}], roles, 1e9)
    assert found[0]["a"] is styles[0] and found[2]["a"] is styles[1]
    rows = torch.cat([style.down for style in styles])
    assert (found[1]["a"].delta() @ rows.T).abs().max() < 1e-4 < (subject.delta() @ rows.T).abs().max()


@pytest.fixture()
def host(tmp_path):
    return pico_host(tmp_path)


def expected(host, weights=(1.0, 1.0)):
    """Every layer's delta by a pseudoinverse: the UNet's by the formula, the text encoders' plainly summed."""
    subject, style = (read_lora(host.folder / f"{name}.safetensors").layers for name in ("dog", "ink"))
    deltas = {}
    for name, a in subject.items():
        rows = style[name].down.flatten(1)
        keep = torch.eye(rows.shape[1]) - MU / (1 + MU) * torch.linalg.pinv(rows) @ rows
        own = a.delta().flatten(1) @ (keep if name.startswith("lora_unet") else torch.eye(len(keep)))
        deltas[name] = weights[0] * own + weights[1] * style[name].delta().flatten(1)
    return deltas


def test_a_whole_merge_holds_the_formula_and_draws_nothing(host):
    host.refusal = "no checkpoint"
    report = run(request(method="np-lora", weight=(0.8, -1.2)), host)
    assert host.forwards == 0 and report.method == "np-lora" and report.learnt.steps == 0
    wanted = expected(host, (0.8, -1.2))
    layers = merged(host).layers
    assert layers.keys() == wanted.keys() and Q in layers
    for name, delta in wanted.items():
        torch.testing.assert_close(layers[name].delta().flatten(1), delta, rtol=1e-4, atol=1e-5)


def test_it_is_exported_again_with_other_strengths_and_in_parts(host):
    run(request(method="np-lora"), host)
    run(ReexportRequest("merged", "again", style_weights=(0.5,), split=True), host)
    names = ("again", "again_subject", "again_style")
    whole, *parts = (read_lora(host.folder / f"{name}.safetensors").layers for name in names)
    for name, delta in expected(host, (1.0, 0.5)).items():
        torch.testing.assert_close(whole[name].delta().flatten(1), delta, rtol=1e-4, atol=1e-5)
        total = sum(part[name].delta().flatten(1) for part in parts)
        torch.testing.assert_close(total, delta, rtol=1e-4, atol=1e-5)
