"""Merges deleted and renamed with what belongs to them, and nothing else."""

from __future__ import annotations

import dataclasses
import json

import pytest
from PIL import Image
from safetensors import safe_open

from lib_ziplora.errors import LoraFileError, OutputError
from lib_ziplora.hosts import Drawn
from lib_ziplora.jobs.service import Service
from lib_ziplora.library.card import write_preview
from lib_ziplora.library.merges import merge_files, remove_merge, rename_merge
from lib_ziplora.report.document import document

from ..support.exports import again, content, host_of_three, same_tensors, tensors
from ..support.small_merges import request

SOURCES = {"dog.safetensors", "cat.safetensors", "ink.safetensors"}
WRITTEN = {f"merged{end}" for end in (".safetensors", ".ziplora", ".json", ".preview.png")}
WRITTEN |= {f"merged.report.{end}" for end in ("html", "json")}
WRITTEN |= {f"merged_{role}.safetensors" for role in ("subject", "style")}


@pytest.fixture
def host(tmp_path):
    """A merge with all that can belong to one, beside the LoRAs that it was made of."""
    host = host_of_three(tmp_path)
    service = Service(host)
    merge = dataclasses.replace(request(split=True), report=True)
    service.run(service.submit(merge, background=False))
    write_preview("merged", host, Drawn(Image.new("RGB", (8, 8)), "a dog"))
    assert {path.name for path in tmp_path.iterdir()} == SOURCES | WRITTEN
    return host


def names(host):
    return {path.name for path in host.folder.iterdir()}


def headers(host, name):
    with safe_open(host.folder / f"{name}.safetensors", "pt") as opened:
        return opened.metadata()


def test_a_merge_is_deleted_with_what_was_written_for_it(host):
    before = content(host)
    host.refreshed.clear()
    files = remove_merge(host, "merged")
    assert {path.name for path in files.written} == WRITTEN and files.own == ()
    assert content(host) == {name: before[name] for name in SOURCES}
    assert {path.name for path in host.refreshed} == {
        name for name in WRITTEN if name.endswith("safetensors")
    }


def test_what_is_the_users_stays_when_a_merge_is_deleted_and_goes_with_it_when_it_is_renamed(host):
    card, picture = host.folder / "merged.json", host.folder / "merged.png"
    card.write_text(json.dumps({"notes": "mine"}))
    Image.new("RGB", (4, 4)).save(picture)
    (host.folder / "merged.report.html").write_text("my own page")
    (host.folder / "merged.txt").write_text("mine")
    again(host, "merged 2")
    kept = content(host)
    rename_merge(host, "merged", "other")
    assert (host.folder / "other.json").read_bytes() == kept["merged.json"]
    assert (host.folder / "other.png").read_bytes() == kept["merged.png"]
    assert names(host) >= {"merged.report.html", "merged.txt", "merged 2.safetensors", "merged 2.ziplora"}
    files = remove_merge(host, "other")
    assert {path.name for path in files.own} == {"other.json", "other.png"}
    left = {"other.json", "other.png", "merged.report.html", "merged.txt"}
    assert names(host) == SOURCES | left | {"merged 2.safetensors", "merged 2.ziplora"}


@pytest.mark.parametrize("change", [remove_merge, lambda host, name: rename_merge(host, name, "new")])
@pytest.mark.parametrize("name", ["dog", "gone", "stranger"])
def test_a_lora_of_somebody_else_is_left_alone(host, change, name):
    """Also one beside which the coefficients of another merge lie."""
    (host.folder / "stranger.safetensors").write_bytes((host.folder / "cat.safetensors").read_bytes())
    (host.folder / "stranger.ziplora").write_bytes((host.folder / "merged.ziplora").read_bytes())
    before = content(host)
    with pytest.raises(LoraFileError):
        change(host, name)
    assert content(host) == before


def test_a_part_is_one_of_this_merge_alone(host):
    """``merged_subject`` may also be the name of another merge, or of anything."""
    (host.folder / "merged_style.safetensors").write_bytes((host.folder / "ink.safetensors").read_bytes())
    (host.folder / "merged_subject.safetensors").unlink()
    again(host, "merged_subject", subject_weights=(0.5,))
    stays = {"merged_style.safetensors", "merged_subject.safetensors"}
    assert not stays & {path.name for path in merge_files(host, "merged").written}


def test_a_renamed_merge_is_the_same_under_another_name(host):
    old, report = tensors(host, "merged"), document(host, "merged").words
    files = rename_merge(host, "merged", "sub/rose in ink")
    folder = host.folder / "sub"
    assert {path.name for path in folder.iterdir()} == {
        name.replace("merged", "rose in ink") for name in WRITTEN
    }
    assert names(host) == SOURCES | {"sub"} and files.lora == folder / "rose in ink.safetensors"
    assert document(host, "rose in ink").words == report
    found = headers(host, "sub/rose in ink")
    assert found["ss_output_name"] == found["modelspec.title"] == "rose in ink"
    assert json.loads(found["ziplora_coefficients"])["file"] == "rose in ink.ziplora"
    assert headers(host, "sub/rose in ink_style")["ss_output_name"] == "rose in ink_style"
    now = tensors(host, "sub/rose in ink")
    assert now.keys() == old.keys() and all((now[key] == old[key]).all() for key in old)
    again(host, "back", source="rose in ink")
    assert same_tensors(host, "back", "sub/rose in ink")


@pytest.mark.parametrize(
    ("taken", "wanted"),
    [
        ("new.safetensors", "new"),
        ("new.json", "new"),
        ("new_style.safetensors", "new"),
        ("", "merged"),
        ("", "a:b"),
    ],
)
def test_a_name_that_is_taken_changes_nothing(host, taken, wanted):
    if taken:
        (host.folder / taken).write_bytes(b"another's")
    before = content(host)
    with pytest.raises(OutputError):
        rename_merge(host, "merged", wanted)
    assert content(host) == before
