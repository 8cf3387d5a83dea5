"""The card that the command line leaves beside a merge, as the tab does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lib_ziplora import cli
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.library.card import card_path, write_card

from ..support import minixl

PAIR = (str(minixl.SUBJECT), str(minixl.STYLE))
PROMPTS = ("--subject-prompt", "a sks icon", "--style-prompt", "a bell icon in szn style")
DIRECT = ("--method", "direct", *PROMPTS)


def merge(out: Path, *more: str) -> int:
    return cli.main(["merge", *PAIR, *DIRECT, "-o", str(out), *more])


def card(lora: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(card_path(lora).read_text(encoding="utf-8"))
    return found


def test_a_merge_and_its_export_get_the_card_that_the_tab_writes(tmp_path: Path) -> None:
    out, again = tmp_path / "both.safetensors", tmp_path / "again.safetensors"
    assert merge(out) == 0
    assert card(out)["activation text"] == "a sks icon in szn style"
    before = card(out)
    card_path(out).unlink()
    write_card("both", StandaloneHost(None, [tmp_path], device="cpu"))
    assert card(out) == before
    assert cli.main(["re-export", str(out), "-o", str(again)]) == 0
    assert card(again)["activation text"] == before["activation text"]


def test_what_the_user_has_written_stays(tmp_path: Path) -> None:
    out = tmp_path / "both.safetensors"
    card_path(out).write_text(json.dumps({"activation text": "my own", "mine": 1}), encoding="utf-8")
    assert merge(out) == 0
    assert card(out)["activation text"] == "my own" and card(out)["mine"] == 1
    assert "ZipLoRA" in str(card(out)["description"])


def test_no_card_leaves_the_card_as_it_is(tmp_path: Path) -> None:
    for file in (minixl.SUBJECT, minixl.STYLE):
        shutil.copy(file, tmp_path)
    assert merge(tmp_path / "both.safetensors", "--no-card") == 0
    names = ("--subject", minixl.SUBJECT.stem, "--style", minixl.STYLE.stem, "--lora-dir", str(tmp_path))
    assert cli.main(["matrix", *names, *DIRECT, "-o", "x {subject} {style}", "--no-card"]) == 0
    assert list(tmp_path.glob("*.json")) == []
    assert cli.main(["matrix", *names, *DIRECT, "-o", "y {subject} {style}"]) == 0
    assert [file.name[0] for file in tmp_path.glob("*.json")] == ["y"]


def test_a_damaged_card_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both.safetensors"
    card_path(out).write_text("{", encoding="utf-8")
    assert merge(out) == 0
    assert "its card is not" in capsys.readouterr().err
    assert card_path(out).read_text(encoding="utf-8") == "{" and out.is_file()


def test_a_report_in_the_cards_place_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both.safetensors"
    report = ("--report", str(tmp_path / "both.json"))
    assert merge(out, *report) == cli.FAILED
    assert "--no-card" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
    assert merge(out, *report, "--no-card") == 0
    assert json.loads((tmp_path / "both.json").read_text(encoding="utf-8"))["name"] == "both"
