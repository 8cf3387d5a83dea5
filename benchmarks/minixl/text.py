"""Make MiniXL's two text encoders: random, frozen, with CLIP's whole vocabulary.

    python -m benchmarks.minixl.text --out out/minixl --tokenizer benchmarks/minixl/model

Two layers of 64 units each. A random encoder gives nearly the same pooled vector for every
prompt, and a UNet then ignores it; so the second encoder's projection is set to the whitening
of the captions' pooled states.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .choice import KNOWN_STYLES, caption, known_subjects
from .data import CACHE, load

WIDTH, LAYERS, HEADS = 64, 2, 2
GAIN, RIDGE = 2.5, 0.02


def build(second: bool) -> Any:
    """One untrained encoder, seeded: CLIP's shape for the first, OpenCLIP's for the second."""
    torch.manual_seed(1 + second)
    config = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        projection_dim=WIDTH,
        hidden_act="gelu" if second else "quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=0 if second else 49407,
    )
    encoder = (CLIPTextModelWithProjection if second else CLIPTextModel)(config)
    with torch.no_grad():
        embeddings = encoder.text_model.embeddings
        embeddings.token_embedding.weight.normal_(0, 0.5)
        embeddings.position_embedding.weight.normal_(0, 0.2)
    return encoder.eval()


def captions_of(cache: Path) -> list[str]:
    """Every prompt that MiniXL is trained with."""
    subjects = known_subjects(load(cache))
    return [caption(name, word) for name in subjects for word in (*KNOWN_STYLES.values(), None)]


@torch.no_grad()
def whiten(encoder: Any, ids: Tensor) -> None:
    """Set ``text_projection`` so that the pooled vectors of the captions (n, 77) tell them apart."""
    encoder.text_projection.weight.copy_(torch.eye(WIDTH))
    pooled = torch.cat([encoder(part).text_embeds for part in ids.split(64)]).double()
    values, vectors = torch.linalg.eigh(pooled.T @ pooled / len(pooled))
    values = values.clamp(min=RIDGE * values.mean().item() * 1e-2)
    matrix = GAIN * (vectors / values.sqrt()) @ vectors.T
    encoder.text_projection.weight.copy_(matrix.float())


def make(out: Path, tokenizer: Path, cache: Path) -> None:
    """Write both encoders and both tokenizers into the pipeline's folder."""
    for name in ("tokenizer", "tokenizer_2"):
        if (tokenizer / name).resolve() != (out / name).resolve():
            shutil.copytree(tokenizer / "tokenizer", out / name, dirs_exist_ok=True)
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        path = out / "tokenizer_2" / file
        data = json.loads(path.read_text(encoding="utf-8"))
        data["pad_token"] = "!"
        path.write_text(json.dumps(data, indent=1), encoding="utf-8")
    second = build(second=True)
    words = CLIPTokenizer.from_pretrained(out / "tokenizer_2")
    whiten(second, words(captions_of(cache), padding="max_length", return_tensors="pt").input_ids)
    build(second=False).half().save_pretrained(out / "text_encoder")
    second.half().save_pretrained(out / "text_encoder_2")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the encoders."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.text", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with CLIP's tokenizer")
    parser.add_argument("--cache", type=Path, default=CACHE)
    args = parser.parse_args(arguments)
    make(args.out, args.tokenizer, args.cache)


if __name__ == "__main__":
    main()
