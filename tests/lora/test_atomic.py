"""Files that are written together: all of them, or each as it was before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lib_ziplora.errors import OutputError
from lib_ziplora.lora.io.atomic import all_or_none, appearing


def no_links(*_args, **_kwargs):
    raise NotImplementedError


@pytest.fixture(params=["links", "no links"])
def folder(request, tmp_path, monkeypatch):
    if request.param == "no links":
        monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "old").write_text("old")
    return tmp_path


def write(file: Path, written: list[Path] | None) -> None:
    with appearing(file, True) as temporary:
        temporary.write_text("new")
    if written is not None:
        written.append(file)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_what_ends_well_is_all_new(folder):
    files = [folder / "old", folder / "a"]
    with all_or_none(files) as written:
        for file in files:
            write(file, written)
    assert content(folder) == {"old": "new", "a": "new"}


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("failure", [OutputError("no"), KeyboardInterrupt()])
def test_what_fails_is_all_old(folder, failure, count):
    files = [folder / "a", folder / "old", folder / "b"]
    with pytest.raises(type(failure)), all_or_none(files) as written:
        for file in files[:count]:
            write(file, written)
        raise failure
    assert content(folder) == {"old": "old"}


def test_an_old_file_can_be_read_under_its_name_until_it_is_replaced(tmp_path):
    (tmp_path / "old").write_text("old")
    with all_or_none([tmp_path / "old"]) as written:
        assert (tmp_path / "old").read_text() == "old"
        write(tmp_path / "old", written)


def test_a_file_of_somebody_else_is_left_alone(folder):
    """It took the name meanwhile, so ours was refused and is not among the written ones."""
    with pytest.raises(OutputError, match="exists already"), all_or_none([folder / "a"]):
        (folder / "a").write_text("theirs")
        with appearing(folder / "a", False) as temporary:
            temporary.write_text("ours")
    assert content(folder) == {"old": "old", "a": "theirs"}
