"""Where MiniXL lies: the small SDXL checkpoint and the LoRAs that the tests run on."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks" / "minixl"
MODEL = FOLDER / "model"
LORAS = FOLDER / "loras"
SUBJECT = LORAS / "minixl_subject_rocket.safetensors"
STYLE = LORAS / "minixl_style_streamline-cyber-color.safetensors"
SIZE = 64
LAYERS = 192
