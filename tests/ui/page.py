"""The tab without a browser: its controls' values, and its events with what follows them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from typing import Any

import gradio as gr

from lib_ziplora.jobs.service import Service
from lib_ziplora.ui import tab

EVIL = "<img src=x onerror=alert(1)>"
VOID = {"br", "img", "hr"}
ALIVE = ("queued", "running")


class Page:
    """One open page of the tab; several of one service are like several browsers.

    Attributes:
        job: the one that the page's script follows.
        picture: number of the picture that is chosen in the gallery.
        confirms: whether the user says yes to what the page asks.
    """

    def __init__(self, service: Service, defaults: dict[str, Any] | None = None, folder: str = "") -> None:
        self.service = service
        self.blocks = tab.build(service, defaults, folder)
        self.job, self.picture, self.recalled = "", -1, ""
        self.confirms = True
        self._ids = {
            block.elem_id.removeprefix("ziplora_"): block._id
            for block in self.blocks.blocks.values()
            if str(getattr(block, "elem_id", None) or "").startswith("ziplora_")
        }
        self.values = {key: getattr(block, "value", None) for key, block in self.blocks.blocks.items()}
        self.shown: dict[str, Any] = {}
        """Of each control, what beside its value the last updates have changed."""

    def component(self, name: str) -> Any:
        return self.blocks.blocks[self._ids[name]]

    def __contains__(self, name: str) -> bool:
        return name in self._ids

    def __getitem__(self, name: str) -> Any:
        return self.values[self._ids[name]]

    def set(self, **values: Any) -> None:
        for name, value in values.items():
            self.values[self._ids[name]] = value

    def pick(self, **names: str) -> None:
        """Choose LoRAs, as the page's script does."""
        for slot, name in names.items():
            self.set(**{slot: name})
            self.fire(slot, "change")

    def fire(self, name: str, event: str = "click") -> None:
        """An event of a control, and all that follow it."""
        for index, dependency in enumerate(self.blocks.config["dependencies"]):
            if (self._ids[name], event) in _targets(dependency):
                self._run(index)

    def recall(self, key: str) -> None:
        """Press the button of a recent merge."""
        self.recalled = key
        self.fire("recall")

    def start(self, button: str = "generate") -> str:
        """Press a button that starts a job, and follow it; its id, "" where it was refused."""
        self.fire(button)
        self.job = self["job"]
        return self.job

    def finish(self) -> None:
        """Follow the job until it has ended and its outcome is shown."""
        for _ in range(3000):
            self.fire("poll")
            if self.state not in ALIVE:
                break
            time.sleep(0.01)
        self.fire("outcome")
        self.job = ""

    def run(self, button: str = "generate") -> None:
        assert self.start(button), self["result"]
        self.finish()

    @property
    def state(self) -> str:
        """What the bar says of the job that is followed."""
        found = re.search(r'data-state="(\w+)"', self["bar"])
        assert found
        return found[1]

    def figure(self, row: str, box: str = "preflight") -> str:
        """A value of a box's table."""
        found = re.search(f"<th>{row}</th><td>(.*?)</td>", self[box])
        assert found, self[box]
        return found[1]

    def _run(self, index: int) -> None:
        dependency = self.blocks.config["dependencies"][index]
        known = self.blocks.fns
        function = (known[index] if isinstance(known, dict) else list(known)[index]).fn
        if function is not None:
            given = [self.values[key] for key in dependency["inputs"]]
            scripted = self._scripted(str(dependency["js"]), given)
            if scripted != given:  # gradio takes no value of a State from the page
                assert not isinstance(self.blocks.blocks[dependency["inputs"][0]], gr.State)
            outputs = dependency["outputs"]
            made = function(*scripted)
            for key, value in zip(outputs, [made] if len(outputs) == 1 else made, strict=True):
                self._update(key, value)
        for later, other in enumerate(self.blocks.config["dependencies"]):
            if other.get("trigger_after") == index:
                self._run(later)

    def _scripted(self, js: str, given: list[Any]) -> list[Any]:
        """The values that the page's script hands on."""
        first = {"followed()": self.job, "chosenPicture()": self.picture, "recalled()": self.recalled}
        if "confirmed(" in js and not self.confirms:
            return ["", *given[1:]]
        return next(([value, *given[1:]] for call, value in first.items() if call in js), given)

    def _update(self, key: int, value: Any) -> None:
        if not (isinstance(value, dict) and "__type__" in value):
            self.values[key] = value
            return
        if "value" in value:
            self.values[key] = value["value"]
        names = [name for name, other in self._ids.items() if other == key]
        self.shown |= {f"{name}.{what}": new for name in names for what, new in value.items()}


def _targets(dependency: dict[str, Any]) -> list[tuple[int, str]]:
    """(control, event) pairs, as gradio 3 and later ones write them."""
    event = dependency.get("trigger", "")
    return [(one, event) if isinstance(one, int) else (one[0], one[1]) for one in dependency["targets"]]


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


class Texts(Balance):
    """The text nodes of a piece of HTML."""

    def __init__(self, html: str) -> None:
        self.found: list[str] = []
        super().__init__(html)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.found.append(data.strip())


def words(html: str) -> str:
    """What people read."""
    return " ".join(Texts(html).found)


def rows(listing: str) -> list[list[Any]]:
    """What the pickers' list says of each LoRA: name, note, state."""
    found = re.search(r'data-loras="([^"]*)"', listing)
    assert found
    shown: list[list[Any]] = json.loads(unescape(found[1]))
    return shown


def recent_keys(html: str) -> Iterator[str]:
    return iter(re.findall(r'data-recent="(\w+)"', html))
