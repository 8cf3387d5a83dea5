"""What the tab says: progress bar, facts about a LoRA, results and errors, as escaped HTML.

Names and metadata of LoRA files are written by strangers; every string that reaches a page
goes through ``html.escape`` where its HTML is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Literal

from ..hosts import Progress
from ..library.merges import Steerable
from ..plots import number as number
from ..report.document import figures as figures
from ..report.report import MergeReport

TaskState = Literal["waiting", "running", "finished", "unknown"]


def duration(seconds: float) -> str:
    """Seconds in words: ``40 s``, ``3 min``, ``1 h 20 min`` (with no-break spaces)."""
    minutes = round(seconds / 60)
    if seconds < 90:
        words = f"{max(1, round(seconds))} s"
    else:
        words = f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
    return words.replace(" ", "\u00a0")


def bar(state: TaskState, progress: Progress | None, stopping: str = "") -> str:
    """The progress bar: stage and step, percent, time left, and this step's numbers.

    ``data-state`` tells the page's script whether the task is still alive.
    """
    if state in ("finished", "unknown"):
        return f'<div class="ziplora-bar" data-state="{state}" hidden></div>'
    percent, text, metrics = 0.0, "Waiting for its turn", ""
    if progress is not None:
        percent = 100 * min(1.0, progress.step / max(1, progress.total))
        parts = [progress.text or progress.stage.capitalize(), f"{percent:.0f} %"]
        if progress.seconds_left is not None and not stopping:
            parts.append(f"about {duration(progress.seconds_left)} left")
        text = " · ".join(parts)
        metrics = " · ".join(
            f"{name.replace('_', ' ')} {number(value)}" for name, value in progress.metrics.items()
        )
    elif state == "running":
        text = "Starting"
    if stopping:
        text = f"{stopping} · {text}"
    return (
        f'<div class="ziplora-bar" data-state="{state}" role="progressbar" aria-label="Progress of the merge" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent:.0f}">'
        f'<div class="ziplora-bar-track"><div class="ziplora-bar-fill" style="width:{percent:.1f}%"></div></div>'
        f'<div class="ziplora-bar-text">{escape(text)}</div>'
        f'<div class="ziplora-bar-metrics">{escape(metrics)}</div></div>'
    )


def running(ticket: str) -> str:
    """The ticket of the task that runs, for the page's script; it may be empty."""
    return f'<div data-ticket="{escape(ticket)}"></div>'


def steering(merge: Steerable | None, sliders: int = 0) -> str:
    """One line about a merge that can be exported again, of whose LoRAs so many have a slider."""
    if merge is None:
        return '<div class="ziplora-facts">Choose a merged LoRA whose coefficients were saved.</div>'
    sources = " + ".join(merge.loras)
    settings = merge.settings
    parts = [sources, settings.method, f"rank {settings.rank}", settings.precision]
    if merge.checkpoint:
        parts.append(f"merged with {merge.checkpoint}")
    if len(merge.loras) > sliders:
        parts.append(f"{', '.join(merge.loras[sliders:])} can't be steered here and stay as they are")
    return f'<div class="ziplora-facts">{escape(" · ".join(parts))}</div>'


def error(message: str) -> str:
    """A red box with the sentences of an error."""
    return f'<div class="ziplora-box ziplora-error" role="alert" data-outcome="error">{escape(message)}</div>'


def unexpected(problem: Exception) -> str:
    """A red box for an exception that nobody foresaw; its traceback is in the log."""
    return error(
        f"The merge failed for an unforeseen reason ({type(problem).__name__}). Nothing was written. "
        "The console shows the details; please report them."
    )


def notice(message: str, outcome: str = "notice") -> str:
    """A neutral box."""
    return f'<div class="ziplora-box" role="status" data-outcome="{escape(outcome)}">{escape(message)}</div>'


def result(report: MergeReport) -> str:
    """What was written, its key figures and its warnings."""
    file = Path(report.output)
    early = " It stopped optimising early." if report.learnt.stopped_early else ""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in figures(report)
    )
    return (
        '<div class="ziplora-box ziplora-done" role="status" data-outcome="done">'
        f"<p>Wrote <b>{escape(file.name)}</b> in {escape(duration(report.seconds))}.{early}</p>"
        f'<p class="ziplora-path">{escape(str(file.parent))}</p>{_beside(report)}'
        f"{listed(report.warnings, 'ziplora-warnings')}<table>{rows}</table></div>"
    )


def _beside(report: MergeReport) -> str:
    names = ", ".join(report.report_files)
    return f'<p class="ziplora-path">Report: {escape(names)}</p>' if names else ""


def listed(sentences: Iterable[str], style: str) -> str:
    """Sentences as a list of a style; nothing when there is none."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{style}">{items}</ul>' if items else ""
