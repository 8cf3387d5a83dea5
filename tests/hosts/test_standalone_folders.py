"""LoRA folders of the wild: links, endings in capitals, one name twice, names with any letters, broken names."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.errors import LoraFileError, OutputError
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.library.catalog import catalog
from lib_ziplora.names import TAG, readable
from lib_ziplora.pipeline import merge as pipeline

from ..support import minixl


def put(path: Path, source: Path = minixl.SUBJECT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path)
    return path


def names(*folders: Path) -> dict[str, Path]:
    return {entry.name: entry.path for entry in StandaloneHost(None, folders).loras()}


def test_linked_folders_are_walked_once_and_a_loop_ends(tmp_path: Path) -> None:
    loras, elsewhere = tmp_path / "loras", tmp_path / "elsewhere"
    put(elsewhere / "deep" / "far.safetensors")
    put(loras / "near.safetensors")
    (loras / "linked").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "loop").symlink_to(loras, target_is_directory=True)
    (loras / "again").symlink_to(elsewhere, target_is_directory=True)
    (loras / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    assert set(names(loras)) == {"near", "far"}
    assert set(names(loras, elsewhere, loras)) == {"near", "far"}


def test_endings_in_capitals_count(tmp_path: Path) -> None:
    path = put(tmp_path / "Cat.SafeTensors")
    (tmp_path / "Cat.json").write_text(json.dumps({"activation text": "a cat"}))
    host = StandaloneHost(None, [tmp_path], strict=True)
    (entry,) = host.loras()
    assert (entry.name, entry.path, entry.user_metadata["activation text"]) == ("Cat", path, "a cat")
    for name in ("Cat", "Cat.safetensors", "Cat.SafeTensors"):
        assert host.resolve(name) == path
    assert StandaloneHost(None).resolve(str(path)) == path
    assert [one.usable for one in catalog(host)] == [True]


def test_a_merge_goes_into_a_subfolder_and_is_called_by_its_name_alone(tmp_path: Path) -> None:
    subject, style = put(tmp_path / "dog.safetensors"), put(tmp_path / "ink.safetensors", minixl.STYLE)
    host = StandaloneHost(None, [tmp_path], strict=True)
    pair = (LoraInput(subject.stem), LoraInput(style.stem, role="style"))
    settings = MergeSettings(method="direct", split=True)
    report = pipeline.run(MergeRequest(pair, "merges/new/dog in ink", settings=settings), host)
    folder = tmp_path / "merges" / "new"
    assert (
        report.tag == "<lora:dog in ink:1>"
        and host.resolve("dog in ink") == folder / "dog in ink.safetensors"
    )
    stems = {"dog in ink", "dog in ink_subject", "dog in ink_style"}
    assert {path.name for path in folder.iterdir()} == {
        "dog in ink.ziplora",
        *(f"{stem}.safetensors" for stem in stems),
    }
    with safe_open(folder / "dog in ink.safetensors", "pt") as opened:
        assert opened.metadata()["ss_output_name"] == "dog in ink"
    for taken in ("dog in ink", "elsewhere/Dog in Ink"):
        with pytest.raises(OutputError, match="means another LoRA"):
            host.output_path(taken)


def test_files_of_one_name_are_told_apart_and_each_can_be_chosen(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    stem = "pytorch_lora_weights"
    paths = {
        f"a/{stem}": put(one / "a" / f"{stem}.safetensors"),
        f"b/{stem}": put(one / "b" / f"{stem}.safetensors", minixl.STYLE),
    }
    assert names(one) == paths
    for strict in (False, True):
        host = StandaloneHost(None, [one, two], strict=strict)
        for name, path in paths.items():
            assert host.resolve(name) == path
        with pytest.raises(LoraFileError, match=f"2 LoRAs are named {stem}") as refused:
            host.resolve(stem)
        assert all(name in str(refused.value) for name in paths)
        with pytest.raises(OutputError, match="means another LoRA"):
            host.output_path(stem)
    # In two folders of one name: as many folders as it takes.
    put(two / "a" / f"{stem}.safetensors")
    assert set(names(one, two)) == {f"one/a/{stem}", f"one/b/{stem}", f"two/a/{stem}"}
    # Directly in the first folder, where results go: the name itself.
    put(one / f"{stem}.safetensors")
    assert names(one, two)[stem] == one / f"{stem}.safetensors"
    assert len(names(one, two)) == 4
    assert StandaloneHost(None, [one, two]).output_path(stem) == one / f"{stem}.safetensors"


def test_endings_alone_tell_files_apart_too(tmp_path: Path) -> None:
    for folder in (tmp_path / "loras", tmp_path / "loras" / "sub"):
        put(folder / "a.safetensors")
        put(folder / "a.SAFETENSORS", minixl.STYLE)
    found = names(tmp_path / "loras")
    if len({path.name for path in (tmp_path / "loras").iterdir()}) == 3:  # the file system knows the case
        assert len(found) == 4 and len(set(found.values())) == 4


@pytest.mark.parametrize("name", ["🦊 fox", "50% × ink", "{curly} [square]", "👩‍🎨", "it's & #1 @home ~ ^;!"])
def test_any_letters_that_a_tag_takes_go_from_list_to_merge(tmp_path: Path, name: str) -> None:
    """Through the WebUI's rule: the tag is everything up to ``>``, and is cut at ``:``."""
    put(tmp_path / f"{name}.safetensors")
    put(tmp_path / "ink.safetensors", minixl.STYLE)
    host = StandaloneHost(None, [tmp_path], strict=True)
    loras = (LoraInput(name, "a"), LoraInput("ink", "b", role="style"))
    report = pipeline.run(MergeRequest(loras, f"{name} 2", settings=MergeSettings(method="direct")), host)
    assert report.tag == f"<lora:{name} 2:1>"
    (tag,) = TAG.findall(f"a {report.tag} b")
    assert tag[1:-1].split(":") == ["lora", f"{name} 2", "1"]
    with safe_open(host.resolve(f"{name} 2"), framework="pt") as file:
        assert file.metadata()["ss_output_name"] == f"{name} 2"


