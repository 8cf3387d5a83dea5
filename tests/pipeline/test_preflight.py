"""What is told of a merge beforehand, against the merge that is then made."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lib_ziplora.config import LoraInput
from lib_ziplora.hosts import CheckpointInfo
from lib_ziplora.library.timing import Timing
from lib_ziplora.lora.algebra import column_overlap, pair
from lib_ziplora.lora.blocks import KINDS, place_of
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.layer import Lora, LoraLayer
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.overlap import Overlap, measure
from lib_ziplora.pipeline.preflight import advice, preflight
from lib_ziplora.report.report import MergeReport
from lib_ziplora.training.learnt import Learnt

from ..support.pico_host import TEXT_LAYER, module_names, write_kohya
from ..support.small_merges import Q, add, pico_host, request


@pytest.fixture()
def host(tmp_path):
    return pico_host(tmp_path)


def lora(name, seed, layers=(Q,), rank=2, columns=16, out=16):
    generator = torch.Generator().manual_seed(seed)
    made = {
        layer: LoraLayer(
            layer,
            torch.randn(rank, columns, generator=generator),
            torch.randn(out, rank, generator=generator),
            1.0,
        )
        for layer in layers
    }
    return Lora(name, made)


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "fp16"}, {"rank": "3"}, {"text_encoders": "style"}], ids=str
)
def test_layers_and_size_are_those_of_the_merge(host, settings):
    asked = request(**settings)
    found = preflight(asked, host)
    report = run(asked, host)
    assert found.problems == ()
    assert (found.common_layers, found.single_layers) == (report.common_layers, dict(report.single_layers))
    written = (host.folder / "merged.safetensors").stat().st_size
    assert 0 <= written - found.size < 4096, "the header's strings are not known beforehand"


def test_single_layers_are_counted_for_their_lora(host):
    shapes = module_names()
    write_kohya(host.folder / "part.safetensors", {Q: shapes[Q]}, rank=2, seed=5)
    found = preflight(request(subject="part"), host)
    assert found.common_layers == 1
    assert found.single_layers == {"subject": 0, "style": len(shapes)}


def test_nothing_is_opened_and_nothing_written(host):
    before = sorted(host.folder.iterdir())
    preflight(request(method="ziplora"), host)
    assert (host.opened, host.forwards) == (0, 0)
    assert sorted(host.folder.iterdir()) == before


def test_overlap_is_the_mean_over_the_common_layers(host):
    files = [host.folder / f"{name}.safetensors" for name in ("dog", "ink")]
    dog, ink = map(read_lora, files)
    each = [column_overlap(dog.layers[name], ink.layers[name]) for name in pair(dog, ink).common]
    found = preflight(request(), host).overlap
    assert found.mean == pytest.approx(sum(each) / len(each))
    assert found.measured == found.common == len(each)
    assert "text encoder 1" in found.blocks and TEXT_LAYER in dog.layers
    assert all(0 <= value <= 1 and kind in KINDS for (_, kind), value in found.places.items())


def test_the_same_directions_overlap_wholly_and_random_ones_by_chance():
    one = lora("one", 1, rank=64, columns=400, out=64)
    other = lora("other", 2, rank=64, columns=400, out=64)
    assert measure([one, dataclasses.replace(one, name="copy")]).mean == pytest.approx(1)
    found = measure([one, other])
    assert found.mean == pytest.approx(found.chance, rel=0.1)
    assert found.chance == pytest.approx(math.sqrt(2 / (math.pi * 64)))


def test_of_three_every_pair_counts():
    loras = [lora("a", 1), lora("b", 2), lora("c", 3)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum(column_overlap(loras[i].layers[Q], loras[j].layers[Q]) for i, j in pairs) / 3
    assert measure(loras).mean == pytest.approx(expected)


def test_large_loras_are_measured_in_every_place(monkeypatch):
    blocks = ("lora_unet_input_blocks_4_1", "lora_unet_middle_block_1")
    names = [
        f"{block}_transformer_blocks_{n}_{part}"
        for block in blocks
        for n in range(4)
        for part in ("attn1_to_q", "attn2_to_k")
    ]
    pair_ = [lora("a", 1, names), lora("b", 2, names)]
    whole = measure(pair_)
    monkeypatch.setattr("lib_ziplora.pipeline.overlap.WORK_LIMIT", 1.0)
    least = measure(pair_)
    assert least.measured == 4 < whole.measured == least.common == 16
    assert list(least.places) == list(whole.places)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", ("input 4", "self-attention")),
        ("lora_unet_middle_block_1_transformer_blocks_9_attn2_to_v", ("middle", "cross-attention")),
        ("lora_unet_output_blocks_0_1_transformer_blocks_1_ff_net_0_proj", ("output 0", "feed-forward")),
        ("lora_unet_output_blocks_5_0_in_layers_2", ("output 5", "convolution")),
        ("lora_unet_time_embed_0", ("rest of the UNet", "other")),
        ("lora_te2_text_model_encoder_layers_3_mlp_fc1", ("text encoder 2", "feed-forward")),
        ("lora_te1_text_model_encoder_layers_3_self_attn_q_proj", ("text encoder 1", "self-attention")),
    ],
)
def test_places(name, place):
    assert place_of(name) == place


def test_blocks_come_in_the_networks_order():
    names = [f"lora_unet_{block}_1_proj_in" for block in ("output_blocks_10", "output_blocks_2")]
    names += ["lora_te1_x_mlp_fc1", "lora_unet_middle_block_1_proj_in", "lora_unet_input_blocks_11_1_proj_in"]
    found = measure([lora("a", 1, names), lora("b", 2, names)])
    assert found.blocks == ("input 11", "middle", "output 2", "output 10", "text encoder 1")


def test_problems_are_all_told_at_once(host):
    host.refusal = "The checkpoint is no SDXL."
    asked = dataclasses.replace(request(method="ziplora", style="dog", output="ink"))
    asked = dataclasses.replace(
        asked, loras=(dataclasses.replace(asked.loras[0], prompt=""), *asked.loras[1:])
    )
    problems = " ".join(preflight(asked, host).problems)
    for words in ("ink.safetensors", "same file", "no prompt for dog", "The checkpoint is no SDXL."):
        assert words in problems


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({f"{Q}.lora_down.weight": torch.randn(2, 5), f"{Q}.lora_up.weight": torch.randn(5, 2)}, "different"),
        ({f"{Q}.lora_down.weight": torch.full((2, 8), math.nan)}, "NaN"),
    ],
)
def test_what_only_the_tensors_show_is_a_problem_too(host, content, words):
    if words == "NaN":
        content = {**content, f"{Q}.lora_up.weight": torch.zeros(8, 2)}
    add(host, "odd", content)
    found = preflight(request(subject="odd"), host)
    assert any(words in problem and "odd" in problem for problem in found.problems)
    assert found.overlap is None and found.advice == ""


def test_a_lora_of_zeros_is_a_problem_for_learning_only(host):
    shapes = module_names()
    write_kohya(host.folder / "empty.safetensors", shapes, rank=2, seed=5, alpha=0.0)
    learning = preflight(request(subject="empty", method="ziplora"), host)
    assert any("empty are zero" in problem for problem in learning.problems)
    assert preflight(request(subject="empty"), host).problems == ()


def test_a_missing_lora_is_named_and_the_rest_left_open(host):
    found = preflight(request(subject="gone"), host)
    assert any("gone" in problem for problem in found.problems)
    assert (found.common_layers, found.size, found.overlap) == (None, None, None)


def test_a_changed_file_is_compared_anew(host):
    before = preflight(request(), host).overlap
    write_kohya(host.folder / "dog.safetensors", module_names(), rank=5, seed=9)
    assert preflight(request(), host).overlap != before


@pytest.mark.parametrize(
    ("mean", "words"), [(0.02, "hardly overlap"), (0.05, "in part"), (0.4, "same columns")]
)
def test_advice_follows_the_overlap(mean, words):
    assert words in advice(Overlap({}, mean, 0.02, 10, 10), "ziplora")


def test_time_is_known_after_a_merge_of_its_kind(host):
    pace, asked = Timing(), request(method="ziplora", steps=50)
    pace.note(asked, REPORT)
    assert pace.seconds(asked, host) == pytest.approx(REPORT.seconds)
    assert pace.seconds(request(method="ziplora", steps=100), host) > REPORT.seconds
    assert pace.seconds(request(method="ziplora", width=128), host) is None
    host.checkpoint = lambda: CheckpointInfo("other", "")
    assert pace.seconds(asked, host) is None


def test_a_checkpoint_is_not_read_for_a_time_that_nobody_knows(host):
    def read():
        raise AssertionError("the whole checkpoint is hashed")

    host.checkpoint = read
    pace = Timing()
    pace.note(request(method="direct"), REPORT)
    assert pace.seconds(request(method="ziplora"), host) is None
    assert preflight(request(method="ziplora"), host).problems == ()


def test_a_merge_that_ended_early_counts_the_updates_that_it_made(host):
    early, whole = Timing(), Timing()
    early.note(request(method="ziplora", steps=1000), REPORT)
    whole.note(request(method="ziplora", steps=REPORT.learnt.steps), REPORT)
    asked = request(method="ziplora", steps=10)
    assert early.seconds(asked, host) == pytest.approx(whole.seconds(asked, host))


REPORT = MergeReport(
    output="merged.safetensors",
    name="merged",
    method="ziplora",
    settings=request().settings,
    common_layers=1,
    single_layers={},
    rank=2,
    learnt=Learnt(steps=50),
    checkpoint="pico",
    seconds=80.0,
)


def test_three_loras_have_labels_of_their_own(host):
    write_kohya(host.folder / "cat.safetensors", module_names(), rank=4, seed=3)
    asked = request()
    found = preflight(dataclasses.replace(asked, loras=(*asked.loras, LoraInput("cat", "a cat"))), host)
    assert set(found.single_layers) == {"subject 1", "style", "subject 2"} and found.problems == ()


def test_tags_in_prompts_are_told_before_and_after(host):
    chosen = request("dog", "ink", method="instant", negative_prompt="bad <lora:slider:2>")
    told = [words for words in preflight(chosen, host).remarks if "<lora:slider:2>" in words]
    assert len(told) == 1
    assert told[0] in run(chosen, host).warnings
    direct = request("dog", "ink", negative_prompt="bad <lora:slider:2>")
    assert not any("slider" in words for words in preflight(direct, host).remarks)
