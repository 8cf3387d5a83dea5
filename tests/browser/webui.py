"""A real WebUI as a process of its own, with its own settings and LoRA folder.

``ZIPLORA_WEBUI`` is the WebUI's folder, in whose ``extensions`` this repository is linked, and
``ZIPLORA_WEBUI_PYTHON`` the Python that it runs under. Its configured checkpoint is loaded on the
CPU. ``ZIPLORA_WEBUI_ARGS`` adds arguments. Nothing is written into the WebUI's folder.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..hosts.real_webui import kind
from .serving import MINIXL, free_port

ROOT = Path(os.environ.get("ZIPLORA_WEBUI", "")).absolute()
PYTHON = Path(os.environ.get("ZIPLORA_WEBUI_PYTHON", "")).absolute()
PRESENT = (ROOT / "webui.py").is_file() and PYTHON.is_file()
REASON = "needs ZIPLORA_WEBUI=<folder of a WebUI> and ZIPLORA_WEBUI_PYTHON=<its Python>"
START_SECONDS = 300
STARTED = "Startup time"
FOR_SD15 = "made for sd15"
"""Name of the LoRA that can't be used with an SDXL checkpoint."""

KIND = kind(ROOT)
A1111 = (
    "--use-cpu all --no-half --no-half-vae --precision full --no-download-sd-model --do-not-download-clip "
    "--loglevel DEBUG"
)
FORGE = "--always-cpu --skip-install --server-name 127.0.0.1"
ARGUMENTS = (
    "--skip-prepare-environment --skip-torch-cuda-test --skip-python-version-check --skip-version-check "
    f"--disable-console-progressbars --no-prompt-history {A1111 if KIND == 'a1111' else FORGE}"
)
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "SD_WEBUI_RESTARTING": "1",  # opens no browser
    "no_proxy": "127.0.0.1,localhost",
    "NO_PROXY": "127.0.0.1,localhost",
}
SETTINGS = {
    "auto_launch_browser": "Disable",
    "live_previews_enable": False,
    "lora_show_all": False,
    "samples_format": "png",
    "samples_save": True,
    "save_to_dirs": False,
    "grid_save": False,
    "clean_temp_dir_at_start": False,
}
PRESET = {
    "forge_preset": "xl",
    "xl_t2i_width": 64,
    "xl_t2i_height": 64,
    "xl_t2i_cfg": 5.0,
    "xl_t2i_sampler": "Euler",
    "sd_text_encoder": "None",
}
"""What Forge's txt2img tab shows instead of ``DEFAULTS``; reForge takes the text encoders of the checkpoint."""
DEFAULTS = {
    "txt2img/Width/value": 64,
    "txt2img/Height/value": 64,
    "txt2img/CFG Scale/value": 5.0,
    "customscript/sampler.py/txt2img/Sampling method/value": "Euler",
    "customscript/sampler.py/txt2img/Sampling steps/value": 8,
    "customscript/seed.py/txt2img/Seed/value": 42,
}
"""What the txt2img tab shows at first: small, quick and the same each time."""


@dataclass(frozen=True)
class Webui:
    """A running WebUI."""

    url: str
    loras: Path
    pictures: Path
    log_file: Path
    process: subprocess.Popen[bytes]

    def files(self) -> set[str]:
        return {path.name for path in self.loras.iterdir()}

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @contextmanager
    def listed_counts(self) -> Iterator[list[int]]:
        """How many LoRAs the WebUI lists, asked all the time inside the block and once after it."""
        counts: list[int] = []
        over = threading.Event()

        def poll() -> None:
            while True:
                last = over.is_set()
                with urllib.request.urlopen(f"{self.url}sdapi/v1/loras", timeout=60) as answer:
                    counts.append(len(json.load(answer)))
                if last:
                    break

        polling = threading.Thread(target=poll)
        polling.start()
        try:
            yield counts
        finally:
            over.set()
            polling.join()

    def wait_for_start(self, times: int) -> None:
        """Wait until it has started that often. No request is sent: one that comes too early kills it."""
        for _ in range(START_SECONDS * 4):
            if self.log().count(STARTED) >= times:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.25)
        raise AssertionError(f"The WebUI did not come up:\n{self.log()[-4000:]}")

    def wait_for_log(self, pattern: str, seconds: float = 60) -> None:
        for _ in range(int(seconds * 10)):
            if re.search(pattern, self.log()):
                return
            time.sleep(0.1)
        raise AssertionError(f"No {pattern!r} in the WebUI's log:\n{self.log()[-4000:]}")


@contextmanager
def running(folder: Path) -> Iterator[Webui]:
    """The WebUI with copies of MiniXL's LoRAs and one of another base, stopped in the end.

    All that it writes goes into ``folder``.
    """
    loras, pictures = folder / "Lora", folder / "pictures"
    shutil.copytree(MINIXL / "loras", loras)
    _write_lora_for_sd15(loras / f"{FOR_SD15}.safetensors")
    pictures.mkdir()
    port = free_port()
    own: dict[str, object] = {"outdir_txt2img_samples": str(pictures), "temp_dir": str(folder)}
    options = ["--port", str(port), "--lora-dir", str(loras)]
    options += [
        "--ui-settings-file",
        _json(
            folder / "config.json", {**_settings(), **SETTINGS, **(PRESET if KIND != "a1111" else {}), **own}
        ),
    ]
    options += ["--ui-config-file", _json(folder / "ui-config.json", DEFAULTS)]
    options += shlex.split(os.environ.get("ZIPLORA_WEBUI_ARGS", ""))
    log = folder / "webui.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(PYTHON), "launch.py", *ARGUMENTS.split(), *options],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, "SD_WEBUI_CACHE_DIR": str(folder / "cache")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    webui = Webui(f"http://127.0.0.1:{port}/", loras, pictures, log, process)
    try:
        webui.wait_for_start(1)
        if KIND == "a1111":  # the others load it for the first picture
            webui.wait_for_log("Model loaded in", START_SECONDS)
        yield webui
    finally:
        _stop(process)


def _write_lora_for_sd15(path: Path) -> None:
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {block: (768, 320), "lora_te_text_model_encoder_layers_0_mlp_fc1": (768, 3072)}
    tensors = {}
    for name, (columns, rows) in shapes.items():
        tensors[f"{name}.lora_down.weight"] = torch.ones(4, columns)
        tensors[f"{name}.lora_up.weight"] = torch.ones(rows, 4)
    save_file(tensors, str(path))


def _settings() -> dict[str, object]:
    """The WebUI's own settings: the checkpoint is the one that it has configured."""
    file = ROOT / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _json(path: Path, content: dict[str, object]) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sign)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue
