"""Whole merges of LoKr, (IA)3, DoRA, norms and biases, and the rank of the file, on a pico host."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_ziplora.config import MergeSettings, parse_rank
from lib_ziplora.errors import ConfigError, UnsupportedLoraError
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.prepare import prepare

from ..support.pico_host import TEXT_LAYER, WIDTH
from ..support.small_merges import NORM, TEXT_NORM, Q, add, merged, pico_host, request


@pytest.fixture()
def host(tmp_path):
    return pico_host(tmp_path)


def weight_of(host):
    return host.unet.get_submodule("input_blocks.4.1.transformer_blocks.0.attn1.to_q").weight


def test_lokr_is_merged_and_the_report_says_what_it_became(host):
    first, second = torch.randn(2, 2), torch.randn(4, 4)
    add(host, "kron", {f"{Q}.lokr_w1": first, f"{Q}.lokr_w2": second})
    report = run(request("kron", weight=(0.5, 1.0)), host)
    (sentence,) = [s for s in report.warnings if "LoKr" in s]
    assert sentence.startswith("kron: 1 layer of LoKr became low-rank, of rank") and Q in sentence
    expected = 0.5 * torch.kron(first, second) + read_lora(host.folder / "ink.safetensors").layers[Q].delta()
    difference = (merged(host).layers[Q].delta() - expected).norm()
    assert difference <= 0.5 * torch.kron(first, second).norm() * 0.005**0.5 + 1e-4
    assert host.opened == 0 and host.forwards == 0


def test_the_kept_energy_decides_what_a_converted_layer_loses(host):
    first, second = torch.randn(2, 2), torch.randn(4, 4)
    add(host, "kron", {f"{Q}.lokr_w1": first, f"{Q}.lokr_w2": second})
    style = read_lora(host.folder / "ink.safetensors").layers[Q].delta()
    lost = []
    for energy in (0.5, 0.9, 1.0):
        run(dataclasses.replace(request("kron", kept_energy=energy), overwrite=True), host)
        error = merged(host).layers[Q].delta() - style - torch.kron(first, second)
        lost.append(float(error.norm() / torch.kron(first, second).norm()) ** 2)
    assert lost[0] <= 0.5 and lost[1] <= 0.1 and lost[2] < 1e-9
    assert lost[0] > lost[1] > lost[2]


@pytest.mark.parametrize("method", ["direct", "ziplora"])
def test_a_family_that_needs_the_checkpoint_reads_its_weights_from_the_host(host, method):
    factors = torch.rand(WIDTH)
    add(host, "ia3", {f"{Q}.weight": factors, f"{Q}.on_input": torch.tensor(1)})
    before = weight_of(host).clone()
    run(request("ia3", method=method), host)
    assert weight_of(host).equal(before) and host.opened == 0
    if method == "direct":
        style = read_lora(host.folder / "ink.safetensors").layers[Q].delta()
        ours, dense = merged(host).layers[Q].delta() - style, before * factors
        assert (ours - dense).norm() <= dense.norm() * 0.005**0.5 + 1e-4


@pytest.mark.parametrize("header", [False, True])
def test_the_merge_of_an_adapter_that_began_as_pissa_makes_of_the_checkpoint_what_was_trained(host, header):
    """By numpy: PiSSA takes the largest singular values off the weight, and trains what it took off."""
    rank, alpha, strength = 2, 3.0, 0.5
    weight = weight_of(host).double().numpy()
    u, s, vt = np.linalg.svd(weight)
    residual = weight - (u[:, :rank] * s[:rank]) @ vt[:rank]
    up, down = (
        u[:, :rank] * s[:rank] ** 0.5 / (alpha / rank) ** 0.5,
        (s[:rank, None] ** 0.5 * vt[:rank]) / (alpha / rank) ** 0.5,
    )
    rng = np.random.default_rng(1)
    up, down = up + 0.2 * rng.standard_normal(up.shape), down + 0.2 * rng.standard_normal(down.shape)
    trained = residual + alpha / rank * up @ down
    path = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "init_lora_weights": "pissa"}
    tensors = {f"{path}.lora_A.weight": torch.tensor(down), f"{path}.lora_B.weight": torch.tensor(up)}
    tensors = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    if header:
        flat = json.dumps({f"unet.{key}": value for key, value in config.items()})
        save_file(tensors, host.folder / "pissa.safetensors", {"lora_adapter_metadata": flat})
    else:
        save_file({f"base_model.model.{k}": t for k, t in tensors.items()}, host.folder / "pissa.safetensors")
        (host.folder / "adapter_config.json").write_text(json.dumps(config))
    report = run(request("pissa", weight=(strength, 1.0), kept_energy=1.0), host)
    written = load_file(host.folder / "merged.safetensors")
    up, down = (written[f"{Q}.lora_{part}.weight"].double().numpy() for part in ("up", "down"))
    made = weight + float(written[f"{Q}.alpha"]) / down.shape[0] * up @ down
    style = read_lora(host.folder / "ink.safetensors").layers[Q].delta().double().numpy()
    np.testing.assert_allclose(made, weight + strength * (trained - weight) + style, rtol=1e-3, atol=1e-4)
    assert any("began as PiSSA" in warning for warning in report.warnings)


def test_without_a_checkpoint_the_family_and_the_layer_are_named(host):
    down, up = torch.randn(2, WIDTH), torch.randn(WIDTH, 2)
    add(
        host,
        "dora",
        {
            f"{Q}.lora_down.weight": down,
            f"{Q}.lora_up.weight": up,
            f"{Q}.dora_scale": torch.ones(1, WIDTH),
        },
    )
    host.refusal = "no model"
    with pytest.raises(UnsupportedLoraError, match=f"dora.safetensors .*DoRA.*{Q}.*--checkpoint"):
        prepare(request("dora"), host)
    assert not (host.folder / "merged.safetensors").exists()
    host.refusal = ""
    run(request("dora"), host)


def test_norms_and_biases_are_carried_through_at_their_weights(host):
    one = {f"{NORM}.w_norm": torch.randn(WIDTH), f"{NORM}.b_norm": torch.randn(WIDTH)}
    bias = {f"{Q}.diff": torch.randn(WIDTH, WIDTH), f"{Q}.diff_b": torch.randn(WIDTH)}
    text = {f"{TEXT_NORM}.w_norm": torch.randn(6), f"{TEXT_NORM}.b_norm": torch.randn(6)}
    two = {key: torch.randn(WIDTH) for key in one}
    add(host, "a", {**one, **bias, **text})
    add(host, "b", two, base="ink")
    report = run(request("a", "b", weight=(0.7, 0.4)), host)
    extras = merged(host).extras
    assert set(extras) == {*one, f"{Q}.diff_b"}
    for key in one:
        torch.testing.assert_close(extras[key], 0.7 * one[key] + 0.4 * two[key])
    torch.testing.assert_close(extras[f"{Q}.diff_b"], 0.7 * bias[f"{Q}.diff_b"])
    told = " ".join(report.warnings)
    assert f"2 differences of norms or biases were left out, the first is {TEXT_NORM}" in told
    assert "Automatic1111 does not" in told and "the optimisation did not see them" in told


@pytest.mark.parametrize(("rank", "most"), [("exact", 5), ("2", 2), ("0.9", 5), ("0.2", 3)])
def test_the_rank_of_the_file(host, rank, most):
    report = run(request(rank=rank), host)
    subject, style = read_lora(host.folder / "dog.safetensors"), read_lora(host.folder / "ink.safetensors")
    total = lost = 0.0
    for name, layer in merged(host).layers.items():
        exact = subject.layers[name].delta() + style.layers[name].delta()
        error, norm = float((layer.delta() - exact).norm()), float(exact.norm())
        total, lost = total + norm**2, lost + error**2
        assert layer.rank <= most
        if rank.startswith("0"):
            assert error**2 <= (1 - float(rank)) * norm**2 + 1e-6
    assert report.rank <= most
    assert report.rank_error == pytest.approx((lost / total) ** 0.5, rel=1e-2, abs=1e-6)
    json.dumps(report.to_json())


def test_the_conditioning_of_the_optimisation_is_that_of_the_file(host):
    run(request(method="ziplora", rank="1"), host)
    written = merged(host).layers[TEXT_LAYER]
    assert written.rank == 1
    seen = host.encoded[0][2][TEXT_LAYER]
    torch.testing.assert_close(seen, written.delta(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "value"),
    [("exact", None), (" Exact ", None), ("64", 64), ("1", 1), ("8.0", 8), ("0.995", 0.995)],
)
def test_what_the_rank_setting_means(text, value):
    assert parse_rank(text) == value
    MergeSettings(rank=text)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "all", "nan", "inf", "1e999"])
def test_ranks_that_mean_nothing_are_refused(text):
    with pytest.raises(ConfigError, match=r"rank must be exact, a whole number"):
        MergeSettings(rank=text)
