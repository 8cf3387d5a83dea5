"""From values to requests and from outcomes to words, without gradio."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from lib_ziplora.config import LoraInput, setting_defaults, setting_fields
from lib_ziplora.errors import ConfigError, OutOfMemoryError
from lib_ziplora.names import validate_name
from lib_ziplora.ui.forms import MORE, request_from, suggested_name, value_names
from lib_ziplora.ui.handlers import Desk
from lib_ziplora.ui.tasks import REMEMBERED_TASKS

from .fake_host import EVIL, FakeEngine, FakeHost, rows


def values(**changed: Any) -> list[Any]:
    base = {
        "subject": "cat",
        "subject_prompt": "a cat",
        "subject_weight": 0.8,
        "style": "ink",
        "style_prompt": "an ink drawing",
        "style_weight": 1.2,
        **{name: None for slot in MORE for name in slot.value_names()},
        "output": " cat in ink ",
        "overwrite": True,
        "report": False,
        **setting_defaults(),
    }
    assert set(changed) <= set(base)
    return [{**base, **changed}[name] for name in value_names()]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def desk(host: FakeHost, engine: FakeEngine) -> Desk:
    return Desk(host, engine.engine())


def merge(desk: Desk, **changed: Any) -> str:
    ticket, refused = desk.prepare(values(**changed))
    assert refused == ""
    desk.host.wrap_task(lambda ticket: desk.work(ticket, values(**changed)), 1)(ticket)
    return ticket


def other_value(name: str) -> Any:
    """A legal value of a setting that is not its default."""
    option, default = setting_fields()[name], setting_defaults()[name]
    if option.choices:
        return next(choice for choice in option.choices if choice != default)
    if isinstance(default, str):
        return "32" if name == "rank" else f"{default} blurry"
    if isinstance(default, bool):
        return not default
    return option.minimum if option.minimum != default else option.maximum


@pytest.mark.parametrize("name", list(setting_fields()))
def test_every_setting_reaches_the_request(name: str) -> None:
    changed = request_from(values(**{name: other_value(name)})).settings
    assert getattr(changed, name) == other_value(name)
    others = [other for other in setting_fields() if other != name]
    assert [getattr(changed, other) for other in others] == [setting_defaults()[other] for other in others]


def test_the_other_values_reach_the_request() -> None:
    request = request_from(values())
    assert request.loras == (
        LoraInput("cat", "a cat", 0.8, role="subject"),
        LoraInput("ink", "an ink drawing", 1.2, role="style"),
    )
    assert (request.output, request.overwrite) == ("cat in ink", True)


def test_more_loras_may_be_chosen_and_left_empty() -> None:
    request = request_from(
        values(fourth="old", fourth_prompt="an old cat", fourth_weight=0.5, fourth_role="style")
    )
    assert request.loras == (*request_from(values()).loras, LoraInput("old", "an old cat", 0.5, role="style"))
    assert request.labels == ("subject", "style 1", "style 2")


def test_whole_numbers_may_come_as_floats() -> None:
    settings = request_from(values(steps=40.0, seed=7.0)).settings
    assert (settings.steps, settings.seed) == (40, 7)
    assert isinstance(settings.steps, int)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"subject": None}, "No subject is chosen"),
        ({"style": ""}, "No style is chosen"),
        ({"output": "  "}, "no name"),
        ({"steps": 0}, "steps must lie between"),
        ({"width": 100}, "multiple of 64"),
        ({"subject_weight": 0}, "weight of cat"),
    ],
)
def test_bad_values_are_refused(changed: dict[str, Any], words: str, desk: Desk) -> None:
    with pytest.raises(ConfigError, match=words):
        request_from(values(**changed))
    ticket, box = desk.prepare(values(**changed))
    assert ticket == "" and words in box and 'data-outcome="error"' in box


def test_what_the_engine_refuses_gets_no_ticket(desk: Desk, engine: FakeEngine) -> None:
    assert "same file" in desk.prepare(values(style="cat"))[1]
    assert "no LoRA named gone" in desk.prepare(values(subject="gone"))[1]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("subject", "style", "taken", "name"),
    [
        ("cat", "ink", [], "cat_x_ink"),
        ("cat", "ink", ["Cat_X_Ink", "cat_x_ink_2"], "cat_x_ink_3"),
        ("a:b=c>", "d/e", [], "a_b_c__x_d_e"),
        ("Katze (v2)", "墨", [], "Katze _v2__x_墨"),
        ("cat", None, [], ""),
    ],
)
def test_suggested_names_are_free_and_harmless(
    subject: str, style: str | None, taken: list[str], name: str
) -> None:
    assert suggested_name(subject, style, taken) == name
    if name:
        assert validate_name(name) == name


def test_long_names_give_a_name_that_fits() -> None:
    name = suggested_name("墨" * 100, "x" * 300, [])
    assert validate_name(name) == name


def test_a_merge_ends_in_a_tag_and_figures(desk: Desk, engine: FakeEngine) -> None:
    outcome = desk.outcome(merge(desk))
    assert outcome is not None and outcome.tag == "<lora:cat in ink:1>"
    assert "cat in ink.safetensors" in outcome.html and "2 → 0.6" in outcome.html
    assert engine.requests == [request_from(values())]


def test_known_errors_are_shown_in_their_own_words(desk: Desk, engine: FakeEngine) -> None:
    engine.problem = OutOfMemoryError(f"The GPU ran out of memory at {EVIL}.")
    outcome = desk.outcome(merge(desk))
    assert outcome is not None and outcome.tag == ""
    assert "The GPU ran out of memory at &lt;img" in outcome.html and "<img" not in outcome.html


def test_unforeseen_errors_are_logged_and_named_by_type(
    desk: Desk, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.problem = KeyError("secret detail")
    outcome = desk.outcome(merge(desk))
    assert outcome is not None and "KeyError" in outcome.html and "secret" not in outcome.html
    assert "secret detail" in caplog.text


def in_background(desk: Desk, engine: FakeEngine) -> tuple[str, threading.Thread]:
    engine.go.clear()
    ticket, _ = desk.prepare(values())
    work: Callable[..., Any] = desk.host.wrap_task(lambda ticket: desk.work(ticket, values()), 1)
    thread = threading.Thread(target=work, args=(ticket,))
    thread.start()
    return ticket, thread


def test_progress_then_interrupt(desk: Desk, engine: FakeEngine) -> None:
    ticket, thread = in_background(desk, engine)
    assert engine.running.wait(10)
    assert 'aria-valuenow="25"' in desk.bar(ticket) and "about 40\u00a0s left" in desk.bar(ticket)
    assert desk.outcome(ticket) is None
    assert "nothing will be written" in desk.interrupt(ticket)
    assert "Stopping" in desk.bar(ticket)
    thread.join(10)
    outcome = desk.outcome(ticket)
    assert outcome is not None and 'data-outcome="interrupted"' in outcome.html and outcome.tag == ""
    assert 'data-state="finished"' in desk.bar(ticket)
    assert desk.interrupt(ticket) == "No merge is running."


def test_a_waiting_merge_is_taken_off_the_queue_without_disturbing_the_running_job(
    desk: Desk, host: FakeHost, engine: FakeEngine
) -> None:
    with host.exclusive():  # somebody else's picture is being drawn
        ticket, _ = desk.prepare(values())
        work = host.wrap_task(lambda ticket: desk.work(ticket, values()), 1)
        thread = threading.Thread(target=work, args=(ticket,))
        thread.start()
        assert 'data-state="waiting"' in desk.bar(ticket)
        desk.interrupt(ticket)
        assert not host.interrupted()
    thread.join(10)
    outcome = desk.outcome(ticket)
    assert outcome is not None and 'data-outcome="interrupted"' in outcome.html
    assert engine.requests == []


def test_finish_now_asks_the_host_only_while_running(desk: Desk, host: FakeHost, engine: FakeEngine) -> None:
    waiting, _ = desk.prepare(values())
    assert "has not begun" in desk.finish_now(waiting)
    assert not host.finish_requested()
    ticket, thread = in_background(desk, engine)
    assert engine.running.wait(10)
    desk.finish_now(ticket)
    assert host.finish_requested() and not host.interrupted()
    engine.go.set()
    thread.join(10)
    assert not thread.is_alive()


def test_unloading_stops_what_runs(desk: Desk, engine: FakeEngine) -> None:
    ticket, thread = in_background(desk, engine)
    assert engine.running.wait(10)
    desk.interrupt_running()
    thread.join(10)
    assert desk.outcome(ticket) is not None


def test_only_recent_tasks_are_remembered(desk: Desk) -> None:
    tickets = [desk.prepare(values())[0] for _ in range(REMEMBERED_TASKS + 1)]
    assert len(set(tickets)) == len(tickets)
    assert all(ticket.startswith("task(") and ticket.endswith(")") for ticket in tickets)
    assert 'data-state="unknown"' in desk.bar(tickets[0])
    forgotten = desk.outcome(tickets[0])
    assert forgotten is not None and "not known any more" in forgotten.html and forgotten.tag == ""
    assert 'data-state="waiting"' in desk.bar(tickets[-1])


def test_pickers_list_usable_loras_first_and_say_why_not(desk: Desk, host: FakeHost) -> None:
    host.cards = {"old": {}, **host.cards}
    shown = rows(desk.shelf.refresh())
    assert [name for name, _, _ in shown] == ["cat", "ink", "old"]
    assert [state for _, _, state in shown] == [1, 1, 0] and "Stable Diffusion 1" in shown[2][1]
    assert "It was made for SD 1.5." in desk.shelf.card("old")
    assert desk.shelf.prompt("cat") == "a cat"
    assert desk.shelf.prompt("old") == "" and desk.shelf.prompt(None) == ""
    assert "not installed any more" in desk.shelf.card("gone")


def test_names_and_metadata_are_escaped(host: FakeHost, engine: FakeEngine) -> None:
    host.cards[EVIL] = {"activation text": EVIL}
    desk = Desk(host, engine.engine())
    ticket, refused = desk.prepare(values(subject=f"{EVIL}2"))
    shown = [desk.shelf.card(EVIL), desk.shelf.card(f"{EVIL}2"), desk.shelf.refresh(), refused]
    assert ticket == ""
    assert all("&lt;img" in html and "<img" not in html for html in shown)


def test_a_page_that_is_new_learns_what_runs(desk: Desk, engine: FakeEngine) -> None:
    assert desk.running() == ""
    waiting, _ = desk.prepare(values())
    assert waiting and desk.running() == ""
    engine.go.clear()
    ticket, _ = desk.prepare(values())
    worker = threading.Thread(target=lambda: desk.work(ticket, values()))
    worker.start()
    assert engine.running.wait(30)
    assert desk.running() == ticket
    engine.go.set()
    worker.join(30)
    assert desk.running() == ""
