"""The buttons that start a task, and those that follow, stop and fetch it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gradio as gr

from ..hosts import Host
from . import text
from .compat import javascript, quiet
from .explain import explain_to
from .forms import SLOTS, STEER_VALUES, value_names
from .handlers import Desk
from .matrix import MATRIX_VALUES, admit_matrix, work_matrix
from .pickers import Controls, prefilled
from .steer import steer_to
from .tasks import Outcome

SHOWN = ("result", "tag", "tag_panel", "note", "log")
"""What a task's outcome is shown in."""


def task_events(host: Host, desk: Desk, controls: Controls) -> Any:
    """Merge and Re-export, and everything about a task that runs; the event of a merge's end."""
    merged = _started_by("generate", value_names(), desk.prepare, desk.work, host, controls)
    merged.then(
        lambda subject, style, *output: prefilled(output[0], output[1], desk.output_name(subject, style)),
        [controls[name] for name in ("subject", "style", "output", "output_filled")],
        [controls["output"], controls["output_filled"]],
        **quiet(),
    )
    steer_to(desk, controls, merged)
    explain_to(desk, controls, merged)
    exported = _started_by(
        "reexport", STEER_VALUES, desk.prepare_reexport, desk.work_reexport, host, controls
    )
    exported.then(
        lambda name, *output: prefilled(output[0], output[1], desk.steering(name).output),
        [controls[name] for name in ("steer", "steer_output", "steer_output_filled")],
        [controls["steer_output"], controls["steer_output_filled"]],
        **quiet(),
    )
    explain_to(desk, controls, exported)
    _started_by(
        "matrix_run",
        MATRIX_VALUES,
        partial(admit_matrix, desk),
        partial(work_matrix, desk),
        host,
        controls,
    )
    _following(desk, controls)
    return merged


def check_events(desk: Desk, controls: Controls, picked: Sequence[Any]) -> None:
    """What can be told of a merge follows the picks, and is told anew by Check; the script has it
    told anew once a setting has been changed.

    A pick first has the pair looked at, which may take a second, and then shows what belongs to
    the values that the page has by then: a late answer is never that of another pair, and none
    is shown once a merge has begun meanwhile.

    Args:
        picked: events after which other LoRAs are chosen.
    """
    values = [controls[name] for name in value_names()]
    ticket, looked = controls["ticket"], gr.State("")

    checked = javascript("() => ziplora.checked()")

    def look(ticket: str, *given: Any) -> str:
        desk.foresee_pair(given)
        return ticket

    def show(ticket: str, looked: str, *given: Any) -> str:
        return desk.foresee_pair(given) if ticket == looked else ""

    looks = [event.then for event in picked] + [controls["recheck"].click]
    for on in looks:
        on(look, [ticket, *values], looked, **quiet()).then(
            show, [ticket, looked, *values], controls["verdict"], **quiet()
        ).then(None, None, None, **checked)
    controls["check"].click(lambda *given: desk.foresee(given), values, controls["verdict"], **quiet()).then(
        None, None, None, **checked
    )
    pickers = {slot.name for slot in SLOTS}
    for name in (one for one in value_names() if one not in pickers):
        controls[name].input(None, None, None, **javascript("() => ziplora.outdated()"))


def _started_by(
    button: str,
    names: Sequence[str],
    prepare: Callable[[Sequence[Any]], tuple[str, str]],
    work: Callable[[str, Sequence[Any]], Outcome],
    host: Host,
    controls: Controls,
) -> Any:
    """A button that asks for a ticket, waits for its turn and shows the outcome; the event of its end."""
    values = [controls[name] for name in names]
    shown = [controls[name] for name in SHOWN]
    ticket = controls["ticket"]
    wrapped = host.wrap_task(lambda ticket, *values: _show(work(ticket, values)), len(shown))

    def admitted(*values: Any) -> list[Any]:
        made, refused = prepare(values)
        kept = "" if made else gr.update()
        return [made, refused, gr.update(visible=False), "", "", kept, kept]

    def performed(ticket: str, *values: Any) -> Sequence[Any]:
        return wrapped(ticket, *values) if ticket else [gr.update() for _ in shown]

    emptied = ("result", "tag_panel", "note", "log", "curves", "verdict")
    cleared = [ticket] + [controls[name] for name in emptied]
    done = (
        controls[button]
        .click(admitted, values, cleared, **quiet())
        .then(
            performed,
            [ticket, *values],
            shown,
            show_progress="hidden",
            api_name=False,
            **javascript(f"(...values) => submit_ziplora({len(values) + 1}, ...values)"),
        )
    )
    done.then(None, None, None, **javascript("() => ziplora.finished()"))
    return done


def _following(desk: Desk, controls: Controls) -> None:
    """Events of a running task; the script replaces the ticket by the one that it follows."""

    def on(button: str, handler: Callable[[str], Any], outputs: Any, ticket: str = "ticket") -> Any:
        return controls[button].click(
            handler, [controls["ticket"]], outputs, **quiet(), **javascript(f"() => ziplora.{ticket}()")
        )

    on("poll", desk.bar, controls["bar"])
    controls["ask"].click(lambda: text.running(desk.running()), None, controls["running"], **quiet())
    on("watch", lambda ticket: desk.curves(ticket) or gr.update(), controls["curves"], "followed")
    shown = [controls[name] for name in SHOWN]
    restored = on("restore", lambda ticket: _show(desk.outcome(ticket)), shown)
    steer_to(desk, controls, restored)
    explain_to(desk, controls, restored)
    on("interrupt", lambda ticket: text.notice(desk.interrupt(ticket)), controls["note"])
    on("skip", lambda ticket: text.notice(desk.finish_now(ticket)), controls["note"])
    controls["copy"].click(None, None, None, **javascript("() => ziplora.copyTag()"))
    controls["send"].click(None, None, None, **javascript("() => ziplora.sendToTxt2img()"))


def _show(outcome: Outcome | None) -> list[Any]:
    """Updates of what ``SHOWN`` names; the WebUI adds its timing to the last."""
    if outcome is None:
        return [gr.update() for _ in range(4)] + [""]
    return [outcome.html, outcome.tag, gr.update(visible=bool(outcome.tag)), "", ""]
