"""What the tests in a real WebUI share, whichever it is.

``ZIPLORA_WEBUI`` is the WebUI's folder, whose configured checkpoint is loaded on the CPU; pytest runs under the
WebUI's own Python. ``ZIPLORA_WEBUI_ARGS`` adds arguments (``--medvram``, ``--unet-in-fp8-e4m3fn``).
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = os.environ.get("ZIPLORA_WEBUI", "")
EXTRA = shlex.split(os.environ.get("ZIPLORA_WEBUI_ARGS", ""))
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "CUDA_VISIBLE_DEVICES": "",
    "COVERAGE_RUN": "1",  # the WebUI leaves the interrupt signal alone
    "IGNORE_CMD_ARGS_ERRORS": "1",
}


def kind(folder: Path) -> str:
    """Which WebUI lies in a folder, by what ``hosts.kind`` would find; "" for none."""
    if not (folder / "webui.py").is_file():
        return ""
    if (folder / "backend" / "memory_management.py").is_file():
        return "forge"
    return "reforge" if (folder / "ldm_patched").is_dir() else "a1111"


KIND = kind(Path(ROOT)) if ROOT else ""


def marks(*kinds: str) -> list[pytest.MarkDecorator]:
    """Run in these WebUIs only."""
    reason = f"needs ZIPLORA_WEBUI=<folder of {' or '.join(kinds)}> and its own Python"
    return [pytest.mark.webui, pytest.mark.skipif(KIND not in kinds, reason=reason)]


@contextmanager
def started_in_its_folder(arguments: str) -> Iterator[None]:
    """As ``launch.py`` with these arguments would be; the modules imported inside stay importable."""
    os.environ.update(ENVIRONMENT)
    argv, folder = sys.argv, Path.cwd()
    sys.argv = ["launch.py", *arguments.split(), "--data-dir", ROOT, *EXTRA]
    os.chdir(ROOT)
    sys.path.insert(0, ROOT)
    try:
        yield
    finally:
        sys.argv = argv
        os.chdir(folder)


def own_lora_folder(shared: Any) -> None:
    """The installed LoRAs as links in a temporary folder, so that tests write nothing into the WebUI's."""
    folder = Path(tempfile.mkdtemp(prefix="loras-"))
    for file in Path(shared.cmd_opts.lora_dir).glob("*.safetensors"):
        (folder / file.name).symlink_to(file)
    shared.cmd_opts.lora_dir, shared.cmd_opts.lyco_dir_backcompat = str(folder), str(folder / "none")
    importlib.import_module("networks").list_available_networks()


def picture(prompt: str, keep_caches: bool = False) -> np.ndarray:
    """A small picture, drawn as the txt2img tab draws it; its conditioning is computed anew unless asked."""
    processing = importlib.import_module("modules.processing")
    caches = (processing.StableDiffusionProcessing.cached_c, processing.StableDiffusionProcessing.cached_uc)
    for cache in () if keep_caches else caches:
        cache[0] = None
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=importlib.import_module("modules.shared").sd_model,
        prompt=prompt,
        negative_prompt="",
        width=128,
        height=128,
        steps=3,
        cfg_scale=3.5,
        seed=1,
        sampler_name="Euler",
        scheduler="Automatic",
        do_not_save_samples=True,
        do_not_save_grid=True,
    )
    p.scripts = importlib.import_module("modules.scripts").ScriptRunner()  # which reForge can't do without
    with closing(p):
        return np.asarray(processing.process_images(p).images[0])
