"""A merge written again from its coefficients: the identities."""

from __future__ import annotations

import shutil

import pytest
import torch

from lib_ziplora.errors import OutputError
from lib_ziplora.lora.io.metadata import read_recipe
from lib_ziplora.lora.io.sidecar import read_sidecar
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.reexport import ReexportRequest

from ..support.exports import again, host_of_three, merge, read, same_tensors
from ..support.pico_host import TEXT_LAYER, WIDTH
from ..support.small_merges import NORM, Q, add


@pytest.fixture()
def host(tmp_path):
    return host_of_three(tmp_path)


SETTINGS = [
    {"precision": "fp32"},
    {"precision": "fp16"},
    {"precision": "bf16", "rank": "3"},
    {"rank": "0.9"},
    {"text_encoders": "style"},
    {"text_encoders": "none", "method": "instant"},
    {"method": "direct"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_at_one_the_tensors_are_those_of_the_merge(host, settings):
    add(host, "dog", {f"{NORM}.w_norm": torch.randn(WIDTH), f"{NORM}.b_norm": torch.randn(WIDTH)})
    merge(host, **settings)
    forwards, opened = host.forwards, len(host.encoded)
    host.refusal = "no model"
    report = again(host)
    assert same_tensors(host, "merged", "again")
    assert (host.forwards, len(host.encoded)) == (forwards, opened)
    assert report.name == "again" and host.refreshed[-1] == host.folder / "again.safetensors"
    assert report.model_hash == read(host, "again").metadata["sshs_model_hash"]


@pytest.mark.parametrize("method", ["ziplora", "direct"])
def test_strengths_multiply_what_each_source_brings(host, method):
    merge(host, method=method, split=True)
    again(host, subject_weights=(0.5, 1.2), style_weights=(-2.0,))
    parts = [read(host, f"merged_{end}") for end in ("subject1", "subject2", "style")]
    found = read(host, "again").layers
    assert TEXT_LAYER in found and set(found) == set(read(host, "merged").layers)
    for name, layer in found.items():
        expected = sum(
            strength * part.layers[name].delta()
            for strength, part in zip((0.5, 1.2, -2.0), parts, strict=True)
        )
        torch.testing.assert_close(layer.delta(), expected, rtol=1e-5, atol=1e-5)


def test_a_strength_that_is_not_given_is_one(host):
    merge(host)
    again(host, "a", subject_weights=(0.5,))
    again(host, "b", subject_weights=(0.5, 1.0), style_weights=(1.0,))
    assert same_tensors(host, "a", "b") and not same_tensors(host, "a", "merged")


@pytest.mark.parametrize(
    "asked", [{"rank": "3"}, {"precision": "bf16"}, {"precision": "fp16", "rank": "0.95"}]
)
def test_rank_and_precision_are_those_of_a_merge_that_was_asked_for_them(host, asked):
    merge(host)
    report = again(host, **asked)
    shutil.copy(host.folder / "again.safetensors", host.folder / "kept.safetensors")
    for name in ("merged", "again"):
        (host.folder / f"{name}.safetensors").unlink()
        (host.folder / f"{name}.ziplora").unlink()
    merge(host, **asked)
    assert same_tensors(host, "merged", "kept")
    assert (report.settings.rank, report.settings.precision) == (
        asked.get("rank", "exact"),
        asked.get("precision", "fp32"),
    )


def test_the_whole_comes_back_from_a_merge_of_low_rank(host):
    merge(host, rank="2")
    again(host, rank="exact")
    (host.folder / "merged.safetensors").unlink()
    (host.folder / "merged.ziplora").unlink()
    merge(host)
    assert same_tensors(host, "merged", "again") and read(host, "again").layers[Q].rank == 9


def test_the_parts_at_one_are_the_file(host):
    merge(host)
    report = again(host, split=True, style_weights=(0.6,))
    assert report.split == ("again_subject1", "again_subject2", "again_style")
    parts = [read(host, name) for name in report.split]
    for name, layer in read(host, "again").layers.items():
        torch.testing.assert_close(
            sum(part.layers[name].delta() for part in parts), layer.delta(), rtol=1e-5, atol=1e-5
        )


def test_what_was_exported_again_can_be_exported_again(host):
    merge(host)
    again(host, "half", subject_weights=(0.5, 0.5), style_weights=(0.5,))
    run(ReexportRequest("half", "quarter", False, (0.5, 0.5), (0.5,)), host)
    run(ReexportRequest("half", "whole", False, (2.0, 2.0), (2.0,)), host)
    assert same_tensors(host, "whole", "merged")
    for name, layer in read(host, "quarter").layers.items():
        torch.testing.assert_close(layer.delta(), 0.25 * read(host, "merged").layers[name].delta())


def test_a_merge_may_be_replaced_by_its_own_export(host):
    merge(host)
    before = read(host, "merged")
    with pytest.raises(OutputError, match=r"merged\.safetensors exists already"):
        again(host, "merged", style_weights=(0.5,))
    again(host, "merged", style_weights=(0.5,), overwrite=True)
    assert not torch.equal(before.layers[Q].delta(), read(host, "merged").layers[Q].delta())
    again(host, "back", style_weights=(2.0,))
    torch.testing.assert_close(read(host, "back").layers[Q].delta(), before.layers[Q].delta())


def test_the_header_says_what_it_was_made_of(host):
    merge(host)
    report = again(host, style_weights=(0.5,))
    recipe = read_recipe(read(host, "again").metadata)
    assert recipe["re_export"] == {"of": "merged", "weights": [1.0, 1.0, 0.5]}
    assert [lora["weight"] for lora in recipe["loras"]] == [0.7, -0.4, 0.65]
    assert recipe["coefficients"]["file"] == report.sidecar == "again.ziplora"
    _, sha256 = read_sidecar(host.folder / "again.ziplora")
    assert recipe["coefficients"]["sha256"] == sha256
    first = read_recipe(read(host, "merged").metadata)
    assert recipe["summary"]["mean_travel"] == first["summary"]["mean_travel"] > 0.01
    assert recipe["summary"]["heldout_loss_end"] is None and recipe["sources"] == first["sources"]
