"""The WebUI's host and the diffusers host say the same about the same checkpoint.

Besides ``ZIPLORA_WEBUI``: ``ZIPLORA_PYTHON`` is a Python with diffusers, and the WebUI's checkpoint is
the example model (``ZIPLORA_MODEL`` is its diffusers folder when it is not the repository's own).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_ziplora.hosts.a1111 import A1111Host
from lib_ziplora.pipeline.merge import run

from . import a1111_reference as reference
from . import a1111_webui as webui

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("ZIPLORA_PYTHON", "")
MODEL = os.environ.get("ZIPLORA_MODEL", str(ROOT / "benchmarks" / "minixl" / "model"))
SUBJECT, STYLE = "minixl_subject_rocket", "minixl_style_streamline-cyber-color"
pytestmark = [
    *webui.marks,
    pytest.mark.skipif(
        not PYTHON or not Path(MODEL).is_dir(), reason="needs ZIPLORA_PYTHON=<a Python with diffusers>"
    ),
]


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    folder = webui.boot() and Path(webui.boot().cmd_opts.lora_dir)
    files = {name: str((folder / f"{name}.safetensors").resolve()) for name in (SUBJECT, STYLE)}
    return {
        "prompts": ["a cat icon in kim style", "a sks icon", "a red rose icon, in drew style"],
        "width": 128,
        "height": 128,
        "files": {"base": "", **files},
        "pair": {SUBJECT: "a sks icon", STYLE: "a szn icon"},
        "settings": {
            "steps": 6,
            "sampling_steps": 4,
            "width": 128,
            "height": 128,
            "seed": 3,
            "precision": "fp32",
        },
    }


@pytest.fixture(scope="module")
def theirs(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the other process has written."""
    folder = tmp_path_factory.mktemp("diffusers")
    generator = torch.Generator().manual_seed(8)
    given = {"x_t": torch.randn(3, 4, 16, 16, generator=generator), "t": torch.tensor([999, 500, 20])}
    save_file(given, str(folder / "given.safetensors"))
    command = [PYTHON, "-m", "tests.hosts.a1111_reference", MODEL, str(Path(asked["files"][SUBJECT]).parent)]
    done = subprocess.run(
        [*command, str(folder), json.dumps(asked)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={"PATH": os.environ.get("PATH", ""), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", ["context", "alphas_cumprod", "base", SUBJECT, STYLE])
def test_the_same_numbers(theirs: Path, asked: dict[str, Any], name: str) -> None:
    with webui.cleaned():
        ours = reference.predictions(A1111Host(), load_file(str(theirs / "given.safetensors")), asked)
    said = load_file(str(theirs / "said.safetensors"))
    error = webui.relative(ours[name], said[name])
    print(f"{name}: {error:.1e}")
    assert error < 1e-5
    if name in (SUBJECT, STYLE):
        assert webui.relative(ours["base"], ours[name]) > 0.05


def test_the_same_pair_merged_by_both_predicts_the_same(theirs: Path, asked: dict[str, Any]) -> None:
    host = A1111Host()
    with webui.cleaned(), host.exclusive():
        report = run(reference.request("merged here", asked), host)
        files = {"ours": report.output, "theirs": str(theirs / "merged_by_diffusers.safetensors"), "base": ""}
        given = load_file(str(theirs / "given.safetensors"))
        said = reference.predictions(host, given, {**asked, "files": files})
    assert webui.relative(said["base"], said["ours"]) > 0.05
    error = webui.relative(said["ours"], said["theirs"])
    print(f"merged by both: {error:.1e}, travel {report.learnt.mean_travel:.4f}")
    assert error < 1e-3
    assert report.learnt.mean_travel > 0.005
