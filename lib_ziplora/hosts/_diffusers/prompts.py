r"""Prompts in the WebUI's syntax, as windows of weighted CLIP tokens.

Emphasis ``(word)``, ``(word:1.2)``, ``[word]``, escapes ``\(``, ``BREAK``, and prompts longer than one
window mean what they mean in the WebUI at its default settings, to the token and the weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...errors import ConfigError

WINDOW = 75
"""Prompt tokens that fit between the two special tokens of one CLIP window."""
BACKTRACK = 20
"""A window that is full is cut after a comma among its last so many tokens ("Prompt word wrap length limit")."""
LONGEST = 10_000
"""Characters of a prompt; far more than anybody writes, few enough to parse in a moment."""

ROUND, SQUARE = 1.1, 1 / 1.1
"""What a pair of brackets without a number multiplies the weights in it by."""
BREAK = ("BREAK", -1.0)
"""The piece that ends a window. In brackets its weight is multiplied too, and the WebUI draws the word then."""

_TOKENS = re.compile(r"\\[\\()\[\]]?|[()\[\]]|:\s*([+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")

Window = list[tuple[int, float]]
"""Up to ``WINDOW`` token ids with their weights."""


def parse(prompt: str) -> list[tuple[str, float]]:
    """Runs of text with one weight each; ``BREAK`` between windows.

    Raises:
        ConfigError: the prompt is too long, or a weight is no finite number.
    """
    if len(prompt) > LONGEST:
        raise ConfigError(f"A prompt has {len(prompt)} characters; {LONGEST} are the most.")
    texts, weights = _weighted(prompt)
    if not all(map(math.isfinite, weights)):
        raise ConfigError("A prompt's brackets multiply a weight beyond all numbers; take some of them away.")
    pieces = [("", 1.0)]
    for text, weight in zip(texts, weights, strict=True):
        before, same = pieces[-1]
        pieces[-1:] = [(before + text, weight)] if weight == same else [(before, same), (text, weight)]
    return pieces


def _weighted(prompt: str) -> tuple[list[str], list[float]]:
    """Texts between the marks of the syntax, and the weight of each."""
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        weights[start:] = [weight * factor for weight in weights[start:]]

    for match in _TOKENS.finditer(prompt):
        token, weight = match.group(), match.group(1)
        if token in opened:
            opened[token].append(len(texts))
        elif opened["("] and (weight is not None or token == ")"):
            close("(", _number(weight) if weight is not None else ROUND)
        elif opened["["] and token == "]":
            close("[", SQUARE)
        else:
            for text, weight_of_text in [(token[1:], 1.0)] if token[0] == "\\" else _broken(token):
                texts.append(text)
                weights.append(weight_of_text)
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            close(bracket, factor)
    return texts, weights


def _broken(text: str) -> list[tuple[str, float]]:
    """A text cut at the word BREAK and the spaces around it."""
    parts = _BREAK.split(text)
    last = len(parts) - 1
    pieces: list[tuple[str, float]] = []
    for index, part in enumerate(parts):
        part = part.lstrip() if index else part
        pieces += [BREAK] if index else []
        pieces.append((part.rstrip() if index < last else part, 1.0))
    return pieces


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(
            f"The weight {text} in a prompt is no number; write it as in (word:1.2)."
        ) from error


def windows(prompt: str, tokenizer: Any) -> list[Window]:
    """The prompt's windows, at least one, without special tokens and padding.

    Args:
        prompt: without tags.
        tokenizer: transformers' ``CLIPTokenizer``.
    """
    pieces = parse(prompt)
    tokenized = tokenizer([text for text, _ in pieces], add_special_tokens=False, verbose=False).input_ids
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    done: list[Window] = []
    window: Window = []
    after_comma = 0

    def end(at: int) -> None:
        nonlocal window, after_comma
        done.append(window[:at])
        window, after_comma = window[at:], 0

    for piece, tokens in zip(pieces, tokenized, strict=True):
        if piece == BREAK:
            end(len(window))
            continue
        for token in tokens:
            if len(window) == WINDOW:
                near = token != comma and after_comma and WINDOW - after_comma < BACKTRACK
                end(after_comma if near else WINDOW)
            window.append((token, piece[1]))
            if token == comma:
                after_comma = len(window)
    if window or not done:
        end(len(window))
    return done


def ids(window: Sequence[tuple[int, float]], tokenizer: Any) -> list[int]:
    """Token ids of a window with the special tokens and the padding (77)."""
    tokens = [token for token, _ in window]
    padding = [tokenizer.pad_token_id] * (WINDOW - len(tokens))
    return [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id, *padding]


def emphasised(hidden: Tensor, window: Sequence[tuple[int, float]]) -> Tensor:
    """Hidden states (..., 77, width) times their tokens' weights, with the mean that they had before.

    The WebUI's emphasis "Original", its default.
    """
    padding = [1.0] * (WINDOW + 1 - len(window))
    weights = hidden.new_tensor([1.0, *(weight for _, weight in window), *padding])
    weighted = hidden * weights[:, None]
    return weighted * (hidden.mean() / weighted.mean())
