"""MiniXL's text encoders, trained with the UNet: both CLIP models, with only the captions' tokens learnt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .diffusion import Conditioning

LENGTH = 20
"""Tokens a caption in training: 77 take half as long again, and most of them pad."""


class UsedTokens(nn.Module):
    """Rows of a token embedding that occur in ``ids``; the others stay as they are in the file.

    Args:
        embedding: (vocabulary, width).
        ids: of the tokens in use.
    """

    def __init__(self, embedding: Tensor, ids: Tensor) -> None:
        super().__init__()
        self.ids: Tensor
        self.index: Tensor
        self.register_buffer("ids", torch.unique(ids))
        self.register_buffer("index", torch.zeros(len(embedding), dtype=torch.long), persistent=False)
        self.index[self.ids] = torch.arange(len(self.ids))
        self.rows = nn.Embedding.from_pretrained(embedding[self.ids].clone(), freeze=False)

    @property
    def weight(self) -> Tensor:
        """Of the rows in use; transformers asks for its type."""
        weight: Tensor = self.rows.weight
        return weight

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings (..., width) of token numbers of the whole vocabulary."""
        found: Tensor = self.rows(self.index[ids])
        return found


class TextEncoders(nn.Module):
    """Both of SDXL's text encoders.

    Args:
        model: a pipeline's folder.
    """

    def __init__(self, model: Path) -> None:
        super().__init__()
        self.tokenizers = [
            CLIPTokenizer.from_pretrained(model / f"tokenizer{number}") for number in ("", "_2")
        ]
        self.first: Any = CLIPTextModel.from_pretrained(model / "text_encoder").float()
        self.second: Any = CLIPTextModelWithProjection.from_pretrained(model / "text_encoder_2").float()

    def tokens(self, prompts: Sequence[str], length: int = LENGTH) -> Tensor:
        """Token numbers for both encoders, (2, prompts, length)."""
        options: Any = {
            "padding": "max_length",
            "max_length": length,
            "truncation": True,
            "return_tensors": "pt",
        }
        return torch.stack([tokenizer(list(prompts), **options).input_ids for tokenizer in self.tokenizers])

    def keep_used(self, ids: Tensor) -> None:
        """Learn the embeddings of these tokens (2, ...) alone."""
        for encoder, used in zip((self.first, self.second), ids, strict=True):
            embeddings = encoder.text_model.embeddings
            embeddings.token_embedding = UsedTokens(embeddings.token_embedding.weight.data, used)

    def forward(self, ids: Tensor) -> Conditioning:
        """The UNet's conditioning for token numbers (2, n, length)."""
        first = self.first(ids[0], output_hidden_states=True)
        second = self.second(ids[1], output_hidden_states=True)
        context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        return Conditioning(context, second.text_embeds)
