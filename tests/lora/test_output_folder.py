"""A file is whole under its name or not there, and nothing is replaced unless asked."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest

from lib_ziplora.errors import OutputError
from lib_ziplora.lora.io import write as writing
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.write import check_output, write_lora
from lib_ziplora.lora.layer import LoraLayer, StackedLayer

from .files import only, sample_layers


def test_an_existing_file_is_not_replaced(tmp_path):
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"m\.safetensors exists already"):
        write_lora(target, sample_layers())
    assert target.read_bytes() == b"mine"
    assert only(tmp_path, "m.safetensors")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_while_writing_is_not_replaced(tmp_path, monkeypatch, links):
    target = tmp_path / "m.safetensors"
    fsync = os.fsync

    def somebody_is_faster(handle):
        fsync(handle)
        target.write_bytes(b"theirs")

    monkeypatch.setattr(os, "fsync", somebody_is_faster)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(OutputError, match="exists already"):
        write_lora(target, sample_layers())
    assert target.read_bytes() == b"theirs"
    assert only(tmp_path, "m.safetensors")


def no_links(*_):
    raise OSError(errno.EPERM, "no hard links here")


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    write_lora(tmp_path / "m.safetensors", sample_layers())
    assert set(read_lora(tmp_path / "m.safetensors").layers) == set(sample_layers())
    assert only(tmp_path, "m.safetensors")


def test_overwriting_replaces_the_file(tmp_path):
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    write_lora(target, sample_layers(), overwrite=True)
    assert set(read_lora(target).layers) == set(sample_layers())
    assert only(tmp_path, "m.safetensors")


FAILURES = {
    "disk full": (OSError(errno.ENOSPC, "No space left on device"), OutputError, "disk is full"),
    "read only": (OSError(errno.EROFS, "Read-only file system"), OutputError, "can't be written to"),
    "something": (OSError(errno.EIO, "Input/output error"), OutputError, "Input/output error"),
    "Ctrl+C": (KeyboardInterrupt(), KeyboardInterrupt, None),
}


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("failure", sorted(FAILURES))
@pytest.mark.parametrize("where", ["fsync", "tensors", "replace"])
def test_a_failed_write_leaves_everything_as_it_was(tmp_path, monkeypatch, where, failure, overwrite):
    error, kind, words = FAILURES[failure]

    def fail(*_):
        raise error

    if overwrite:
        (tmp_path / "m.safetensors").write_bytes(b"old")
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif where == "tensors":
        for layer in (LoraLayer, StackedLayer):
            monkeypatch.setattr(layer, "copy_factors", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(kind, match=words):
        write_lora(tmp_path / "m.safetensors", sample_layers(), overwrite=overwrite)
    assert only(tmp_path, *(["m.safetensors"] if overwrite else []))
    if overwrite:
        assert (tmp_path / "m.safetensors").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m.pt", "must end in"),
        ("none.safetensors", "WebUI uses"),
        ("a,b.safetensors", "doesn't work in prompts"),
    ],
)
def test_names_are_checked_before_anything_is_written(tmp_path, name, words):
    for attempt in (check_output, lambda path: write_lora(path, sample_layers())):
        with pytest.raises(OutputError, match=words):
            attempt(tmp_path / name)
    assert only(tmp_path)


def test_folders_are_checked_beforehand(tmp_path, monkeypatch):
    check_output(tmp_path / "not there" / "yet" / "m.safetensors")
    assert only(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="is no folder"):
        check_output(tmp_path / "file" / "m.safetensors")
    (tmp_path / "file").unlink()
    (tmp_path / "f.safetensors").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path / "f.safetensors", overwrite=True)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage(10, 9, 1 << 20))
    check_output(tmp_path / "m.safetensors", size=1 << 20)
    with pytest.raises(OutputError, match=r"needs 5 MB, but .* has 1 MB left"):
        check_output(tmp_path / "m.safetensors", size=5 << 20)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is writable for root")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="can't be written to"):
        check_output(tmp_path / "m.safetensors")
    tmp_path.chmod(0o700)


def test_a_folder_that_refuses_new_files(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutputError, match="can't be written to"):
        check_output(tmp_path / "m.safetensors")
