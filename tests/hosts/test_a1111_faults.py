"""A fault at any layer call leaves the WebUI's model, settings and random state what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import faults
from lib_ziplora.hosts.a1111 import A1111Host

from . import a1111_webui as webui

pytestmark = webui.marks
CASES, SEED = 40, 5
NAMES = ("fault subject", "fault style")


def test_faults_leave_no_trace(tmp_path: Path) -> None:
    model = webui.boot().sd_model
    for seed, name in enumerate(NAMES):
        webui.write_lora(name, seed)
    image = tmp_path / "reference.png"
    Image.new("RGB", (faults.SIZE, faults.SIZE), "tomato").save(image)

    def surroundings() -> dict[str, Any]:
        return {name: value for name, value in webui.surroundings().items() if name != "state"}

    folder = Path(webui.boot().cmd_opts.lora_dir)
    parts = [model.model.diffusion_model, model.first_stage_model, model.conditioner]
    with webui.cleaned():
        place = faults.Place(A1111Host(), parts, folder, NAMES, image, surroundings)
        found, endings = faults.campaign(place, CASES, SEED)
    assert not found, found
    assert sum(endings.values()) == CASES and len(endings) > CASES / 3, endings
