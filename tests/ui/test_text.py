"""Words of the tab: times, bar, report."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.hosts import Progress
from lib_ziplora.ui import text

from .fake_host import EVIL, report

REQUEST = MergeRequest.pair(LoraInput("cat"), LoraInput("ink"), "merged")
VOID = {"br", "img", "hr"}


class Balance(HTMLParser):
    """Open tags and every tag's name."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (40.4, "40 s"), (89, "89 s"), (100, "2 min"), (3000, "50 min"), (5400, "1 h 30 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert text.duration(seconds).replace("\u00a0", " ") == words


def test_bar_shows_stage_percent_time_and_figures() -> None:
    html = text.bar(
        "running", Progress("sampling", 30, 120, 90.0, "Drawing with cat", {"subject_loss": 0.12345})
    )
    for words in ("Drawing with cat", "25 %", "about 2\u00a0min left", "subject loss 0.123", "width:25.0%"):
        assert words in html
    assert "left" not in text.bar("running", Progress("reading", 0, 120, None, "Reading"))
    assert "Waiting" in text.bar("waiting", None)


def test_bar_survives_odd_counts() -> None:
    assert "width:100.0%" in text.bar("running", Progress("done", 7, 5, 0.0, ""))
    assert "width:0.0%" in text.bar("running", Progress("reading", 0, 0, None, ""))


def test_result_lists_what_was_measured() -> None:
    rows = dict(text.figures(report(REQUEST)))
    assert rows["Similarity"] == "1 → 0.5" and rows["Held-out loss"] == "2 → 0.6"
    assert rows["Layers"] == "90 common, 4 subject only, 2 style only"
    many = report(REQUEST, single_layers={"subject 1": 3, "subject 2": 0, "style": 1})
    assert dict(text.figures(many))["Layers"] == "90 common, 3 subject 1 only, 0 subject 2 only, 1 style only"
    direct = report(
        MergeRequest(REQUEST.loras, "sum", settings=MergeSettings(method="direct")),
        steps=0,
        loss_start=None,
        loss_end=None,
        heldout_loss_start=None,
        heldout_loss_end=None,
    )
    assert set(dict(text.figures(direct))) == {"Method", "Rank", "Layers", "Seconds"}


def test_everything_is_balanced_and_escaped() -> None:
    hostile = report(REQUEST, output=f"{EVIL}/{EVIL}.safetensors", warnings=(EVIL,))
    for html in (
        text.result(hostile),
        text.error(EVIL),
        text.notice(EVIL),
        text.bar("running", Progress(EVIL, 1, 2, 1.0, EVIL, {EVIL: 1.0}), EVIL),
        text.unexpected(ValueError(EVIL)),
    ):
        parsed = Balance(html)
        assert parsed.open == [] and "img" not in parsed.seen
