"""A whole merge, from files to file, on a pico host: what is written, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.errors import (
    ConfigError,
    HostError,
    IncompatibleError,
    Interrupted,
    LoraFileError,
    OutOfMemoryError,
    OutputError,
    UnsupportedLoraError,
    ZipLoraError,
)
from lib_ziplora.lora.io.metadata import read_recipe
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.prepare import prepare

from ..support.pico_host import TEXT_LAYER, PicoHost, module_names, write_kohya

SETTINGS = MergeSettings(
    steps=12,
    width=64,
    height=64,
    sampling_steps=3,
    trajectories=2,
    precision="fp32",
    learning_rate=0.02,
    combined_weight=0.0,
)


@pytest.fixture()
def host(tmp_path):
    shapes = module_names()
    subject, style = dict(shapes), dict(shapes)
    del subject["lora_unet_out_2"], style["lora_unet_input_blocks_0_0"]
    write_kohya(tmp_path / "dog.safetensors", {**subject, TEXT_LAYER: (6, 6)}, rank=2, seed=1)
    write_kohya(tmp_path / "ink.safetensors", {**style, TEXT_LAYER: (6, 6)}, rank=3, alpha=3.0, seed=2)
    return PicoHost(tmp_path)


def request(subject="dog", style="ink", output="dog_ink", weight=(1.0, 1.0), overwrite=False, **settings):
    return MergeRequest.pair(
        LoraInput(subject, "a sks dog", weight[0]),
        LoraInput(style, "a cat in szn style", weight[1]),
        output,
        overwrite,
        dataclasses.replace(SETTINGS, **settings),
    )


def with_subject(base, subject, **changed):
    return dataclasses.replace(base, loras=(subject, *base.loras[1:]), **changed)


def files(host):
    return sorted(path.name for path in host.folder.iterdir())


def test_a_merge_learns_and_writes_one_verified_file(host):
    weights = copy.deepcopy(host.unet.state_dict())
    events = []
    report = run(request(), host, events.append)
    assert files(host) == ["dog.safetensors", "dog_ink.safetensors", "dog_ink.ziplora", "ink.safetensors"]
    assert report.tag == "<lora:dog_ink:1>" and host.refreshed == [host.folder / "dog_ink.safetensors"]
    assert report.learnt.steps == 12 and report.learnt.mean_travel > 0.05
    assert report.learnt.heldout_loss_end < report.learnt.heldout_loss_start
    assert report.learnt.similarity_start == pytest.approx(1.0) and report.learnt.similarity_end < 0.99
    assert report.common_layers == len(module_names()) - 1
    assert report.single_layers == {"subject": 1, "style": 1}
    assert report.rank == 5
    json.dumps(report.to_json())
    assert all(torch.equal(weights[key], value) for key, value in host.unet.state_dict().items())
    assert host.opened == 0 and not any(module._forward_hooks for module in host.unet.modules())
    steps = [event.step for event in events]
    assert steps == sorted(steps) and events[-1].step == events[-1].total and events[-1].stage == "done"
    assert host.events == events


def test_the_written_delta_is_the_sum_of_the_scaled_deltas_with_the_coefficients_that_were_learnt(host):
    run(request(weight=(0.7, 0.4)), host)
    subject, style = read_lora(host.folder / "dog.safetensors"), read_lora(host.folder / "ink.safetensors")
    merged = read_lora(host.folder / "dog_ink.safetensors")
    assert set(merged.layers) == set(subject.layers) | set(style.layers)
    moved = 0.0
    for name, layer in merged.layers.items():
        parts = [(w, lora.layers[name]) for w, lora in ((0.7, subject), (0.4, style)) if name in lora.layers]
        assert layer.rank == sum(part.rank for _, part in parts) and layer.alpha == 5  # one for the file
        ours, row = torch.zeros(layer.out_features, layer.in_features), 0
        for weight, part in parts:
            down = layer.down.flatten(1)[row : row + part.rank]
            m = (down / part.down.flatten(1)).median(dim=0).values
            torch.testing.assert_close(down, part.down.flatten(1) * m, rtol=1e-3, atol=1e-5)
            ours += weight * part.delta().flatten(1) * m
            moved = max(moved, (m - 1).abs().max().item())
            row += part.rank
        torch.testing.assert_close(layer.delta().flatten(1), ours, rtol=1e-3, atol=1e-4)
    assert moved > 0.05


def test_a_direct_merge_is_the_weighted_sum_and_needs_no_model(host):
    host.refusal = "no model"
    report = run(request(method="direct", weight=(0.7, 0.4)), host)
    assert host.forwards == 0 and report.learnt.steps == 0 and report.learnt.loss_end is None
    subject, style = read_lora(host.folder / "dog.safetensors"), read_lora(host.folder / "ink.safetensors")
    for name, layer in read_lora(host.folder / "dog_ink.safetensors").layers.items():
        expected = torch.zeros(layer.weight_shape)
        for weight, lora in ((0.7, subject), (0.4, style)):
            if name in lora.layers:
                expected += weight * lora.layers[name].delta()
        torch.testing.assert_close(layer.delta(), expected, rtol=1e-4, atol=1e-5)


def test_the_same_request_gives_the_same_file_and_another_seed_another(host):
    first = run(request(output="a"), host)
    run(request(output="b"), host)
    run(request(output="c", seed=5), host)
    a, b, c = (load_file(host.folder / f"{name}.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)
    assert first.settings == SETTINGS


def test_the_header_says_how_the_file_was_made(host):
    report = run(request(), host)
    metadata = read_lora(host.folder / "dog_ink.safetensors").metadata
    recipe = read_recipe(metadata)
    assert metadata["ss_output_name"] == "dog_ink"
    assert recipe["settings"] == dataclasses.asdict(SETTINGS)
    assert [lora["prompt"] for lora in recipe["loras"]] == ["a sks dog", "a cat in szn style"] and recipe[
        "checkpoint"
    ]["sha256"] == "ab" * 32
    assert recipe["summary"]["mean_travel"] == report.learnt.mean_travel
    hashes = [read_lora(host.folder / f"{name}.safetensors").sha256 for name in ("dog", "ink")]
    assert [source["sha256"] for source in recipe["sources"]] == hashes


@pytest.mark.parametrize("kept", ["both", "subject", "style", "none"])
def test_teacher_and_student_see_the_text_of_the_file_to_be_written(host, kept):
    run(request(text_encoders=kept, precision="fp32"), host)
    layers = read_lora(host.folder / "dog_ink.safetensors").layers
    assert (TEXT_LAYER in layers) == (kept != "none")
    assert [prompts for prompts, _, _ in host.encoded] == [["a sks dog", "a cat in szn style"], [""]]
    for _, _, deltas in host.encoded:
        assert set(deltas) == ({TEXT_LAYER} if kept != "none" else set())
        for name, delta in deltas.items():
            torch.testing.assert_close(delta, layers[name].delta(), rtol=1e-4, atol=1e-6)


def test_reference_images_take_the_place_of_trajectories(host, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (80, 90, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    base = request()
    images = dataclasses.replace(base.loras[0], images=(str(tmp_path / "photo.png"),))
    with_images = with_subject(base, images)
    run(with_images, host)
    run(dataclasses.replace(base, output="other"), host)
    a, b = (load_file(host.folder / f"{name}.safetensors") for name in ("dog_ink", "other"))
    assert not all(torch.equal(a[key], b[key]) for key in a)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = dataclasses.replace(images, images=(str(tmp_path / "broken.png"),))
    with pytest.raises(ConfigError, match=r"broken\.png"):
        run(with_subject(base, broken, output="third"), host)
    assert "third.safetensors" not in files(host)


def test_an_empty_prompt_is_filled_from_the_card_or_refused(host):
    host.cards["dog"] = {"activation text": "a photo of sks dog"}
    base = request()
    blank = with_subject(base, LoraInput("dog"))
    run(blank, host)
    assert host.encoded[0][0][0] == "a photo of sks dog"
    host.cards.clear()
    with pytest.raises(ConfigError, match="no prompt for dog"):
        run(dataclasses.replace(blank, output="x"), host)


@pytest.mark.parametrize("at", [1, 7, 20, 40, 45])
def test_an_interrupt_takes_effect_at_the_next_forward_and_nothing_is_written(host, at):
    def interrupt(count):
        if count == at:
            host.stop = True

    before = files(host)
    host.before_forward = interrupt
    with pytest.raises(Interrupted, match="nothing was written"):
        run(request(), host)
    assert host.forwards == at and files(host) == before and host.opened == 0
    assert not any(module._forward_hooks for module in host.unet.modules())
    host.stop, host.before_forward = False, lambda count: None
    run(request(), host)


def test_finish_now_writes_what_there_is(host):
    def finish_in_the_loop(progress):
        host.finish = progress.stage == "optimising" and progress.metrics != {}

    report = run(request(), host, finish_in_the_loop)
    assert report.learnt.steps == 1 and report.learnt.stopped_early and "dog_ink.safetensors" in files(host)


def interrupt_from_elsewhere(host, at):
    """An Interrupt at that forward which the tab did not send, in a UI that shares one with every job."""

    def interrupt(count):
        host.stop = host.stop or count == at

    def take_interrupt():
        host.stop = False
        return True

    host.before_forward, host.take_interrupt = interrupt, take_interrupt


def test_an_interrupt_from_elsewhere_ends_the_learning_and_what_was_learnt_is_written(host):
    interrupt_from_elsewhere(host, 34)  # among the updates
    report = run(request(), host)
    done, asked = report.learnt.steps, request().settings.steps
    assert 0 < done < asked and report.learnt.stopped_early and "dog_ink.safetensors" in files(host)
    assert any(f"after update {done} of {asked}" in warning for warning in report.warnings)


def test_an_interrupt_from_elsewhere_before_anything_is_learnt_stops_the_merge(host):
    interrupt_from_elsewhere(host, 7)
    with pytest.raises(Interrupted, match="nothing was written"):
        run(request(), host)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (torch.cuda.OutOfMemoryError("simulated"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemoryError),
        (RuntimeError("a driver fails"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_in_the_middle_leaves_no_file_and_no_hook(host, failure, expected):
    def fail(count):
        if count >= 42:
            raise failure

    before = files(host)
    host.before_forward = fail
    with pytest.raises(expected):
        run(request(), host)
    assert files(host) == before and host.opened == 0
    assert not any(module._forward_hooks for module in host.unet.modules())


def test_a_model_that_is_swapped_meanwhile_ends_the_run(host):
    def swap(count):
        host.alive = count < 30

    host.before_forward = swap
    with pytest.raises(HostError, match="changed"):
        run(request(), host)
    assert host.forwards == 30


REFUSED_BEFORE_THE_MODEL_IS_TOUCHED = [
    ({"output": "dog"}, OutputError, "dog"),
    ({"output": "../b"}, ZipLoraError, "[.][.]/b"),
    ({"subject": "nobody"}, LoraFileError, "nobody"),
    ({"style": "dog"}, IncompatibleError, "same file"),
    ({"style": "copy"}, IncompatibleError, "same file"),
    ({"style": "cut"}, LoraFileError, "cut"),
    ({"style": "empty"}, LoraFileError, "empty"),
    ({"style": "pickle"}, LoraFileError, "pickle"),
    ({"style": "nan"}, LoraFileError, "lora_unet_out_2"),
    ({"style": "sd15"}, UnsupportedLoraError, "sd15"),
    ({"style": "disjoint"}, IncompatibleError, "no UNet layer in common"),
    ({"style": "wide"}, IncompatibleError, "attn2_to_k"),
    ({"style": "foreign"}, IncompatibleError, "does not have"),
]


@pytest.mark.parametrize(("change", "kind", "words"), REFUSED_BEFORE_THE_MODEL_IS_TOUCHED)
def test_bad_input_is_refused_in_words_before_the_long_part(host, change, kind, words):
    _bad_files(host)
    before = files(host)
    with pytest.raises(kind, match=words):
        run(request(**change), host)
    assert host.forwards == 0 and files(host) == before


def _bad_files(host):
    shapes, folder = module_names(), host.folder
    whole = (folder / "ink.safetensors").read_bytes()
    (folder / "copy.safetensors").write_bytes((folder / "dog.safetensors").read_bytes())
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    torch.save({"a": torch.zeros(2)}, folder / "pickle.safetensors")
    tensors = load_file(folder / "ink.safetensors")
    tensors["lora_unet_out_2.lora_down.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "nan.safetensors")
    sd15 = {
        f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_{x}": (320, 768) for x in "kv"
    }
    write_kohya(folder / "sd15.safetensors", sd15)
    write_kohya(
        folder / "disjoint.safetensors",
        {"lora_unet_out_2": shapes["lora_unet_out_2"], **_attention("middle_block_1")},
    )
    wide = {name: (shape[0], 9) if "attn2_to_k" in name else shape for name, shape in shapes.items()}
    write_kohya(folder / "wide.safetensors", wide)
    write_kohya(folder / "foreign.safetensors", {**shapes, **_attention("middle_block_1")})


def _attention(block):
    return {f"lora_unet_{block}_transformer_blocks_0_attn1_to_{x}": (8, 8) for x in "qkv"}


def test_check_refuses_what_can_be_known_without_reading_tensors(host):
    prepare(request(), host)
    for change, kind, words in (
        ({"output": "dog"}, OutputError, "dog"),
        ({"style": "dog"}, IncompatibleError, "same file"),
        ({"style": "nobody"}, LoraFileError, "nobody"),
    ):
        with pytest.raises(kind, match=words):
            prepare(request(**change), host)
    blank = with_subject(request(), LoraInput("dog"))
    with pytest.raises(ConfigError, match="no prompt for dog"):
        prepare(blank, host)
    host.refusal = "Load an SDXL checkpoint."
    with pytest.raises(HostError, match="SDXL"):
        prepare(request(), host)
    assert host.forwards == 0 and host.opened == 0


def test_an_existing_file_is_replaced_only_when_asked(host):
    run(request(method="direct"), host)
    before = (host.folder / "dog_ink.safetensors").read_bytes()
    with pytest.raises(OutputError):
        run(request(method="direct", weight=(0.5, 0.5)), host)
    assert (host.folder / "dog_ink.safetensors").read_bytes() == before
    run(request(method="direct", weight=(0.5, 0.5), overwrite=True), host)
    assert (host.folder / "dog_ink.safetensors").read_bytes() != before


def test_a_run_that_cannot_move_the_coefficients_says_so(host):
    report = run(request(learning_rate=0.0001, steps=2, start="ones"), host)
    assert any("hardly moved" in warning for warning in report.warnings)
    assert not any("hardly moved" in warning for warning in run(request(output="b"), host).warnings)


def test_without_a_size_the_samples_have_the_checkpoints_own(host):
    report = run(request(width=0, height=64), host)
    assert (report.settings.width, report.settings.height) == (host.native_size, 64)
    recipe = read_recipe(read_lora(host.folder / "dog_ink.safetensors").metadata)
    assert recipe["settings"]["width"] == host.native_size


def test_the_instant_method_solves_without_a_backward_pass(host, monkeypatch):
    def no_backward(*args, **kwargs):
        raise AssertionError("the instant method must not differentiate")

    monkeypatch.setattr(torch.Tensor, "backward", no_backward)
    report = run(request(method="instant"), host)
    assert report.learnt.steps == 0 and report.learnt.loss_end is None and report.checkpoint == "pico"
    assert (
        report.learnt.mean_travel > 0.05 and report.learnt.heldout_loss_end < report.learnt.heldout_loss_start
    )
    assert not any(module._forward_pre_hooks for module in host.unet.modules())


def test_a_short_loop_from_the_closed_form_is_better_than_either_alone(host):
    alone = run(request(method="instant", output="a"), host)
    short = run(request(steps=6, start="ones", output="b"), host)
    both = run(request(steps=6, start="closed-form", output="c"), host)
    assert both.learnt.steps == 6
    losses = [one.learnt.heldout_loss_end for one in (both, alone, short)]
    assert losses[0] < min(losses[1:])


def test_the_papers_objective_with_another_weight_than_the_papers_is_remarked(host):
    loud = run(request(objective="paper", similarity_lambda=0.1), host)
    quiet = run(request(objective="paper", similarity_lambda=0.01, output="b"), host)
    assert any("the paper's is 0.01" in warning for warning in loud.warnings)
    assert not any("the paper's is" in warning for warning in quiet.warnings)
