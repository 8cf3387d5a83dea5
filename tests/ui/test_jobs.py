"""Jobs in the tab: from a button to the outcome, on every open page, and what is told meanwhile."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.errors import OutOfMemoryError
from lib_ziplora.hosts import Progress
from lib_ziplora.jobs.queue import Job
from lib_ziplora.jobs.requests import Pictures, Result
from lib_ziplora.jobs.service import Service
from lib_ziplora.pictures.comparison import CompareRequest
from lib_ziplora.pipeline.matrix import Cell, MatrixRequest
from lib_ziplora.ui import jobs, text

from .conftest import TabHost
from .page import EVIL, Balance, Page, rows, words


def wait_for(condition: Callable[[], Any]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never became true")


def learning(page: Page, host: TabHost) -> str:
    """Start a merge that learns and waits in its first forward pass; its id."""
    host.go.clear()
    page.set(method="ziplora", output="learnt")
    job = page.start()
    wait_for(lambda: host.forwards)
    return job


def test_a_merge_ends_in_a_file_its_figures_and_its_tag(pair: Page, host: TabHost) -> None:
    assert pair["output"] == "dog_x_ink"
    pair.run()
    assert 'data-outcome="done"' in pair["result"] and "dog_x_ink.safetensors" in pair["result"]
    assert (host.folder / "dog_x_ink.safetensors").is_file()
    assert pair["tag"] == "<lora:dog_x_ink:1> a sks dog in ink style"
    assert pair.shown["tag_panel.visible"] is True
    assert pair["output"] == "dog_x_ink_2"


def test_what_was_merged_is_in_every_list_at_once(pair: Page) -> None:
    pair.run()
    pair.fire("refresh")
    assert "dog_x_ink" in [name for name, _, _ in rows(pair["catalog"])]
    assert "dog × ink" in words(pair["recent"])
    for name in ("adjust_source", "explain", "compare_source"):
        assert pair[name] == "dog_x_ink" and pair.shown[f"{name}.choices"] == ["dog_x_ink"]
    assert 'data-explained="dog_x_ink"' in pair["explained"]
    assert pair["compare_prompts"] == "a sks dog\na cat in ink style\na sks dog in ink style"


def test_suggested_names_begin_with_the_folder_for_merges(host: TabHost, service: Service) -> None:
    page = Page(service, folder="merges")
    page.pick(subject="dog", style="ink")
    assert (page["output"], page["matrix_names"]) == ("merges/dog_x_ink", "merges/{subject}_{style}")
    page.set(method="direct", output="mine/first")
    page.run()
    assert (host.folder / "mine" / "first.safetensors").is_file()
    assert page["tag"].startswith("<lora:first:1>") and page["output"] == "mine/first_2"
    assert (page["adjust_source"], page["adjust_output"]) == ("first", "merges/first_adjusted")
    page.set(matrix_subjects="dog", matrix_styles="ink", matrix_sheet=True)
    page.run("matrix_run")
    assert "1 of 1 pairs merged" in page["result"] and "ziplora-sheet" in page["result"]


def test_a_name_that_was_typed_counts_up_too(pair: Page) -> None:
    pair.set(output="mine")
    pair.run()
    assert pair["output"] == "mine_2"
    pair.run()
    assert pair["output"] == "mine_3"
    pair.set(output="kept", overwrite=True)
    pair.run()
    assert pair["output"] == "kept"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"subject": None}, "No subject is chosen"),
        ({"steps": 0}, "steps must lie between"),
        ({"style": "dog"}, "same file"),
        ({"subject": "gone"}, "no LoRA gone"),
        ({"output": "ink"}, "ink"),
    ],
    ids=str,
)
def test_what_can_not_be_merged_is_refused_at_once(
    pair: Page, host: TabHost, changed: dict[str, Any], told: str
) -> None:
    before = sorted(host.folder.iterdir())
    pair.set(**changed)
    assert pair.start() == ""
    assert 'data-outcome="error"' in pair["result"] and told in words(pair["result"])
    assert sorted(host.folder.iterdir()) == before and pair.service.jobs() == []


def test_progress_curves_and_interrupt(pair: Page, host: TabHost) -> None:
    learning(pair, host)
    pair.fire("poll")
    assert pair.state == "running" and "aria-valuenow" in pair["bar"]
    pair.fire("interrupt")
    assert "nothing will be written" in pair["note"]
    pair.finish()
    assert 'data-outcome="interrupted"' in pair["result"] and pair["tag"] == ""
    assert not (host.folder / "learnt.safetensors").exists()
    pair.job = pair["job"]
    pair.fire("interrupt")
    assert "No merge is running" in pair["note"]


def test_finish_now_writes_what_there_is(pair: Page, host: TabHost) -> None:
    pair.set(steps=500)
    learning(pair, host)
    pair.fire("skip")
    assert "the file will be written" in pair["note"]
    pair.finish()
    assert "stopped early" in pair["result"] and (host.folder / "learnt.safetensors").exists()


def test_curves_show_the_updates_of_the_job(pair: Page) -> None:
    pair.set(method="ziplora", steps=5)
    pair.run()
    assert pair["curves"].count("<svg") == 3


def test_a_queued_merge_leaves_the_queue_without_disturbing_others(pair: Page, host: TabHost) -> None:
    host.free.clear()  # somebody else's picture is being drawn
    pair.start()
    pair.fire("poll")
    assert pair.state == "queued" and "Queued" in words(pair["bar"])
    pair.fire("skip")
    assert "has not begun" in pair["note"] and not host.finish
    pair.fire("interrupt")
    assert not host.stop
    host.free.set()
    pair.finish()
    assert "off the queue" in words(pair["result"])
    assert not (host.folder / "dog_x_ink.safetensors").exists()


def test_every_page_shows_the_job_that_runs_wherever_it_was_begun(
    service: Service, pair: Page, host: TabHost
) -> None:
    host.go.clear()
    settings = MergeSettings(width=64, height=64, steps=1, sampling_steps=2, trajectories=1)
    loras = LoraInput("dog", "my dog", 0.5), LoraInput("ink", "in ink", role="style")
    job = service.submit(MergeRequest(loras, "by a program", settings=settings))
    pair.fire("poll")
    assert f'data-job="{job.id}"' in pair["bar"]
    other = Page(service)
    other.fire("poll")
    assert f'data-job="{job.id}"' in other["bar"]
    other.recall(job.id)  # the script of a page whose form is empty
    form = {"subject": "dog", "subject_prompt": "my dog", "subject_weight": 0.5, "style": "ink"}
    form |= {"output": "by a program", "steps": 1, "width": 64}
    assert {name: other[name] for name in form} == form
    host.go.set()
    for page in (pair, other):
        page.job = job.id
        page.finish()
        assert page["tag"].startswith("<lora:by a program:1>") and "by a program" in page["result"]
        page.fire("refresh")
        assert "dog × ink" in words(page["recent"])


def test_the_script_learns_when_lists_are_stale(service: Service, pair: Page) -> None:
    def revision() -> str:
        pair.fire("poll")
        return pair["bar"].partition('data-revision="')[2].partition('"')[0]

    before = revision()
    assert before == revision() != ""
    pair.run()
    assert revision() != before


def test_a_job_that_nobody_remembers_says_so(page: Page) -> None:
    page.job = "gone"
    page.fire("poll")
    assert page.state == "unknown"
    page.fire("outcome")
    assert 'data-outcome="forgotten"' in page["result"] and "merge again" in page["result"]


def test_a_page_without_a_job_is_idle(page: Page) -> None:
    page.fire("poll")
    assert page.state == "idle" and "hidden" in page["bar"]
    page.fire("outcome")
    assert page["result"] == ""


def test_known_errors_are_shown_in_their_own_words(pair: Page, host: TabHost) -> None:
    def fail(_count: int) -> None:
        raise OutOfMemoryError(f"The GPU ran out of memory at {EVIL}.")

    host.before_forward = fail
    pair.set(method="ziplora")
    pair.run()
    assert "The GPU ran out of memory at &lt;img" in pair["result"] and "<img" not in pair["result"]


def test_unforeseen_errors_are_logged_and_named_by_type(
    pair: Page, host: TabHost, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_count: int) -> None:
        raise KeyError("secret detail")

    host.before_forward = fail
    pair.set(method="ziplora")
    pair.run()
    assert "KeyError" in pair["result"] and "secret" not in pair["result"]
    assert "secret detail" in caplog.text


REQUEST = MergeRequest.pair(LoraInput("cat"), LoraInput("ink"), "merged")


def job(request: Any = REQUEST, **changed: Any) -> Job:
    made = Job(request, None)
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def test_the_bar_shows_stage_percent_time_and_figures() -> None:
    progress = Progress("sampling", 30, 120, 90.0, "Drawing with cat", {"subject_loss": 0.12345})
    html = jobs.bar(job(state="running", progress=progress))
    for told in ("Drawing with cat", "25 %", "about 2\u00a0min left", "subject loss 0.123", "width:25.0%"):
        assert told in html
    assert "left" not in jobs.bar(job(state="running", progress=Progress("reading", 0, 120, None, "R")))
    assert "Starting" in jobs.bar(job(state="running"))


@pytest.mark.parametrize(("step", "total", "width"), [(7, 5, "100.0"), (0, 0, "0.0")])
def test_the_bar_survives_odd_counts(step: int, total: int, width: str) -> None:
    progress = Progress("done", step, total, None, "")
    assert f"width:{width}%" in jobs.bar(job(state="running", progress=progress))


@pytest.mark.parametrize(
    ("request_", "stopping", "told"),
    [
        (REQUEST, "interrupt", "nothing will be written"),
        (REQUEST, "finish", "the file will be written"),
        (MatrixRequest((LoraInput("a"),), (LoraInput("b"),)), "interrupt", "finished stay"),
        (CompareRequest("merged"), "interrupt", "finished stay"),
    ],
    ids=str,
)
def test_the_bar_says_what_becomes_of_a_job_that_stops(request_: Any, stopping: str, told: str) -> None:
    assert told in words(jobs.bar(job(request_, state="running", stopping=stopping)))


def test_everything_is_balanced_and_escaped(pair: Page) -> None:
    pair.run()
    report = pair.service.jobs()[0].result.report
    assert report is not None
    hostile = dataclasses.replace(report, output=f"{EVIL}/{EVIL}.safetensors", warnings=(EVIL,))
    evil = MergeRequest.pair(LoraInput(EVIL), LoraInput(EVIL), EVIL)
    cells = (Cell(evil, "failed", EVIL),)
    pictures = Pictures(1, 2, Path(EVIL), Path(EVIL), (EVIL,))
    progress = Progress(EVIL, 1, 2, 1.0, EVIL, {EVIL: 1.0})
    for html in (
        jobs.merged(hostile),
        jobs.pairs(cells),
        jobs.bar(job(state="running", progress=progress), EVIL, EVIL),
        jobs.bar(None, EVIL, EVIL),
        jobs.outcome(job(state="failed", error=EVIL)).html,
        jobs.outcome(job(state="done", result=Result(pairs=cells, pictures=pictures))).html,
        jobs.outcome(job(CompareRequest(EVIL), state="done", result=Result(pictures=pictures))).html,
        text.error(EVIL),
        text.notice(EVIL),
        text.facts(EVIL),
        text.unexpected(ValueError(EVIL)),
    ):
        parsed = Balance(html)
        assert parsed.open == [] and "img" not in parsed.seen


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "1 s"), (40.4, "40 s"), (89, "89 s"), (100, "2 min"), (3000, "50 min"), (5400, "1 h 30 min")],
)
def test_durations(seconds: float, told: str) -> None:
    assert text.duration(seconds).replace("\u00a0", " ") == told
