"""MiniXL 2 as a diffusers folder: the averaged weights, and the text encoders with the learnt tokens put back.

    python -m benchmarks.minixl2.export --out out/minixl2 --init benchmarks/minixl/model --model out/minixl2/model
    python -m benchmarks.minixl2.export --out out/minixl2 --weights benchmarks/minixl2/weights

``--init`` is the folder that the training began from: the tokens that no caption uses are still its own.
With ``--weights`` just what was learnt is written, in fp16, with the curve, as it is committed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ..minixl.unet import save as save_unet
from .data import SIZE

TOKENS = "text_model.embeddings.token_embedding."


def text_encoders(init: Path, learnt: Mapping[str, Tensor]) -> list[Any]:
    """Both encoders with what was learnt in place.

    Args:
        init: folder that the training began from.
        learnt: ``TextEncoders.state_dict()`` after the training, token numbers and their rows in it.
    """
    encoders: list[Any] = []
    for number, kind in enumerate((CLIPTextModel, CLIPTextModelWithProjection)):
        name, prefix = ("text_encoder", "first.") if not number else ("text_encoder_2", "second.")
        encoder = kind.from_pretrained(init / name).float()
        state = {key.removeprefix(prefix): value for key, value in learnt.items() if key.startswith(prefix)}
        rows, ids = (state.pop(TOKENS + part) for part in ("rows.weight", "ids"))
        missing, unexpected = encoder.load_state_dict(state, strict=False)
        if unexpected or set(missing) - {f"{TOKENS}weight"}:
            raise ValueError(f"{init / name} is another text encoder: {missing + unexpected} don't fit.")
        with torch.no_grad():
            encoder.text_model.embeddings.token_embedding.weight[ids] = rows.float()
        encoders.append(encoder)
    return encoders


def write(out: Path, init: Path, model: Path) -> None:
    """Write the pipeline's folder in fp16."""
    learnt = load_file(out / "text.safetensors")
    for encoder, name in zip(text_encoders(init, learnt), ("text_encoder", "text_encoder_2"), strict=True):
        encoder.half().save_pretrained(model / name)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(init / name, model / name, dirs_exist_ok=True)
    AutoencoderKL.from_pretrained(out / "vae").half().save_pretrained(model / "vae")
    save_unet(model, UNet2DConditionModel.from_pretrained(out / "unet", sample_size=SIZE // 8).float())


def pack(out: Path, weights: Path) -> None:
    """Write what was learnt in fp16, which ``write`` takes as its ``out``, and the curve."""
    UNet2DConditionModel.from_pretrained(out / "unet").half().save_pretrained(weights / "unet")
    AutoencoderKL.from_pretrained(out / "vae").half().save_pretrained(weights / "vae")
    learnt = load_file(out / "text.safetensors")
    halved = {name: part.half() if part.is_floating_point() else part for name, part in learnt.items()}
    save_file(halved, weights / "text.safetensors")
    shutil.copy(out / "curve.jsonl", weights)
    for config in weights.glob("*/config.json"):
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings.pop("_name_or_path", None)  # a folder of the machine that trained
        config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for file in weights.rglob("*.safetensors"):
        broken = [name for name, part in load_file(file).items() if not torch.isfinite(part).all()]
        if broken:
            raise ValueError(f"{file} has values that are no numbers in {broken[0]}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder, or what is committed."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl2.export", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    for name in ("init", "model", "weights"):
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args(arguments)
    if args.weights:
        pack(args.out, args.weights)
    elif args.init and args.model:
        write(args.out, args.init, args.model)
    else:
        parser.error("Name --init and --model, or --weights.")


if __name__ == "__main__":
    main()
