"""The ground-truth benchmark's own arithmetic, without drawing anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import methods, quality, scoring
from benchmarks.drawing import CELL, HEADER, contact_sheet, fused
from benchmarks.minixl.choice import lora_name
from benchmarks.minixl.judge import PANEL
from benchmarks.minixl.networks import ranks_of, split, to_input
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
    assert row.second.mean == 0


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


def test_the_contact_sheet_has_a_line_for_each_method():
    pictures = np.full((2, 8, 8, 3), 7, dtype=np.uint8)
    image = contact_sheet({"sum": {"a:x": pictures}, "ours": {"a:x": pictures}}, ["a:x"])
    assert image.height == HEADER + 2 * (CELL + 2)
    assert image.getpixel((image.width - 12, HEADER + CELL + 2 + 4)) == (7, 7, 7)


def test_pairs_are_named_by_half_by_number_or_one_by_one():
    choosing, reporting = (quality.wanted_pairs(half) for half in ("choosing", "reporting"))
    assert len(reporting) >= 60
    assert not {pair.subject for pair in choosing} & {pair.subject for pair in reporting}
    assert not {pair.style for pair in choosing} & {pair.style for pair in reporting}
    few = quality.wanted_pairs("6")
    assert len(few) == 6 and set(few) <= set(choosing)
    assert quality.wanted_pairs("turtle:ph/thin") == [methods.Pair("turtle", "ph/thin")]


def test_a_style_with_a_variant_has_a_file_name():
    assert lora_name("style", "ph/thin") == "minixl_style_ph-thin"
    with pytest.raises(FileNotFoundError, match="minixl_style_no-such"):
        methods.lora_file("style", "no/such")


def test_ranks_are_of_all_subjects_and_of_the_panel_for_both_judges():
    panel, subjects = len(PANEL), 5

    class Known:
        subjects = tuple("abcde")

        def __init__(self, subject, style):
            self.places = subject, style

        def logits(self, x):
            found = [torch.zeros(len(x), count) for count in (subjects, panel)]
            for part, place in zip(found, self.places, strict=True):
                part[:, :place] = 1  # so many classes before the right one, if it stands last
            return tuple(found)

    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    found = scoring.score(Known(1, 3), pixels, "e", PANEL[-1], Known(4, 0))
    assert {name: values.tolist() for name, values in found.items()} == {
        "subject_rr": [1 / 2] * 2,
        "style_rr": [1 / 4] * 2,
        "second_subject_rr": [pytest.approx(1 / 5)] * 2,
        "second_style_rr": [1.0] * 2,
    }
