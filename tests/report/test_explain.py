"""What a merge did: the figures against the definitions, the sentences against the figures."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from lib_ziplora.config import LoraInput, MergeSettings
from lib_ziplora.errors import LoraFileError
from lib_ziplora.hosts import CheckpointInfo
from lib_ziplora.lora.blocks import place_of
from lib_ziplora.pipeline.merge import run
from lib_ziplora.report.charts import heat_maps, histograms
from lib_ziplora.report.document import document
from lib_ziplora.report.explain import BINS, HIGH, LOW, explain
from lib_ziplora.report.saved import SavedMerge, Source, read_saved
from lib_ziplora.report.sentences import in_words

from ..lora.sdxl_names import unet_modules
from ..support.pico_host import write_kohya
from ..support.small_merges import pico_host, request

Q = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
MIDDLE = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k"
UP = "lora_unet_output_blocks_2_1_transformer_blocks_0_ff_net_2"


def saved(*vectors, method="ziplora", roles=("subject", "style"), summary=None):
    names = [f"lora{index}" for index in range(len(roles))]
    return SavedMerge(
        tuple(LoraInput(name, role=role) for name, role in zip(names, roles, strict=True)),
        MergeSettings(method=method),
        tuple(Source(name, "ab", 1) for name in names),
        tuple({name: torch.as_tensor(v, dtype=torch.float32) for name, v in one.items()} for one in vectors),
        CheckpointInfo("base", ""),
        summary or {},
    )


def random(seed, *names, low=-1.0, high=3.0):
    generator = torch.Generator().manual_seed(seed)
    sizes = {Q: 50, MIDDLE: 61, UP: 83}
    return {name: low + (high - low) * torch.rand(sizes[name], generator=generator) for name in names}


def test_the_whole_is_the_mean_of_the_places_by_their_sizes():
    found = explain("m", saved(random(0, Q, MIDDLE, UP), random(1, Q, UP)))
    for lora in found.loras:
        total = sum(spot.coefficients for spot in lora.places.values())
        assert total == lora.coefficients == sum(lora.histogram)
        for figure in ("strength", "travel"):
            mean = sum(getattr(s, figure) * s.coefficients for s in lora.places.values()) / total
            assert getattr(lora, figure) == pytest.approx(mean, rel=1e-5)
        assert sum(dataclasses.astuple(lora.shares)) == pytest.approx(1)
    assert list(found.loras[0].places) == [place_of(Q), place_of(MIDDLE), place_of(UP)]


def test_figures_are_those_of_the_vectors():
    a, b = random(2, Q, MIDDLE), random(3, Q)
    found = explain("m", saved(a, b))
    everything = torch.cat([*a.values(), *b.values()])
    assert found.travel == pytest.approx((everything - 1).abs().mean().item(), rel=1e-5)
    assert found.similarity == pytest.approx((a[Q] * b[Q]).abs().mean().item(), rel=1e-5)
    assert list(found.similarity_by_place) == [place_of(Q)]
    assert found.loras[0].strengths[place_of(MIDDLE)] == pytest.approx(a[MIDDLE].abs().mean().item())


def test_shares_and_bins_count_what_lies_where():
    m = [-2.0, -0.05, 0.05, 0.5, 0.95, 1.0, 1.05, 1.5, 9.0, 0.89]
    lora = explain("m", saved({Q: m}, {Q: m})).loras[0]
    shares = lora.shares
    assert (shares.reversed, shares.off, shares.down, shares.kept, shares.up) == pytest.approx(
        (0.1, 0.2, 0.2, 0.3, 0.2)
    )
    width = (HIGH - LOW) / BINS
    assert lora.histogram[0] == 1 and lora.histogram[-1] == 1
    assert lora.histogram[int((0.5 - LOW) / width + 1e-6)] == 1


def test_a_real_merge_is_explained_with_its_own_figures(tmp_path):
    host = pico_host(tmp_path)
    report = run(request(method="ziplora", learning_rate=0.1, steps=3, auto_balance=False), host)
    found = document(host, "merged")
    explanation = found.explanation
    assert explanation.travel == pytest.approx(report.learnt.mean_travel, rel=1e-4)
    assert explanation.similarity == pytest.approx(report.learnt.similarity_end, rel=1e-4)
    assert [lora.name for lora in explanation.loras] == ["dog", "ink"]
    steps = found.saved.history
    assert len(steps) == report.learnt.steps == 3
    assert list(steps[0])[:3] == ["loss", "subject_loss", "style_loss"] and steps[0]["travel"] > 0, (
        "the closed form has moved them before the loop"
    )
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["words"] == found.words


def test_the_prompts_that_were_used_are_kept(tmp_path):
    host = pico_host(tmp_path)
    host.cards["dog"] = {"activation text": "a sks dog"}
    asked = request(method="ziplora", steps=1)
    loras = (dataclasses.replace(asked.loras[0], prompt=""), asked.loras[1])
    run(dataclasses.replace(asked, loras=loras), host)
    assert [row["Prompt"] for row in document(host, "merged").inputs()] == ["a sks dog", "a cat"]


def test_what_has_no_coefficients_is_refused(tmp_path):
    host = pico_host(tmp_path)
    with pytest.raises(LoraFileError, match="no coefficients beside it"):
        document(host, "dog")


def test_vectors_that_do_not_fit_each_other_are_damage(tmp_path):
    host = pico_host(tmp_path)
    run(request(), host)
    (tmp_path / "merged.safetensors").unlink()
    (tmp_path / "merged.ziplora").write_bytes(saved({Q: [1.0]}, {Q: [1.0, 1.0]}).pack())
    with pytest.raises(LoraFileError, match="damaged"):
        document(host, "merged")


def test_a_plain_sum_is_told_as_one(tmp_path):
    host = pico_host(tmp_path)
    run(request(), host)
    found = document(host, "merged")
    assert len(found.words) == 1 and "plain sum" in found.words[0]
    assert histograms(found.explanation) == heat_maps(found.explanation) == ""


@pytest.mark.parametrize(
    ("first", "second", "words", "absent"),
    [
        ({Q: [1.001] * 9}, {Q: [0.999] * 9}, "hardly moved", "turned down"),
        ({Q: [0.2] * 9}, {Q: [1.0] * 9}, "The subject gave way more than the style", "alike"),
        ({Q: [0.5] * 9}, {Q: [0.5] * 9}, "gave way about alike", "gave way more"),
        ({Q: [0.05] * 9, UP: [1.0] * 9}, {Q: [1.0] * 9}, "turned down most in the input (down) blocks", "hardly moved"),
        ({Q: [0.05] * 9}, {Q: [1.0] * 9}, "100 % are nearly off", "as they were, "),
        ({Q: [0.05] * 9}, {Q: [1.0] * 9}, "hardly use a column together", "share no column"),
        ({Q: [0.5] * 9}, {UP: [0.5] * 9}, "share no column", "instead of 1"),
        ({Q: [-0.9] * 9}, {Q: [1.0] * 9}, "reversed", "turned up"),
    ],
    ids=str,
)  # fmt: skip
def test_sentences_follow_the_figures(first, second, words, absent):
    text = " ".join(in_words(explain("m", saved(first, second))))
    assert words in text and absent not in text


def test_several_of_a_role_are_told_apart():
    vectors = [{Q: [0.5] * 4}] * 3
    text = " ".join(in_words(explain("m", saved(*vectors, roles=("subject", "subject", "style")))))
    for name in ("Subject 1 (lora0)", "Subject 2 (lora1)", "The style (lora2)"):
        assert name in text


def test_balanced_names_the_strengths():
    found = explain("m", saved({Q: [0.6] * 4}, {Q: [0.8] * 4}, method="balanced"))
    assert "the subject (lora0) at 0.6, the style (lora1) at 0.8" in in_words(found)[0]


def test_convolutions_are_a_kind_of_their_own():
    for module in unet_modules():
        name = f"lora_unet_{module.sgm.replace('.', '_')}"
        assert (place_of(name)[1] == "convolution") == (len(module.shape) == 4), name


@pytest.mark.parametrize("name", ["x" * 300, "\u58a8" * 90, "../a", ""])
def test_a_source_that_no_file_can_be_is_damage(tmp_path, name):
    merge = dataclasses.replace(
        saved(random(0, Q), random(1, Q)), sources=(Source("a", "ab", 1), Source(name, "ab", 1))
    )
    (tmp_path / "m.ziplora").write_bytes(merge.pack())
    with pytest.raises(LoraFileError, match=r"m\.ziplora is damaged"):
        read_saved(tmp_path / "m.ziplora")


def test_sidecars_without_a_history_are_read(tmp_path):
    host = pico_host(tmp_path)
    run(request(), host)
    assert read_saved(tmp_path / "merged.ziplora").history == ()
    write_kohya(tmp_path / "third.safetensors", {Q: (8, 8)})
    assert document(host, "merged").saved.history == ()
