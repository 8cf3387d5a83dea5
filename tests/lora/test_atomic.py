"""Files that are written together: all of them, or each as it was before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib_ziplora.errors import OutputError
from lib_ziplora.lora.io.atomic import atomic_writes, clean_leftovers


def no_links(*_args, **_kwargs):
    raise NotImplementedError


@pytest.fixture(params=["links", "no links"])
def folder(request, tmp_path, monkeypatch):
    if request.param == "no links":
        monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "old").write_text("old")
    return tmp_path


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def write(files: list[Path], overwrite: bool = True) -> None:
    with atomic_writes(files, overwrite) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")


def test_what_ends_well_is_all_new(folder):
    write([folder / "old", folder / "a"])
    assert content(folder) == {"old": "new", "a": "new"}


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("failure", [OutputError("no"), KeyboardInterrupt()])
def test_what_fails_while_it_is_written_is_all_old(folder, failure, count):
    files = [folder / "a", folder / "old", folder / "b"]
    with pytest.raises(type(failure)), atomic_writes(files, True) as temporaries:
        for temporary in temporaries[:count]:
            temporary.write_text("new")
        raise failure
    assert content(folder) == {"old": "old"}


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_fails_while_it_gets_its_name_is_all_old(folder, monkeypatch, failing, overwrite):
    files = [folder / name for name in ("a", "old" if overwrite else "b", "c")]
    names = {file.name for file in files[failing:]}
    link, replace = os.link, Path.replace

    def refuse(self, target):
        if Path(target).name in names and self.suffix == ".tmp":
            raise OSError("no")
        return replace(self, target)

    def no_link(source, target, **options):
        if Path(target).name in names:
            raise FileExistsError
        return link(source, target, **options)

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(OutputError):
        write(files, overwrite)
    assert content(folder) == {"old": "old"}


def test_an_old_file_can_be_read_under_its_name_until_it_is_replaced(tmp_path):
    (tmp_path / "old").write_text("old")
    with atomic_writes([tmp_path / "old", tmp_path / "a"], True) as temporaries:
        assert (tmp_path / "old").read_text() == "old"
        for temporary in temporaries:
            temporary.write_text("new")


def test_a_file_of_somebody_else_is_left_alone(folder):
    """It took the name meanwhile, so ours was refused and is not among the written ones."""
    files = [folder / "b", folder / "a"]
    with pytest.raises(OutputError, match="a exists already"), atomic_writes(files, False) as temporaries:
        (folder / "a").write_text("theirs")
        for temporary in temporaries:
            temporary.write_text("ours")
    assert content(folder) == {"old": "old", "a": "theirs"}


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "input").write_text("mine")
    (tmp_path / "a").symlink_to(tmp_path / "input")
    with pytest.raises(OutputError, match="exists already"):
        write([tmp_path / "a"], overwrite=False)
    write([tmp_path / "a"])
    assert (tmp_path / "input").read_text() == "mine" and not (tmp_path / "a").is_symlink()


DIES = """
import os, sys
from pathlib import Path
from lib_ziplora.lora.io.atomic import atomic_writes

folder, count, overwrite = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
calls = 0

def dies_after(step):
    def called(*arguments, **options):
        global calls
        if calls == count:
            os._exit(9)
        calls += 1
        return step(*arguments, **options)
    return called

with atomic_writes([folder / "a.safetensors", folder / "a.ziplora"], overwrite) as temporaries:
    for temporary in temporaries:
        temporary.write_text("new")
    os.link, Path.open = dies_after(os.link), dies_after(Path.open)
    Path.replace, Path.unlink = dies_after(Path.replace), dies_after(Path.unlink)
"""


@pytest.mark.parametrize("overwrite", [True, False])
def test_whenever_a_process_dies_the_next_one_finds_the_old_pair_or_the_new_one(tmp_path, overwrite):
    """Dies before every single step of publishing in turn."""
    seen, old = set(), {"a.safetensors": "old", "a.ziplora": "old"} if overwrite else {}
    for count in range(30):
        folder = tmp_path / str(count)
        folder.mkdir()
        for name, text in old.items():
            (folder / name).write_text(text)
        done = subprocess.run([sys.executable, "-c", DIES, folder, str(count), str(overwrite)])
        clean_leftovers(folder)
        found = content(folder)
        assert found in (old, {"a.safetensors": "new", "a.ziplora": "new"}), (count, found)
        seen.add("old" if found == old else "new")
        if done.returncode == 0:
            break
    assert seen == {"old", "new"} and done.returncode == 0


def test_leftovers_of_the_living_stay(tmp_path):
    with atomic_writes([tmp_path / "a"], True) as (temporary,):
        temporary.write_text("new")
        clean_leftovers(tmp_path)
        assert temporary.exists()
        other = temporary.with_name(temporary.name.replace(f"-{os.getpid()}.", f"-{os.getppid()}."))
        other.write_text("of a program that runs")
        foreign = tmp_path / ".a.000000-1.0123456789ab.tmp"
        foreign.write_text("of another computer")
        (tmp_path / ".a.swp").write_text("of an editor")
    write([tmp_path / "b"])
    assert set(content(tmp_path)) == {"a", "b", other.name, foreign.name, ".a.swp"}
    for file in (other, foreign, tmp_path / ".a.swp"):
        os.utime(file, (0, 0))
    write([tmp_path / "b"])
    assert set(content(tmp_path)) == {"a", "b", ".a.swp"}
