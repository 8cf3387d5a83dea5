"""What a re-export finds, refuses and leaves alone; both files of a merge or none."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_ziplora.config import MergeSettings
from lib_ziplora.errors import ConfigError, LoraFileError, OutputError, UnsupportedLoraError
from lib_ziplora.pipeline import write as writing
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.prepare import prepare
from lib_ziplora.pipeline.reexport import ReexportRequest, prepare_reexport

from ..support.exports import again, content, host_of_three, merge, same_tensors, tensors
from ..support.pico_host import WIDTH
from ..support.small_merges import Q, add, request


@pytest.fixture()
def host(tmp_path):
    return host_of_three(tmp_path)


# Where the sources are now


def test_a_source_is_found_under_another_name(host):
    merge(host)
    (host.folder / "dog.safetensors").rename(host.folder / "hound.safetensors")
    again(host)
    assert same_tensors(host, "merged", "again")


def test_a_source_whose_name_another_file_has_now_is_found_by_its_content(host):
    merge(host)
    (host.folder / "dog.safetensors").rename(host.folder / "old dog.safetensors")
    shutil.copy(host.folder / "ink.safetensors", host.folder / "dog.safetensors")
    again(host)
    assert same_tensors(host, "merged", "again")


def change(path):
    saved = load_file(path)
    save_file({key: tensor * 1.01 for key, tensor in saved.items()}, path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "The LoRA cat, which merged was merged from, is not installed any more"),
        (change, r"cat\.safetensors has changed since merged was merged from it"),
        (lambda path: path.write_bytes(b"x"), r"cat\.safetensors has changed"),
    ],
)
def test_a_source_that_is_gone_or_changed_is_named_and_nothing_is_written(host, spoil, words):
    merge(host)
    spoil(host.folder / "cat.safetensors")
    before = content(host)
    for attempt in (prepare_reexport, run):
        with pytest.raises(LoraFileError, match=words):
            attempt(ReexportRequest("merged", "again"), host)
    assert content(host) == before


def test_a_source_that_changes_after_it_was_found_is_refused(host):
    merge(host)
    prepared = prepare_reexport(ReexportRequest("merged", "again"), host)
    change(host.folder / "dog.safetensors")
    with pytest.raises(LoraFileError, match="dog was changed while it was read"):
        run(prepared, host)


def test_the_coefficients_are_enough_when_the_merged_file_is_gone(host):
    merge(host)
    kept = tensors(host, "merged")
    (host.folder / "merged.safetensors").unlink()
    again(host)
    assert all(torch.equal(kept[key], tensor) for key, tensor in tensors(host, "again").items())


# What belongs together


def test_without_coefficients_there_is_nothing_to_export(host):
    merge(host)
    (host.folder / "merged.ziplora").unlink()
    with pytest.raises(
        LoraFileError, match=r"merged has no coefficients beside it: there is no merged\.ziplora"
    ):
        again(host)
    with pytest.raises(LoraFileError, match="There is no LoRA nobody"):
        run(ReexportRequest("nobody", "again"), host)


def test_coefficients_of_another_merge_are_refused(host):
    merge(host)
    again(host, "other", style_weights=(0.5,))
    shutil.copy(host.folder / "other.ziplora", host.folder / "merged.ziplora")
    with pytest.raises(LoraFileError, match="of different merges"):
        again(host)


def test_a_merged_file_and_its_coefficients_may_be_renamed_together(host):
    merge(host)
    for ending in ("safetensors", "ziplora"):
        (host.folder / f"merged.{ending}").rename(host.folder / f"renamed.{ending}")
    run(ReexportRequest("renamed", "again"), host)
    assert same_tensors(host, "renamed", "again")


def test_coefficients_that_lack_a_layer_are_refused(host, monkeypatch):
    saved = writing._saved

    def shorter(result):
        first, *others = result.coefficients
        fewer = {name: vector for name, vector in first.items() if name != Q}
        return saved(dataclasses.replace(result, coefficients=(fewer, *others)))

    monkeypatch.setattr(writing, "_saved", shorter)
    merge(host)
    with pytest.raises(LoraFileError, match=r"merged\.ziplora is damaged"):
        again(host)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"subject_weights": (1.0, 1.0, 1.0)}, "3 weights for a subject, but merged was merged from 2"),
        ({"style_weights": (20.0,)}, "The style's weight must be between"),
        ({"subject_weights": (0.0,)}, "not 0"),
        ({"style_weights": (9.0,)}, "The weight of ink must be between"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"rank": "few"}, "rank must be exact"),
        ({"rank": "64", "split": True}, "rank exact, or no split"),
    ],
)
def test_what_can_not_be_asked_for_is_refused(host, asked, words):
    merge(host, method="direct")
    before = content(host)
    with pytest.raises(ConfigError, match=words):
        prepare_reexport(ReexportRequest("merged", "again", **asked), host)
    assert content(host) == before


def test_a_lora_that_needs_the_checkpoint_is_read_against_it_and_another_one_is_told(host, monkeypatch):
    add(host, "dog", {f"{Q}.on_input": torch.tensor(False), f"{Q}.weight": torch.randn(WIDTH)})
    merge(host, method="direct")
    assert again(host).warnings == run(ReexportRequest("merged", "b"), host).warnings
    assert same_tensors(host, "merged", "again")
    other = dataclasses.replace(host.checkpoint(), name="other", sha256="")
    monkeypatch.setattr(host, "checkpoint", lambda: other)
    assert any("pico when it was merged, other now" in warning for warning in again(host, "c").warnings)
    host.refusal = "Load an SDXL checkpoint."
    with pytest.raises(UnsupportedLoraError, match="can't be read without them"):
        again(host, "d")


# Both files or none


def test_the_coefficients_are_written_with_the_merge_and_never_replaced_unasked(host):
    merge(host)
    assert (host.folder / "merged.ziplora").is_file()
    (host.folder / "merged.safetensors").unlink()
    before = content(host)
    for attempt in (prepare, run):
        with pytest.raises(OutputError, match=r"merged\.ziplora exists already"):
            attempt(request(), host)
    assert content(host) == before and host.forwards > 0
    run(dataclasses.replace(request(), overwrite=True), host)
    assert content(host)["merged.ziplora"] != before["merged.ziplora"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "ending",
    ["merged_subject.safetensors", "merged_style.safetensors", "merged.ziplora", "merged.safetensors"],
)
def test_when_one_file_can_not_be_written_all_are_as_they_were(host, monkeypatch, ending, overwrite):
    asked = dataclasses.replace(request(split=True, weight=(0.5, 0.5)), overwrite=overwrite)
    if overwrite:
        run(request(split=True), host)
    before, replace = content(host), Path.replace

    def full(self, target):
        if target.name == ending and self.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    def no_links(*_arguments, **_options):
        raise NotImplementedError

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(OutputError, match=f"The disk is full: {ending} was not written"):
        run(asked, host)
    assert content(host) == before


def test_only_known_settings_are_taken_from_a_file(host, monkeypatch):
    """A later version's setting is no reason to guess."""
    asdict = dataclasses.asdict

    def with_more(item):
        found = asdict(item)
        return {**found, "novelty": 1} if isinstance(item, MergeSettings) else found

    monkeypatch.setattr(dataclasses, "asdict", with_more)
    merge(host, method="direct")
    monkeypatch.undo()
    with pytest.raises(LoraFileError, match=r"merged\.ziplora is damaged"):
        again(host)
