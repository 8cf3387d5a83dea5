"""The report beside a merged file: whole, alone, escaped, and never in a merge's way."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from html.parser import HTMLParser

import pytest

from lib_ziplora.config import LoraInput
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.reexport import ReexportRequest
from lib_ziplora.report import files as reporting
from lib_ziplora.report.document import document
from lib_ziplora.report.html import DATA_ID, page

from ..support.small_merges import pico_host, request

EVIL = '</script><img src=https://evil.example/x onerror=alert(1)>"'
NAMES = ("merged.report.html", "merged.report.json")


class Reader(HTMLParser):
    """Tags that a page has, addresses that it names, and its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.data = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._inside = dict(attrs).get("id") or ""
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "srcset")]

    def handle_data(self, data):
        if self._inside == DATA_ID:
            self.data += data

    def handle_endtag(self, tag):
        self._inside = ""


@pytest.fixture()
def host(tmp_path):
    return pico_host(tmp_path)


def asked(overwrite=False, report=True, **settings):
    return dataclasses.replace(request(**settings), overwrite=overwrite, report=report)


def test_both_files_lie_beside_the_merge_and_say_the_same(host):
    report = run(asked(method="ziplora", steps=3), host)
    assert report.report_files == NAMES and not any("report" in warning for warning in report.warnings)
    told = json.loads((host.folder / NAMES[1]).read_text(encoding="utf-8"))
    read = Reader((host.folder / NAMES[0]).read_text(encoding="utf-8"))
    assert json.loads(read.data) == told
    assert told["report"]["model_hash"] == report.model_hash and told["settings"]["steps"] == 3
    assert [lora["lora"] for lora in told["loras"]] == ["dog", "ink"]
    assert all(len(lora["sha256"]) == 64 for lora in told["loras"])
    assert len(told["history"]) == 3 and told["tag"] == "<lora:merged:1>"
    assert read.addresses == [] and not read.tags & {"img", "link", "iframe"}


def test_none_is_written_unless_asked_for(host):
    report = run(asked(report=False), host)
    assert report.report_files == () and not list(host.folder.glob("*.report.*"))


def test_names_prompts_and_warnings_are_escaped(host):
    run(asked(combined_prompt=EVIL, negative_prompt=EVIL), host)
    found = document(host, "merged")
    saved = dataclasses.replace(
        found.saved,
        loras=tuple(dataclasses.replace(lora, prompt=EVIL) for lora in found.saved.loras),
        sources=tuple(dataclasses.replace(source, name=EVIL) for source in found.saved.sources),
    )
    report = dataclasses.replace(run(asked(overwrite=True), host), warnings=(EVIL,), checkpoint=EVIL)
    text = page(dataclasses.replace(found, saved=saved, report=report))
    read = Reader(text)
    assert "img" not in read.tags and read.addresses == []
    assert text.count("</script>") == 1 and json.loads(read.data)["loras"][0]["prompt"] == EVIL


def test_an_overwritten_merge_replaces_its_report(host):
    run(asked(), host)
    first = (host.folder / NAMES[1]).read_bytes()
    run(asked(overwrite=True, weight=(0.5, 1.0)), host)
    assert (host.folder / NAMES[1]).read_bytes() != first
    run(asked(overwrite=True, report=False), host)
    assert not list(host.folder.glob("*.report.*"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wanted", [True, False])
def test_files_of_others_are_left_alone(host, name, wanted):
    (host.folder / name).write_text('{"activation text": "mine"}', encoding="utf-8")
    report = run(asked(report=wanted), host)
    assert (host.folder / name).read_text(encoding="utf-8") == '{"activation text": "mine"}'
    assert (host.folder / "merged.safetensors").is_file() and report.report_files == ()
    assert any(name in sentence for sentence in report.warnings) == wanted


def test_no_report_becomes_the_card_of_another_lora(host):
    (host.folder / "merged.report.safetensors").write_bytes((host.folder / "dog.safetensors").read_bytes())
    report = run(asked(), host)
    assert "merged.report.safetensors" in report.warnings[-1]
    assert not (host.folder / NAMES[1]).exists()


def test_a_report_that_fails_does_not_lose_the_merge(host, monkeypatch, caplog):
    def fail(_):
        raise KeyError("secret")

    monkeypatch.setattr(reporting, "page", fail)
    report = run(asked(), host)
    assert (host.folder / "merged.safetensors").is_file() and (host.folder / "merged.ziplora").is_file()
    assert "KeyError" in report.warnings[-1] and report.report_files == ()
    assert not list(host.folder.glob(".*.tmp"))


def test_a_re_export_has_a_report_of_its_own_and_the_merges_history(host):
    run(asked(method="ziplora", steps=2), host)
    run(ReexportRequest("merged", "again", style_weights=(0.5,), report=True), host)
    told = json.loads((host.folder / "again.report.json").read_text(encoding="utf-8"))
    assert told["loras"][1]["weight"] == 0.5 and len(told["history"]) == 2


def test_the_tables_of_the_page_hold_every_setting(host):
    run(asked(), host)
    text = (host.folder / NAMES[0]).read_text(encoding="utf-8")
    rows = re.findall(r"<tr( class=changed)?><th scope=\"row\">(.*?)</th>", html.unescape(text))
    found = document(host, "merged")
    assert {label for label, _, _ in found.settings()} <= {label for _, label in rows}
    changed = {label for label, _, default in found.settings() if not default}
    assert changed == {label for mark, label in rows if mark} != set()


def test_inputs_are_told_in_their_order(host):
    run(
        dataclasses.replace(asked(), loras=(LoraInput("ink", "b", role="style"), LoraInput("dog", "a"))), host
    )
    assert [row["Role"] for row in document(host, "merged").inputs()] == ["style", "subject"]
