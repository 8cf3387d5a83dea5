"""MiniXL as a diffusers folder: the averaged weights, and the text encoders with the learnt tokens put back.

    python -m benchmarks.minixl.export --out out/minixl --model out/minixl/model

``--init`` is the folder that the training began from: tokenizers, and embeddings of the tokens that no
caption uses, of which the signs are kept. They mean nothing, and signs take a tenth of the room in a package.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from .diffusion import NATIVE_SIZE, SCHEDULE

MODEL = Path(__file__).resolve().parent / "model"
TOKENS, SPREAD = "text_model.embeddings.token_embedding.", 0.5
PARTS = {
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


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
            embedding = encoder.get_input_embeddings().weight
            embedding.copy_(torch.where(embedding < 0, -SPREAD, SPREAD))
            embedding[ids] = rows.float()
        encoders.append(encoder)
    return encoders


def write(out: Path, init: Path, model: Path) -> None:
    """Write the pipeline's folder in fp16, without the names of this machine's folders.

    Raises:
        ValueError: a weight is no number.
    """
    encoders = text_encoders(init, load_file(out / "text.safetensors"))
    unet: Any = UNet2DConditionModel.from_pretrained(out / "unet", sample_size=NATIVE_SIZE // 8)
    parts = [*encoders, unet, AutoencoderKL.from_pretrained(out / "vae")]
    for name, part in zip(("text_encoder", "text_encoder_2", "unet", "vae"), parts, strict=True):
        part.half().save_pretrained(model / name)
        broken = [key for key, value in part.state_dict().items() if not torch.isfinite(value).all()]
        if broken:
            raise ValueError(f"{model / name} has values that are no numbers in {broken[0]}.")
    for name in ("tokenizer", "tokenizer_2"):
        if init.resolve() != model.resolve():
            shutil.copytree(init / name, model / name, dirs_exist_ok=True)
    EulerDiscreteScheduler(**SCHEDULE).save_pretrained(model / "scheduler")
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **PARTS}
    (model / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for config in model.glob("*/config.json"):
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings.pop("_name_or_path", None)
        config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.export", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the training")
    parser.add_argument("--model", type=Path, required=True, help="folder to write")
    parser.add_argument("--init", type=Path, default=MODEL, help="default benchmarks/minixl/model")
    args = parser.parse_args(arguments)
    write(args.out, args.init, args.model)


if __name__ == "__main__":
    main()
