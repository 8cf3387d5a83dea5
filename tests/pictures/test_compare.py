"""What a comparison draws, what is left of one that ends early, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.errors import (
    ConfigError,
    HostError,
    Interrupted,
    LoraFileError,
    OutOfMemoryError,
    OutputError,
)
from lib_ziplora.hosts import Progress, Sampler
from lib_ziplora.pictures.compare import compare, merge_prompts, prepare_compare, save_sheet
from lib_ziplora.pictures.comparison import CompareRequest
from lib_ziplora.pipeline.merge import run

from ..support.drawing_host import SIZE, DrawingHost, colour
from ..support.pico_host import TEXT_LAYER, PicoHost, module_names, write_kohya

STEPS = 2
PROMPTS = ("a sks dog", "a cat in ink style", "a sks dog in ink style")


def request(**changed):
    return CompareRequest("merged", **{"sampler": Sampler(steps=STEPS), **changed})


@pytest.fixture
def host(tmp_path: Path) -> DrawingHost:
    shapes = {**module_names(), TEXT_LAYER: (6, 6)}
    for seed, name in enumerate(("dog", "ink", "cat")):
        write_kohya(tmp_path / f"{name}.safetensors", shapes, seed=seed)
    host = DrawingHost(tmp_path)
    merge(
        host,
        "merged",
        LoraInput("dog", "a sks dog", 0.5),
        LoraInput("ink", "a cat in ink style", role="style"),
    )
    return host


def merge(host, output, *loras, **settings):
    run(MergeRequest(loras, output, settings=MergeSettings(method="direct", **settings)), host)


def test_every_row_has_the_same_prompts_and_seeds(host: DrawingHost) -> None:
    done = compare(request(seeds=2, seed=7), host)
    rows = [(("dog", 0.5),), (("ink", 1.0),), (("dog", 0.5), ("ink", 1.0)), (("merged", 1.0),)]
    asked = [(picture.loras, picture.prompt, picture.seed) for picture in host.drawn]
    assert asked == [(row, prompt, seed) for row in rows for prompt in PROMPTS for seed in (7, 8)]
    titles = [row.label.title for row in done.plan.rows]
    assert titles == ["subject alone", "style alone", "plain sum", "merged"]
    assert host.counts == [len(asked)] and done.stopped == "" and len(done.pictures) == len(asked)


def test_a_brief_comparison_is_the_merge_beside_the_plain_sum(host: DrawingHost) -> None:
    done = compare(request(brief=True, seed=3), host)
    asked = [(picture.loras, picture.prompt, picture.seed) for picture in host.drawn]
    assert asked == [((("dog", 0.5), ("ink", 1.0)), PROMPTS[2], 3), ((("merged", 1.0),), PROMPTS[2], 3)]
    assert done.best_preview() is done.pictures[(1, 0, 0)]
    host.drawn.clear()
    compare(request(brief=True, prompts=("a boat", "a hat")), host)
    assert [picture.prompt for picture in host.drawn] == ["a boat", "a hat"] * 2


def test_prompts_are_the_users_without_their_tags(host: DrawingHost) -> None:
    done = compare(request(prompts=("a <lora:merged:1> boat", PROMPTS[0])), host)
    assert [label.detail for label in done.plan.prompts] == ["a boat", PROMPTS[0]]
    assert [label.title for label in done.plan.prompts] == ["prompt 1", "subject prompt"]


def test_the_merges_own_prompt_for_both_is_the_last(host: DrawingHost) -> None:
    loras = LoraInput("dog", "a dog"), LoraInput("ink", "ink", role="style")
    merge(host, "together", *loras, combined_prompt="a dog of ink")
    assert merge_prompts(host, "together") == ("a dog", "ink", "a dog of ink")
    merge(host, "same", *loras, combined_prompt="a dog")
    assert merge_prompts(host, "same") == ("a dog", "ink")


def test_several_subjects_have_a_row_each(host: DrawingHost) -> None:
    loras = (LoraInput("dog", "a dog"), LoraInput("cat", "a cat"), LoraInput("ink", "ink", role="style"))
    merge(host, "three", *loras)
    done = compare(CompareRequest("three", sampler=Sampler(steps=1)), host)
    assert [row.label.title for row in done.plan.rows] == [
        *("subject 1 alone", "subject 2 alone", "style alone", "plain sum", "merged"),
    ]


def test_the_sheet_holds_every_picture_and_its_infotext_names_the_rows(
    host: DrawingHost, tmp_path: Path
) -> None:
    host.saves = tmp_path / "grid.png"
    done = compare(request(), host)
    colours = {value for _, value in done.grid.getcolors(1 << 20)}
    assert {colour(picture) for picture in host.drawn} <= colours
    assert done.file == host.saves and done.infotext.startswith(f"{PROMPTS[2]} <lora:merged:1>")
    assert '"subject alone; style alone; plain sum; merged"' in done.infotext
    assert next(caption for _, caption in done.gallery()) == f"subject alone · {PROMPTS[0]} · seed 0"


def test_the_preview_is_the_merge_with_the_last_prompt(host: DrawingHost) -> None:
    best = compare(request(seeds=2), host).best_preview()
    assert best is not None and best.infotext == f"{PROMPTS[2]} <lora:merged:1>\nSeed: 0"


def test_progress_rises_to_the_end(host: DrawingHost) -> None:
    events: list[Progress] = []
    done = compare(request(), host, events.append)
    steps = [event.step for event in events]
    assert steps == sorted(steps) and steps[-1] == events[-1].total == done.plan.count * STEPS
    assert {event.stage for event in events} == {"drawing", "done"}


@pytest.mark.parametrize("ask", ["stop", "finish"])
def test_an_interrupted_comparison_keeps_what_is_drawn(host: DrawingHost, ask: str) -> None:
    host.before_picture = lambda number: setattr(host, ask, number == 4)
    done = compare(request(), host)
    assert len(done.pictures) == 3 and "interrupted" in done.stopped
    assert done.best_preview() is None and done.grid.size > SIZE
    assert host.pens == 0


def test_interrupted_before_the_first_picture_nothing_is_left(host: DrawingHost) -> None:
    host.before_picture = lambda number: setattr(host, "stop", True)
    with pytest.raises(Interrupted, match="first picture"):
        compare(request(), host)
    assert host.pens == 0


def fail(error: Exception, at: int):
    def before(number: int) -> None:
        if number == at:
            raise error

    return before


def test_a_failure_keeps_what_is_drawn_and_says_why(host: DrawingHost) -> None:
    host.before_picture = fail(HostError("The style could not be loaded."), at=5)
    done = compare(request(), host)
    assert len(done.pictures) == 4 and done.stopped == "The style could not be loaded."
    with pytest.raises(HostError, match="could not be loaded"):
        host.before_picture = fail(HostError("It could not be loaded."), at=len(host.drawn) + 1)
        compare(request(), host)


def test_out_of_memory_is_told_in_words_about_pictures(host: DrawingHost) -> None:
    host.before_picture = fail(torch.cuda.OutOfMemoryError("CUDA out of memory"), at=1)
    with pytest.raises(OutOfMemoryError, match="picture width"):
        compare(request(), host)


def test_a_sheet_that_can_not_be_saved_is_shown_all_the_same(
    host: DrawingHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_):
        raise OutputError("The disk is full.")

    monkeypatch.setattr(host, "keep", full)
    done = compare(request(), host)
    assert done.file is None and done.stopped == "The disk is full." and len(done.pictures) == done.plan.count


def test_a_source_that_was_renamed_draws_under_its_new_name(host: DrawingHost) -> None:
    (host.folder / "dog.safetensors").rename(host.folder / "hound.safetensors")
    compare(request(), host)
    assert host.drawn[0].loras == (("hound", 0.5),)


@pytest.mark.parametrize(
    ("lost", "says"),
    [("ink.safetensors", "not installed any more"), ("merged.ziplora", "no coefficients beside it")],
)
def test_missing_files_are_named(host: DrawingHost, lost: str, says: str) -> None:
    (host.folder / lost).unlink()
    with pytest.raises(LoraFileError, match=says):
        prepare_compare(request(), host)


def test_a_merge_whose_lora_is_gone_is_refused(host: DrawingHost) -> None:
    (host.folder / "merged.safetensors").unlink()
    with pytest.raises(LoraFileError, match=r"merged\.safetensors is not beside"):
        prepare_compare(request(), host)


def test_hosts_that_can_not_draw_are_refused_in_words(host: DrawingHost) -> None:
    with pytest.raises(HostError, match="does not draw"):
        prepare_compare(request(), PicoHost(host.folder))
    with pytest.raises(HostError, match="no sampler 'third'"):
        prepare_compare(request(sampler=Sampler("third")), host)
    host.drawing_refusal = "No checkpoint."
    with pytest.raises(HostError, match="No checkpoint"):
        prepare_compare(request(), host)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"source": ""}, "No merged LoRA"),
        ({"seeds": 0}, "seeds must lie"),
        ({"seed": -1}, "seed must lie"),
        ({"prompts": ("a",) * 13}, "13 prompts"),
        ({"prompts": ("<lora:x:1>",)}, "empty without its tags"),
        ({"sampler": Sampler(steps=0)}, "steps must lie"),
        ({"sampler": Sampler(guidance_scale=0.5)}, "guidance_scale must lie"),
        ({"sampler": Sampler(guidance_scale=float("nan"))}, "guidance_scale must lie"),
        ({"sampler": Sampler(width=100)}, "width must be a multiple of 8"),
        ({"sampler": Sampler(width=8)}, "width must be 0 or at least 64"),
        ({"sampler": Sampler(height=4096)}, "height must lie between 0 and 2048"),
    ],
    ids=str,
)
def test_impossible_requests_are_refused(changed, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        dataclasses.replace(request(), **changed)


def test_the_sheet_is_written_as_png_and_replaces_nothing_unasked(host: DrawingHost, tmp_path: Path) -> None:
    done, file = compare(request(), host), tmp_path / "sheet.png"
    save_sheet(done, file)
    with Image.open(file) as written:
        assert written.info["parameters"] == done.infotext and written.size == done.grid.size
    with pytest.raises(OutputError, match="exists already"):
        save_sheet(done, file)
    save_sheet(done, file, overwrite=True)
