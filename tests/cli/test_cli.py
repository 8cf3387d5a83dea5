"""The command line: what it writes, prints and returns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_ziplora import __version__, cli
from lib_ziplora.cli.arguments import parser
from lib_ziplora.cli.options import from_arguments
from lib_ziplora.cli.terminal import ProgressBar
from lib_ziplora.config import MergeSettings, setting_defaults, setting_fields
from lib_ziplora.hosts import Progress
from lib_ziplora.lora.io.read import read_lora

from ..support import minixl

ROOT = minixl.FOLDER.parent.parent
PAIR = (str(minixl.SUBJECT), str(minixl.STYLE))
PROMPTS = ("--subject-prompt", "a sks icon", "--style-prompt", "a bell icon in szn style")
SMALL = ("--width", "64", "--height", "64", "--steps", "3", "--sampling-steps", "2", "--guidance-scale", "1")
MODEL = ("--checkpoint", str(minixl.MODEL), "--device", "cpu")
REPORT = [
    "method",
    "steps",
    "mean_travel",
    "similarity_start",
    "similarity_end",
    "loss_start",
    "loss_end",
    "heldout_loss_start",
    "heldout_loss_end",
    "common_layers",
    "rank",
    "seconds",
]


def merge_help(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["merge", "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_every_setting_is_an_option_with_range_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    text = merge_help(capsys)
    for name, option in setting_fields().items():
        flag = f"--{name.replace('_', '-')}"
        assert flag in text, f"{flag} is missing"
        assert f"default {setting_defaults()[name] if setting_defaults()[name] != '' else 'none'}" in text
        if option.minimum is not None:
            assert f"{option.minimum:g} to {option.maximum:g}" in text


def test_options_and_settings_have_the_same_defaults() -> None:
    args = parser().parse_args(["merge", *PAIR, "-o", "x"])
    assert from_arguments(MergeSettings, args) == MergeSettings()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--balance", "0"], (False, 0.0)),
        (["--balance", "0", "--auto-balance"], (True, 0.0)),
        (["--no-auto-balance"], (False, 0.3)),
    ],
)
def test_a_balance_of_zero_alone_still_turns_the_search_for_strengths_off(flags, expected) -> None:
    settings = from_arguments(MergeSettings, parser().parse_args(["merge", *PAIR, "-o", "x", *flags]))
    assert (settings.auto_balance, settings.balance) == expected


def test_help_shows_a_worked_example_whose_files_exist(capsys: pytest.CaptureFixture[str]) -> None:
    words = merge_help(capsys).split("example,")[1].replace("\\", " ").split()
    files = [word for word in words if word.startswith("benchmarks/")]
    assert len(files) == 3
    assert all((minixl.FOLDER.parent.parent / name).exists() for name in files)


def test_merge_writes_the_file_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    out, figures = tmp_path / "out.safetensors", tmp_path / "report.json"
    code = cli.main(
        ["merge", *PAIR, *PROMPTS, *SMALL, *MODEL, "-o", str(out), "--report", str(figures), "--seed", "7"]
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    report = json.loads(figures.read_text())
    assert set(REPORT) <= set(report)
    assert (report["method"], report["steps"], report["common_layers"], report["rank"]) == (
        "ziplora",
        3,
        minixl.LAYERS,
        16,
    )
    assert report["settings"]["seed"] == 7
    assert 0 < report["mean_travel"] < 0.5
    assert len(read_lora(out).layers) == minixl.LAYERS
    assert str(out) in printed.out
    assert "<lora:out:1>" in printed.out


def test_direct_needs_no_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "sum.safetensors"
    assert cli.main(["merge", *PAIR, "-o", str(out), "--method", "direct", "--style-weight", "0.5"]) == 0
    merged, style = read_lora(out), read_lora(minixl.STYLE)
    subject = read_lora(minixl.SUBJECT)
    name = next(iter(style.layers))
    expected = subject.layers[name].delta() + 0.5 * style.layers[name].delta()
    assert (merged.layers[name].delta() - expected).norm() < 2e-3 * expected.norm()


def test_names_come_from_the_lora_folder(tmp_path: Path) -> None:
    for source in (minixl.SUBJECT, minixl.STYLE):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    names = [minixl.SUBJECT.stem, minixl.STYLE.stem]
    assert cli.main(["merge", *names, "--lora-dir", str(tmp_path), "-o", "both", "--method", "direct"]) == 0
    assert (tmp_path / "both.safetensors").is_file()


def test_failures_are_one_sentence_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, taken = tmp_path / "new.safetensors", tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    pickle = tmp_path / "old.pt"
    pickle.write_bytes(b"PK\x03\x04")
    theirs, linked = tmp_path / "theirs.txt", tmp_path / "linked.json"
    theirs.write_text("mine")
    linked.symlink_to(theirs)
    direct = ("--method", "direct")
    for arguments, says in (
        (("nowhere.safetensors", PAIR[1], "-o", str(out), *direct), "nowhere.safetensors"),
        ((str(pickle), PAIR[1], "-o", str(out), *direct), "pickle"),
        ((PAIR[0], PAIR[0], "-o", str(out), *direct), "same file"),
        ((*PAIR, "-o", str(taken), *direct), "taken"),
        ((*PAIR, "-o", str(tmp_path / "no" / "x.safetensors"), *direct), "does not exist"),
        ((*PAIR, "-o", str(out)), "--checkpoint"),
        ((*PAIR, "-o", str(out), "--checkpoint", str(tmp_path)), "model_index.json"),
        ((*PAIR, "-o", str(out), *direct, "--report", str(tmp_path / "no" / "r.json")), "report"),
        ((*PAIR, "-o", str(out), *direct, "--report", str(tmp_path)), "report"),
        ((*PAIR, "-o", str(out), *direct, "--report", str(taken)), "named like a LoRA"),
        ((*PAIR, "-o", str(out), *direct, "--report", str(theirs)), "exists already"),
        ((*PAIR, "-o", str(out), *direct, "--report", str(linked)), "exists already"),
        ((*PAIR, "-o", str(out), *direct, "--device", "gpu"), "no device 'gpu'"),
        ((f"{'x' * 300}.safetensors", PAIR[1], "-o", str(out), *direct), "no LoRA named xxx"),
        ((*PAIR, "-o", str(tmp_path / f"{'x' * 300}.safetensors"), *direct), "longer than"),
    ):
        assert cli.main(["merge", *arguments]) == 1
        message = capsys.readouterr().err
        assert says in message
        assert "error:" in message
        assert "Traceback" not in message
    names = ["linked.json", "old.pt", "taken.safetensors", "theirs.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names and theirs.read_text() == "mine"
    assert taken.read_bytes() == b"mine"


def test_force_replaces(tmp_path: Path) -> None:
    out = tmp_path / "taken.safetensors"
    out.write_bytes(b"mine")
    assert cli.main(["merge", *PAIR, "-o", str(out), "--method", "direct", "--force"]) == 0
    assert len(read_lora(out).layers) == minixl.LAYERS


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("merge",),
        ("merge", *PAIR),
        ("merge", *PAIR, "-o", "x.safetensors", "--steps", "0"),
        ("merge", *PAIR, "-o", "x.safetensors", "--steps", "many"),
        ("merge", *PAIR, "-o", "x.safetensors", "--width", "100"),
        ("merge", *PAIR, "-o", "x.safetensors", "--method", "other"),
        ("merge", *PAIR, "-o", "x.safetensors", "--learning-rate", "nan"),
        ("merge", *PAIR, "-o", "x.safetensors", "--subject-weight", "0"),
        ("merge", *PAIR, "third", "-o", "x.safetensors"),
        ("merge", PAIR[0], "-o", "x.safetensors"),
        ("merge", PAIR[0], "--style", PAIR[1], "-o", "x.safetensors"),
        ("merge", "--subject", PAIR[0], "-o", "x.safetensors"),
        ("merge", *PAIR, "-o", "x.safetensors", "--subject-prompt", "a", "--subject-prompt", "b"),
        ("merge", *PAIR, "-o", "x.safetensors", "--subject-strength", "1"),
        ("re-export",),
        ("re-export", "a", "b", "-o", "x"),
        ("re-export", "a"),
        ("re-export", "a", "-o", "x", "--rank", "few"),
        ("re-export", "a", "-o", "x", "--style-weight", "0"),
        ("inspect",),
        ("inspect", "a", "b", "c"),
        ("serve", "--port", "no"),
    ],
)
def test_wrong_commands_return_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


def test_inspect_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", PAIR[0]]) == 0
    text = capsys.readouterr().out
    for part in ("sdxl", f"{minixl.LAYERS} UNet", "rank      8", "ss_output_name = minixl_subject_rocket"):
        assert part in text
    assert cli.main(["inspect", PAIR[0], "--json", "--layers"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["unet_layers"] == len(summary["layers"]) == minixl.LAYERS
    assert summary["layers"][0]["rank"] == 8


def test_inspect_two_files_orders_the_layers_by_overlap(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", *PAIR, "--json"]) == 0
    overlap = json.loads(capsys.readouterr().out)["overlap"]
    assert len(overlap) == minixl.LAYERS
    assert all(0 <= value <= 1 for value in overlap.values())
    assert cli.main(["inspect", *PAIR]) == 0
    lines = capsys.readouterr().out.splitlines()[-minixl.LAYERS :]
    values = [float(line.split()[0]) for line in lines]
    assert values == sorted(values, reverse=True)
    assert cli.main(["inspect", PAIR[0], PAIR[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_overlap"] == pytest.approx(1, abs=1e-3)


def test_inspect_of_what_is_no_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    assert cli.main(["inspect", str(empty)]) == 1
    assert "empty.safetensors" in capsys.readouterr().err


def test_text_that_a_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"ss_output_name": "caf\u00e9 \u001b[31m"})
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "lib_ziplora", "inspect", str(path)]
    result = subprocess.run(command, cwd=ROOT, env=ascii_only, capture_output=True, check=True)
    assert b"caf\\xe9" in result.stdout
    assert b"\x1b" not in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="there are no POSIX pipes on Windows")
def test_a_reader_that_goes_away_ends_the_output_quietly(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    save_file({"x": torch.zeros(1)}, path, {f"key{i}": "value" * 20 for i in range(1900)})
    command = [sys.executable, "-m", "lib_ziplora", "inspect", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_progress_without_tqdm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    bar = ProgressBar()
    for step in range(101):
        bar(Progress("optimising", step, 100, None, f"update {step}"))
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1].split() == ["100", "%", "update", "100"]


@pytest.mark.skipif(os.name == "nt", reason="Ctrl+C can't be sent to one process on Windows")
def test_ctrl_c_stops_cleanly(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    command = [
        sys.executable,
        "-m",
        "lib_ziplora",
        "merge",
        *PAIR,
        *PROMPTS,
        *MODEL,
        "-o",
        str(tmp_path / "x.safetensors"),
    ]
    options = ("--width", "64", "--height", "64", "--sampling-steps", "2", "--steps", "1000")
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen([*command, *options], cwd=minixl.FOLDER.parent.parent, stderr=stream)
        try:
            deadline = time.monotonic() + 120
            while (
                "Update 2 " not in log.read_text() and time.monotonic() < deadline and process.poll() is None
            ):
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
        finally:
            process.kill()
    assert "Update 2 " in log.read_text()
    assert code == 130, log.read_text()
    assert "Traceback" not in log.read_text()
    assert log.read_text().splitlines()[-1] == "The merge was interrupted; nothing was written."
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


@pytest.mark.skipif(os.name == "nt", reason="Ctrl+C can't be sent to one process on Windows")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["torch", "lib_ziplora.cli.commands", "arguments"])
def test_a_signal_at_any_moment_is_one_true_sentence(tmp_path: Path, moment: str, number: int) -> None:
    """While PyTorch or the command line itself is imported, and while the arguments are parsed."""
    script = f"""
import argparse, os, runpy, sys
sent, parse = [], argparse.ArgumentParser.parse_known_args
def send(moment):
    if moment == {moment!r} and not sent:
        sent.append(moment)
        os.kill(os.getpid(), {int(number)})
def parsed(self, *args):
    send("arguments")
    return parse(self, *args)
argparse.ArgumentParser.parse_known_args = parsed
sys.addaudithook(lambda name, args: send(args[0]) if name == "import" else None)
sys.argv = ["lib_ziplora", "merge", *{PAIR!r}, "-o", {str(tmp_path / "x.safetensors")!r}, "--method", "direct"]
runpy.run_module("lib_ziplora", run_name="__main__", alter_sys=True)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "Interrupted; nothing was written.\n")
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_said_when_the_signal_comes_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Ctrl+C while the result is printed: the merge is there, and so says the sentence."""

    def printed(*words: object, **_more: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("lib_ziplora.cli.commands.print", printed, raising=False)
    out = tmp_path / "both.safetensors"
    assert cli.main(["merge", *PAIR, "-o", str(out), "--method", "direct"]) == 130
    assert capsys.readouterr().err.endswith("Interrupted; both.safetensors, both.ziplora were written.\n")
    assert read_lora(out).layers
