"""The command line before and after a merge: ``check``, ``explain``, ``matrix``, and reports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from safetensors.numpy import load_file

from lib_ziplora import cli

from ..support import minixl

PAIR = (str(minixl.SUBJECT), str(minixl.STYLE))
DIRECT = ("--method", "direct")


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    out = tmp_path / "both.safetensors"
    assert cli.main(["merge", *PAIR, "-o", str(out), *DIRECT, "--report-beside"]) == 0
    return out


def test_merge_writes_its_report_beside_it(merged: Path) -> None:
    assert "<title>both</title>" in (merged.parent / "both.report.html").read_text(encoding="utf-8")
    told = json.loads((merged.parent / "both.report.json").read_text(encoding="utf-8"))
    assert told["report"]["output"] == str(merged)


def test_check_takes_the_arguments_of_merge_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both.safetensors"
    assert cli.main(["check", *PAIR, "-o", str(out), *DIRECT]) == 0
    text = capsys.readouterr().out
    assert f"{minixl.LAYERS} common" in text and "Ready to merge." in text and "self-attention" in text
    assert cli.main(["check", *PAIR, "-o", str(out), *DIRECT, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["common_layers"] == minixl.LAYERS and found["problems"] == []
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["merge", *PAIR, "-o", str(out), *DIRECT]) == 0
    assert abs(out.stat().st_size - found["size"]) < 0.02 * found["size"]


def test_check_names_every_problem_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    assert cli.main(["check", PAIR[0], "nowhere.safetensors", "-o", str(taken)]) == 1
    text = capsys.readouterr().out
    assert text.count("problem: ") >= 3
    assert "nowhere.safetensors" in text and "taken.safetensors" in text and "--checkpoint" in text


def test_explain_prints_words_and_writes_the_page(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = merged.parent / "page.html"
    capsys.readouterr()
    assert cli.main(["explain", str(merged), "-o", str(page)]) == 0
    assert "plain sum" in capsys.readouterr().out and "<title>both</title>" in page.read_text(
        encoding="utf-8"
    )
    assert cli.main(["explain", str(merged), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "both"
    for wrong in (page, merged):
        before = wrong.read_bytes()
        assert cli.main(["explain", str(merged), "-o", str(wrong)]) == 1
        assert str(wrong) in capsys.readouterr().err and wrong.read_bytes() == before
    assert cli.main(["explain", PAIR[0]]) == 1


def test_the_recipe_that_explain_prints_makes_the_merge_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in PAIR:
        shutil.copy(file, tmp_path)
    weights = ("--subject-weight", "0.7", "--rank", "4")
    where = ("--lora-dir", str(tmp_path))
    assert cli.main(["merge", *PAIR, "-o", str(tmp_path / "one.safetensors"), *DIRECT, *weights]) == 0
    assert cli.main(["explain", str(tmp_path / "one.safetensors")]) == 0
    recipe = capsys.readouterr().out.splitlines()[-1].removeprefix("recipe: ")
    assert cli.main(["merge", "--recipe", recipe, "-o", "two", *where]) == 0
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all((one[key] == two[key]).all() for key in one)
    with pytest.raises(SystemExit):
        cli.main(["merge", *PAIR, "--recipe", recipe, "-o", "three", *where])
    assert "The recipe names the LoRAs" in capsys.readouterr().err


def test_scan_prints_the_pairs_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["scan", "--subjects", PAIR[0], "--styles", str(minixl.LORAS)]
    assert cli.main([*asked, "--json"]) == 0
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert {pair["style"] for pair in pairs} == {f.stem for f in minixl.LORAS.glob("*.safetensors")} - {
        minixl.SUBJECT.stem
    }
    assert [pair["overlap"] for pair in pairs] == sorted(pair["overlap"] for pair in pairs)
    assert cli.main(asked) == 0
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()] == [
        pair["style"] for pair in pairs
    ]


def test_a_merge_is_renamed_and_removed_with_what_lies_beside_it(
    merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, (subject, _) = merged.parent, PAIR
    endings = ("json", "report.html", "report.json", "safetensors", "ziplora")
    assert sorted(path.name for path in folder.iterdir()) == [f"both.{ending}" for ending in endings]
    assert cli.main(["rename", str(merged), str(folder / "x.safetensors")]) == 0
    named = {str(folder / f"x.{ending}") for ending in endings}
    assert set(capsys.readouterr().out.split()) >= named == {str(path) for path in folder.iterdir()}
    assert cli.main(["remove", "x", "--lora-dir", str(folder)]) == 0
    assert set(capsys.readouterr().out.split()) == named and not list(folder.iterdir())
    assert cli.main(["remove", subject]) == 1
    assert "no coefficients beside it" in capsys.readouterr().err and Path(subject).is_file()


def test_matrix_merges_what_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (minixl.SUBJECT, minixl.STYLE):
        shutil.copy(file, tmp_path)
    report = tmp_path / "pairs.json"
    asked = ["matrix", "--lora-dir", str(tmp_path), "--subject", minixl.SUBJECT.stem, "--subject", "gone"]
    asked += ["--style", minixl.STYLE.stem, "-o", "{subject} {style}", *DIRECT, "--report", str(report)]
    assert cli.main(asked) == 1
    printed = capsys.readouterr()
    name = f"{minixl.SUBJECT.stem} {minixl.STYLE.stem}"
    assert f"{name}: done" in printed.out and "gone" in printed.err
    assert (tmp_path / f"{name}.safetensors").is_file()
    assert [row["state"] for row in json.loads(report.read_text())] == ["done", "refused"]
    before = report.read_bytes()
    assert cli.main(asked) == 1
    assert f"{report} exists already" in capsys.readouterr().err and report.read_bytes() == before
    assert cli.main(asked[:-2]) == 1
    assert "no pair left" in capsys.readouterr().err


def test_two_processes_share_a_matrix_and_a_third_collects_it(tmp_path: Path) -> None:
    for file in minixl.LORAS.glob("*.safetensors"):
        shutil.copy(file, tmp_path)
    stems = {role: sorted(f.stem for f in tmp_path.glob(f"minixl_{role}_*")) for role in ("subject", "style")}
    asked = [sys.executable, "-m", "lib_ziplora", "matrix", "--lora-dir", str(tmp_path), *DIRECT]
    asked += [word for role, names in stems.items() for name in names for word in (f"--{role}", name)]
    shards = [Popen([*asked, "--shard", f"{number}/2"], stdout=PIPE, text=True) for number in (1, 2)]
    printed = [process.communicate(timeout=300)[0] for process in shards]
    assert [process.returncode for process in shards] == [0, 0]
    pairs = [f"{subject}_{style}" for subject in stems["subject"] for style in stems["style"]]
    for number, told in enumerate(printed):
        assert [line.split(":")[0] for line in told.splitlines()] == pairs[number::2]
        assert told.count(": done, ") == len(pairs[number::2])
    first = tmp_path / f"{pairs[0]}.safetensors"
    before = first.stat().st_mtime_ns
    collected = subprocess.run([*asked, "--collect"], capture_output=True, text=True, timeout=300)
    assert (collected.returncode, collected.stdout.count(": exists, ")) == (0, len(pairs))
    assert cli.main([*asked[3:], "--shard", "1/2"]) == 0 and first.stat().st_mtime_ns == before
    first.unlink()
    assert cli.main([*asked[3:], "--collect"]) == 1


def test_a_matrix_that_makes_no_sense_is_a_wrong_command(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ((), ("--sheet", "sheet.exe")):
        with pytest.raises(SystemExit) as stop:
            cli.main(["matrix", "--subject", "a", *(("--style", "b") if wrong else ()), *wrong])
        assert stop.value.code == 2
        assert ("No style" in (err := capsys.readouterr().err)) != (".png" in err)


def test_check_tells_the_memory_and_the_time_of_the_merge_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    small = ("--width", "64", "--height", "64", "--sampling-steps", "2", "--guidance-scale", "1")
    prompts = ("--subject-prompt", "a sks icon", "--style-prompt", "a bell icon in szn style")
    options = (*PAIR, *prompts, *small, "--steps", "1", "--checkpoint", str(minixl.MODEL), "--device", "cpu")
    out = str(tmp_path / "both.safetensors")
    assert cli.main(["merge", *options, "-o", out]) == 0
    capsys.readouterr()
    assert cli.main(["check", *options, "-o", out, "--force", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0 and found["memory"] > 0
    assert cli.main(["check", *options, "-o", out, "--force"]) == 0
    text = capsys.readouterr().out
    assert f"memory   about {found['memory'] / 1e9:.1f} GB" in text and "time     about" in text
    assert cli.main(["check", *options, "-o", out, "--force", "--width", "128"]) == 0
    assert "time" not in capsys.readouterr().out.partition("overlap")[0].partition("size")[2]
