"""``compare`` on the command line: the sheet, the pictures, and what is refused before anything is drawn."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from lib_ziplora import cli

from ..support import minixl

pytest.importorskip("diffusers")


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    for file in (minixl.SUBJECT, minixl.STYLE):
        shutil.copy(file, tmp_path)
    out = tmp_path / "merged.safetensors"
    loras = [str(tmp_path / file.name) for file in (minixl.SUBJECT, minixl.STYLE)]
    prompts = ["--subject-prompt", "a sks icon", "--style-prompt", "a bell icon in szn style"]
    assert cli.main(["merge", *loras, *prompts, "--method", "direct", "-o", str(out)]) == 0
    return out


def compare(merged: Path, *options: str) -> int:
    size = ("--width", "64", "--height", "64", "--steps", "1")
    host = ("--checkpoint", str(minixl.MODEL), "--device", "cpu")
    return cli.main(["compare", str(merged), *host, *size, *options])


def test_the_sheet_the_pictures_and_the_preview_are_written(
    merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, pictures = tmp_path / "sheet.png", tmp_path / "pictures"
    assert compare(merged, "-o", str(sheet), "--pictures", str(pictures), "--preview", "--seeds", "2") == 0
    with Image.open(sheet) as image:
        assert "<lora:" in image.info["parameters"]
    assert len(list(pictures.glob("*.png"))) == 4 * 3 * 2 + 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [str(sheet), str(tmp_path / "merged.preview.png")]


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("sheet.jpg", "must end in .png"),
        ("nowhere/sheet.png", "does not exist"),
        ("there.png", "exists already"),
    ],
)
def test_a_sheet_that_can_not_be_written_is_refused_at_once(
    merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, says: str
) -> None:
    (tmp_path / "there.png").write_bytes(b"mine")
    assert compare(merged, "-o", str(tmp_path / output)) == cli.FAILED
    assert says in capsys.readouterr().err
    assert (tmp_path / "there.png").read_bytes() == b"mine"


def test_impossible_values_are_a_wrong_command(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        compare(merged, "-o", "sheet.png", "--seeds", "99")
    assert stop.value.code == 2 and "seeds must lie" in capsys.readouterr().err
