"""What the tab says: progress bar, facts about a LoRA, results and errors, as escaped HTML.

Names and metadata of LoRA files are written by strangers; every string that reaches a page
goes through ``html.escape`` here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Literal

from ..hosts import Progress
from ..job import CatalogEntry, MergeReport, Steerable

TaskState = Literal["waiting", "running", "finished", "unknown"]


def duration(seconds: float) -> str:
    """Seconds in words: ``40 s``, ``3 min``, ``1 h 20 min`` (with no-break spaces)."""
    minutes = round(seconds / 60)
    if seconds < 90:
        words = f"{max(1, round(seconds))} s"
    else:
        words = f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
    return words.replace(" ", "\u00a0")


def number(value: float) -> str:
    """A key figure with three significant digits."""
    return f"{value:.3g}"


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


def facts(entry: CatalogEntry | None, activation: str, chosen: str) -> str:
    """One line about a picked LoRA, or why it can't be used."""
    if not chosen:
        return '<div class="ziplora-facts">Choose a LoRA.</div>'
    if entry is None:
        gone = f"{chosen} is not installed any more. Refresh the list."
        return f'<div class="ziplora-facts ziplora-bad">{escape(gone)}</div>'
    parts = [str(entry.base)]
    if entry.rank:
        parts.append(f"rank {entry.rank}")
    if entry.layers:
        parts.append(f"{entry.layers} layers")
    if activation:
        parts.append(f"activation text: {activation}")
    line = escape(" · ".join(parts))
    if entry.usable:
        return f'<div class="ziplora-facts">{line}</div>'
    return f'<div class="ziplora-facts ziplora-bad"><b>Not usable:</b> {escape(entry.reason)}<br>{line}</div>'


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
    early = " It stopped optimising early." if report.stopped_early else ""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in figures(report)
    )
    return (
        '<div class="ziplora-box ziplora-done" role="status" data-outcome="done">'
        f"<p>Wrote <b>{escape(file.name)}</b> in {escape(duration(report.seconds))}.{early}</p>"
        f'<p class="ziplora-path">{escape(str(file.parent))}</p>'
        f"{listed(report.warnings, 'ziplora-warnings')}<table>{rows}</table></div>"
    )


def figures(report: MergeReport) -> Sequence[tuple[str, str]]:
    """The rows of the result's table, as (name, value); what was not measured has no row."""
    learnt = report.steps > 0
    rows: list[tuple[str, str | None]] = [
        ("Method", f"{report.method}, {report.steps} updates" if learnt else report.method),
        ("Mean travel |m − 1|", number(report.mean_travel) if learnt else None),
        ("Similarity", _change(report.similarity_start, report.similarity_end) if learnt else None),
        ("Loss", _change(report.loss_start, report.loss_end)),
        ("Held-out loss", _change(report.heldout_loss_start, report.heldout_loss_end)),
        ("Rank", str(report.rank)),
        ("Layers", ", ".join([f"{report.common_layers} common", *_single(report)])),
        ("Seconds", f"{report.seconds:.1f}"),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _single(report: MergeReport) -> list[str]:
    return [f"{count} {label} only" for label, count in report.single_layers.items()]


def _change(start: float | None, end: float | None) -> str | None:
    return None if start is None or end is None else f"{number(start)} → {number(end)}"


def listed(sentences: Iterable[str], style: str) -> str:
    """Sentences as a list of a style; nothing when there is none."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{style}">{items}</ul>' if items else ""