@pytest.mark.skipif(os.name == "nt", reason="file names are bytes on POSIX alone")
def test_a_broken_name_is_one_grey_entry_and_the_list_goes_on(tmp_path: Path) -> None:
    put(tmp_path / "cat.safetensors")
    for broken in (b"caf\xe9.safetensors", b"sub\xff/dog.safetensors"):
        put(tmp_path / os.fsdecode(broken), minixl.STYLE)
    host = StandaloneHost(None, [tmp_path])
    entries = {entry.name: entry for entry in catalog(host)}
    assert set(entries) == {"cat", "caf\ufffd", "dog"}
    assert entries["cat"].usable
    for name in ("caf\ufffd", "dog"):
        assert not entries[name].usable and "Rename" in entries[name].reason
        json.dumps(entries[name].reason, ensure_ascii=False).encode()
        with pytest.raises(LoraFileError, match="Rename"):
            host.resolve(name)


def test_readable_names_are_unicode() -> None:
    for text in ("plain", "🦊", "é墨"):
        assert readable(text) == text
    assert readable("a\udcffb") == "a\ufffdb"
    readable("\ud83d lone \udd8a").encode()


def test_hidden_folders_are_left_out_as_the_webui_does(tmp_path: Path) -> None:
    put(tmp_path / ".cache" / "a.safetensors")
    put(tmp_path / "b.safetensors")
    assert set(names(tmp_path)) == {"b"}


TWICE = ("a/same", "b/same")


@pytest.fixture
def twice(tmp_path: Path) -> Path:
    """A subject and a style in two folders under one name, and a file whose name is broken."""
    put(tmp_path / "loras" / "a" / "same.safetensors")
    put(tmp_path / "loras" / "b" / "same.safetensors", minixl.STYLE)
    if os.name != "nt":
        put(tmp_path / "loras" / os.fsdecode(b"caf\xe9.safetensors"))
    return tmp_path / "loras"


def test_the_api_lists_and_merges_files_of_one_name(twice: Path) -> None:
    fastapi = pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from lib_ziplora import api
    from lib_ziplora.jobs.service import Service

    app = fastapi.FastAPI()
    app.state.service = service = Service(StandaloneHost(None, [twice], strict=True))
    api.add_routes(app, service)
    client = TestClient(app)
    listed = {one["name"]: one for one in client.get(f"{api.PREFIX}/loras").json()}
    assert {name for name, one in listed.items() if one["usable"]} == set(TWICE)
    assert all("Rename" in one["reason"] for name, one in listed.items() if name not in TWICE)
    body = {"subject": {"lora": TWICE[0]}, "style": {"lora": TWICE[1]}, "settings": {"method": "direct"}}
    told = client.post(f"{api.PREFIX}/check", json={**body, "output": "new"}).json()
    assert told["problems"] == [] and told["names"] == list(TWICE)
    both = {**body, "output": "new", "style": {"lora": "same"}}
    assert client.post(f"{api.PREFIX}/check", json=both).status_code == 404
    service.stop(timeout=10)


def test_the_command_line_takes_several_folders_and_names_in_them(
    twice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lib_ziplora.cli import main

    put(tmp_path / "more" / "other.safetensors")
    folders = ["--lora-dir", str(twice), "--lora-dir", str(tmp_path / "more")]
    out = tmp_path / "out.safetensors"
    assert main(["merge", "other", TWICE[1], *folders, "--method", "direct", "-o", str(out)]) == 0
    assert out.is_file()
    assert (
        main(
            ["merge", "other", "same", *folders, "--method", "direct", "-o", str(tmp_path / "no.safetensors")]
        )
        == 1
    )
    said = capsys.readouterr().err
    assert all(name in said for name in TWICE)
