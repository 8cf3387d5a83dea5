"""The ground-truth benchmark's own arithmetic, without drawing anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import methods, quality, scoring
from benchmarks.drawing import CELL, HEADER, contact_sheet, fused
from benchmarks.minixl.data import choose_subjects, svg_of
from benchmarks.minixl.embedding import ranks_of, split, to_input
from lib_ziplora.lora.layer import LoraLayer


def scores(subject: list[float], style: list[float]) -> scoring.Scores:
    found = {name: np.zeros(len(subject)) for name in scoring.MEASURES}
    return found | {"subject_rr": np.array(subject), "style_rr": np.array(style)}


def test_the_headline_is_the_harmonic_mean_of_each_pairs_means():
    row = scoring.summarise({"a:x": scores([1.0, 0.0], [0.25, 0.25]), "b:x": scores([1.0, 1.0], [0.0, 0.0])})
    assert row.headline.by_pair == pytest.approx({"a:x": 1 / 3, "b:x": 0.0})
    assert row.headline.mean == pytest.approx(1 / 6)
    assert row.headline.low < row.headline.mean < row.headline.high
    assert row.overall is None


def test_the_overall_score_is_the_harmonic_mean_over_all_three_prompts():
    both, subject, style = scores([1.0, 0.0], [0.25, 0.25]), scores([1.0], [0.0]), scores([0.0], [0.5])
    row = scoring.summarise({"a:x": both}, {"a:x": subject}, {"a:x": style})
    assert row.overall.mean == pytest.approx(4 / (1 / 0.5 + 1 / 0.25 + 1 + 1 / 0.5))
    assert row.headline.mean == pytest.approx(1 / 3)
    assert row.overall.low < row.overall.mean < row.overall.high


def test_differences_are_taken_over_the_same_pictures():
    noisy = np.random.default_rng(1).random(40)
    low, high = (scoring.summarise({"a:x": scores(list(noisy), [v] * 40)}).headline for v in (0.2, 0.3))
    gain, least, most = scoring.difference(high, low)
    assert gain == pytest.approx(high.mean - low.mean)
    assert 0 < least <= gain <= most
    assert most - least < high.high - high.low


def test_ranks_count_from_one_and_ties_are_kind():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    assert ranks_of(logits, torch.tensor([0, 0, 0])).tolist() == [1, 3, 1]


def test_no_drawing_is_both_trained_on_and_kept_out():
    rows, kept_out = split(57)
    assert sorted([*rows.tolist(), *kept_out.tolist()]) == list(range(57))
    assert len(kept_out) == 5


def test_pictures_of_both_sizes_become_the_same_input():
    small = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    torch.testing.assert_close(to_input(small), to_input(large))
    assert to_input(small).abs().max() <= 1


def test_a_fused_lora_changes_the_output_by_its_delta_and_leaves_no_trace():
    class Unet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            attention = nn.Module()
            attention.to_q = nn.Linear(4, 3)
            block = nn.Module()
            block.attn1 = attention
            transformer = nn.Module()
            transformer.transformer_blocks = nn.ModuleList([block])
            level = nn.Module()
            level.attentions = nn.ModuleList([transformer])
            self.down_blocks = nn.ModuleList([nn.Module(), level])
            self.linear = attention.to_q

    from lib_ziplora.lora.formats.keys import canonical_modules

    unet = Unet()
    (name,) = [key for key in canonical_modules(unet) if key.endswith("attn1_to_q")]
    layer = LoraLayer(name, torch.randn(2, 4), torch.randn(3, 2), alpha=1.0)
    x, before = torch.randn(5, 4), unet.linear.weight.detach().clone()
    plain = unet.linear(x)
    with fused(unet, {name: layer}):
        torch.testing.assert_close(unet.linear(x), plain + x @ layer.delta().T)
    assert torch.equal(unet.linear.weight, before)


def test_every_name_of_a_method_means_valid_settings():
    for spec in methods.ALIASES.values():
        if not spec.startswith("sum:"):
            assert methods.settings_of(spec).seed == 0
    assert methods.settings_of("ziplora,steps=20,start=closed-form").start == "closed-form"


def test_an_icon_becomes_a_square_drawing_through_its_alias():
    icons = {
        "width": 32,
        "height": 16,
        "icons": {"hat": {"body": "<g/>"}},
        "aliases": {"cap": {"parent": "hat"}, "turned": {"parent": "hat", "rotate": 1}},
    }
    assert 'viewBox="0.0 -8.0 32 32"' in svg_of(icons, "cap")
    assert svg_of(icons, "turned") is None
    assert svg_of(icons, "shoe") is None


def test_subjects_are_things_that_enough_sets_draw():
    one = {"icons": {"hat": {}, "up-arrow": {}, "shoe": {}}}
    two = {"icons": {"hat": {}, "up-arrow": {}}, "aliases": {"boot": {}}}
    assert choose_subjects({"one": one, "two": two}, minimum=2) == ["hat"]


def test_the_contact_sheet_has_a_line_for_each_method():
    pictures = np.full((2, 8, 8, 3), 7, dtype=np.uint8)
    image = contact_sheet({"sum": {"a:x": pictures}, "ours": {"a:x": pictures}}, ["a:x"])
    assert image.height == HEADER + 2 * (CELL + 2)
    assert image.getpixel((image.width - 12, HEADER + CELL + 2 + 4)) == (7, 7, 7)


def test_no_subject_is_both_chosen_on_and_reported(monkeypatch):
    pairs = [methods.Pair(subject, style) for subject in "abcdef" for style in "xyz"]
    monkeypatch.setattr(methods, "installed_pairs", lambda: pairs)
    halves = quality.halves()
    assert not {pair.subject for pair in halves["choose"]} & {pair.subject for pair in halves["report"]}
    assert sorted(halves["choose"] + halves["report"], key=lambda pair: pair.name) == pairs
    assert [pair.name for pair in halves["choose-12"]] == ["a:x", "c:y", "e:z"]
