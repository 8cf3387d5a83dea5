"""Searched strengths in whole merges: what the file and the combined term hold, and when there are none."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lib_ziplora.config import LoraInput, MergeRequest
from lib_ziplora.errors import ConfigError
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.prepare import prepare
from lib_ziplora.training.strengths import StrengthSearch
from lib_ziplora.ziplora.coefficients import MergerCoefficients

from ..support.small_merges import merged, pico_host, request
from .test_combined_prompt import learnt


@pytest.fixture()
def host(tmp_path):
    return pico_host(tmp_path)


def shares(monkeypatch, at):
    """Makes the measured share a function of the subject's strength in the pictures."""
    told = {}

    def together(self, strengths):
        told["strengths"] = strengths
        return "together"

    def gap(self, pictures):
        return {"subject": 1.0, "style": 0.0}.get(pictures) if pictures != "together" else at(told)

    monkeypatch.setattr(StrengthSearch, "pictures_of", lambda self, role: role)
    monkeypatch.setattr(StrengthSearch, "combined_pictures", together)
    monkeypatch.setattr(StrengthSearch, "log_likelihood_ratio", gap)


def test_the_balanced_file_is_the_plain_sum_at_the_strengths_that_the_report_tells(host, monkeypatch):
    shares(monkeypatch, lambda told: told["strengths"][0] - 0.2)
    report = run(request(method="balanced"), host)
    subject, style = report.learnt.strengths
    assert subject**2 + style**2 == pytest.approx(1)
    assert subject == pytest.approx(0.5, abs=0.02) and report.learnt.subject_share == pytest.approx(0.3)
    parts = [read_lora(host.folder / f"{name}.safetensors").unet_layers() for name in ("dog", "ink")]
    for name, layer in merged(host).unet_layers().items():
        expected = subject * parts[0][name].delta() + style * parts[1][name].delta()
        torch.testing.assert_close(layer.delta(), expected, rtol=1e-4, atol=1e-5)
    assert not any("hardly moved" in warning for warning in report.warnings)


def test_unbalanced_it_is_the_plain_sum(host):
    report = run(request(method="balanced", auto_balance=False), host)
    assert report.learnt.strengths == (1.0, 1.0) and report.learnt.subject_share is None
    parts = [read_lora(host.folder / f"{name}.safetensors").unet_layers() for name in ("dog", "ink")]
    for name, layer in merged(host).unet_layers().items():
        torch.testing.assert_close(
            layer.delta(), parts[0][name].delta() + parts[1][name].delta(), rtol=1e-4, atol=1e-5
        )


def test_measured_on_the_model_every_share_is_finite_and_the_progress_adds_up(host):
    events = []
    report = run(request(method="balanced"), host, events.append)
    assert len(report.learnt.strengths) == 2 and all(0.25 < value < 0.97 for value in report.learnt.strengths)
    assert events[-1].step == events[-1].total
    again = run(dataclasses.replace(request(method="balanced"), output="again"), host)
    assert again.learnt.strengths == report.learnt.strengths


def test_the_loop_begins_there_and_the_combined_term_holds_to_it(host, monkeypatch):
    shares(monkeypatch, lambda told: told["strengths"][0] - 0.2)
    seen = learnt(host, monkeypatch, combined_weight=1.0, start="ones")
    losses = [e.metrics["combined_loss"] for e in seen["events"] if "combined_loss" in e.metrics]
    assert losses[0] < 1e-6, "the balanced sum is where the coefficients start"
    travels = [e.metrics["travel"] for e in seen["events"] if "travel" in e.metrics]
    assert travels[0] == 0 and travels[-1] > 0


def test_the_combined_prompt_is_made_of_the_loras_own(host):
    asked = MergeRequest.pair(
        LoraInput("dog", "a sks dog"),
        LoraInput("ink", "a cat in szn style"),
        "merged",
        settings=dataclasses.replace(request().settings, method="ziplora", combined_weight=1.0),
    )
    report = run(asked, host)
    assert report.settings.combined_prompt == "a sks dog in szn style"
    assert [p for p, _, _ in host.encoded if p == ["a sks dog in szn style"]] == [["a sks dog in szn style"]]


def test_several_of_one_role_share_its_strength(host, monkeypatch):
    shares(monkeypatch, lambda told: 0.3)
    loras = tuple(
        dataclasses.replace(LoraInput(name, prompt), role=role)
        for name, prompt, role in (
            ("dog", "a dog", "subject"),
            ("ink", "ink style", "style"),
            ("wash", "wash style", "style"),
        )
    )
    (host.folder / "wash.safetensors").write_bytes((host.folder / "ink.safetensors").read_bytes())
    asked = prepare(MergeRequest(loras, "x", settings=request(method="balanced").settings), host).request
    assert "ink" in asked.settings.combined_prompt and "wash" in asked.settings.combined_prompt
    search = StrengthSearch(
        None, {}, MergerCoefficients({}), ["subject", "style", "style"], None, None, asked.settings
    )
    strengths = search.by_role(0.6, 0.8)
    assert strengths[0] == pytest.approx(0.6) and strengths[1] == strengths[2]
    assert sum(value**2 for value in strengths) == pytest.approx(1)


def test_two_subjects_need_a_prompt_of_their_own_for_the_method_balanced(host):
    loras = tuple(
        dataclasses.replace(LoraInput(name, prompt), role="subject")
        for name, prompt in (("dog", "a dog"), ("ink", "a cat"))
    )
    asked = MergeRequest(loras, "merged", settings=request(method="balanced").settings)
    with pytest.raises(ConfigError, match="prompt for both together"):
        prepare(asked, host)
    written = dataclasses.replace(
        asked, settings=dataclasses.replace(asked.settings, combined_prompt="a dog and a cat")
    )
    report = run(written, host)
    assert (
        report.learnt.strengths == pytest.approx((0.5**0.5, 0.5**0.5)) and report.learnt.subject_share is None
    )
