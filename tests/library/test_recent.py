"""The last merges are remembered, also by the next program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.library.recent import REMEMBERED_MERGES, RecentMerges


def request(
    subject: str = "cat", style: str = "ink", prompt: str = "a cat", combined: str = ""
) -> MergeRequest:
    return MergeRequest.pair(
        LoraInput(subject, prompt, 0.8),
        LoraInput(style, "ink", 1.2),
        "merged",
        settings=MergeSettings(combined_prompt=combined),
    )


def names(recent: RecentMerges) -> list[list[str]]:
    return [[lora.lora for lora in merge.loras] for merge in recent.merges()]


def test_the_newest_is_first_and_a_pair_counts_once(tmp_path: Path) -> None:
    recent = RecentMerges(tmp_path / "data")
    for one in (request(), request("dog"), request(prompt="my cat", combined="my cat, ink")):
        recent.note(one)
    assert names(recent) == [["cat", "ink"], ["dog", "ink"]]
    (newest, _) = RecentMerges(tmp_path / "data").merges()
    assert newest.loras == request(prompt="my cat").loras and newest.combined_prompt == "my cat, ink"
    assert RecentMerges(tmp_path / "data").find(newest.key) == newest
    assert recent.find("none") is None


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    recent = RecentMerges(tmp_path)
    for number in range(REMEMBERED_MERGES + 3):
        recent.note(request(f"cat{number}"))
    assert len(names(recent)) == REMEMBERED_MERGES
    assert names(RecentMerges(tmp_path)) == names(recent)


def test_without_a_folder_they_last_as_long_as_the_program() -> None:
    recent = RecentMerges()
    recent.note(request())
    assert names(recent) == [["cat", "ink"]] and names(RecentMerges()) == []


def test_what_is_not_installed_any_more_is_named() -> None:
    recent = RecentMerges()
    recent.note(request())
    assert recent.merges()[0].missing(["ink"]) == ("cat",)
    assert recent.merges()[0].missing(["ink", "cat"]) == ()


@pytest.mark.parametrize("content", ["", "{", "{}", "null", "3", "[" * 100_000])
def test_a_damaged_file_is_no_merge(tmp_path: Path, content: str) -> None:
    (tmp_path / "recent.json").write_text(content, encoding="utf-8")
    recent = RecentMerges(tmp_path)
    assert recent.merges() == []
    recent.note(request())
    assert names(RecentMerges(tmp_path)) == [["cat", "ink"]]


@pytest.mark.parametrize(
    "row",
    [
        3,
        {},
        {"loras": [], "combined_prompt": ""},
        {"loras": [{"lora": "a", "prompt": "", "weight": "x", "role": "subject"}] * 2, "combined_prompt": ""},
        {"loras": [{"lora": "a", "prompt": "", "weight": 0, "role": "subject"}] * 2, "combined_prompt": ""},
        {"loras": [{"lora": "a", "prompt": "", "weight": 1, "role": "other"}] * 2, "combined_prompt": ""},
    ],
)
def test_a_damaged_merge_is_left_out_and_the_others_stay(tmp_path: Path, row: object) -> None:
    RecentMerges(tmp_path).note(request())
    file = tmp_path / "recent.json"
    file.write_text(json.dumps([row, *json.loads(file.read_text(encoding="utf-8"))]), encoding="utf-8")
    assert names(RecentMerges(tmp_path)) == [["cat", "ink"]]
