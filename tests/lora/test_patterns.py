"""PEFT's patterns, against Python's ``re`` on the rule that peft has; none takes long."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_ziplora.errors import UnsupportedLoraError
from lib_ziplora.lora.formats.patterns import (
    COUNT_LIMIT,
    PATTERN_LIMIT,
    PATTERNS_LIMIT,
    check_patterns,
    matches,
)
from lib_ziplora.lora.formats.peft_config import SIDECAR
from lib_ziplora.lora.io.read import read_lora

from .files import DIALECTS, Q, layer, layers, save, tensors

NAMES = (
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
    "unet.mid_block.attentions.0.proj_in",
    "text_model.encoder.layers.11.self_attn.q_proj",
    "conv_in",
)
PATTERNS = (
    "to_q", "^to_q", "^conv_in$", "attn1.to_q", r"attn1\.to_(q|k)", r"down_blocks\.\d+\..*to_q", "(?:mid|down)_block.*",
    r"layers\.(1[01]|[0-5])\..*", ".*", "", "[^.]*_proj", "to_.{1}", "x{2,}|to_[qk]", "a?", r"to\_q", "(a)(b)?|conv_in",
    r"\w+.to_q", "attentions.[01].+?to_q", "proj", "q_proj$",
)  # fmt: skip
PIECES = [
    "a",
    "b",
    ".",
    "_",
    r"\.",
    "(",
    "(?:",
    ")",
    "|",
    "*",
    "+",
    "?",
    "^",
    "$",
    "[ab]",
    "[^a]",
    "{1,2}",
    r"\d",
    "1",
]


def by_re(pattern, name):
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_fits_what_peft_lets_it_fit(pattern, name):
    assert matches(pattern, name) == by_re(pattern, name)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=7).map("".join), st.text("ab._1", max_size=7))
def test_what_is_followed_is_followed_as_re_does(pattern, name):
    try:
        ours = matches(pattern, name)
    except ValueError:
        return
    try:
        theirs = by_re(pattern, name)
    except re.error:
        return
    assert ours == theirs


@pytest.mark.parametrize(
    "pattern",
    [
        "(a|a)" * 40 + "x",
        ".*" * 100 + "x",
        "a?" * 100 + "b",
        "(a|b)*" * 45 + "c",
        "(a|a|a|a|a|a|a)*" * 18 + "x",
    ],
)
def test_no_pattern_takes_long(pattern):
    started = time.process_time()
    assert not matches(pattern, "a" * 100)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "a)",
        "*",
        "[",
        r"\1",
        "(?=a)",
        "(?P<n>a)",
        "(a*)*",
        "a**",
        "(a+)+$",
        "[b-a]",
        "x|" * PATTERN_LIMIT,
    ],
)
def test_what_can_not_be_followed_is_refused(pattern):
    with pytest.raises(
        ValueError, match=r"can't be followed|too long|regular expression|bracket|quantifiers|wrong place"
    ):
        matches(pattern, "a")


def test_a_file_with_such_a_pattern_is_refused_by_name(tmp_path):
    content = tensors(layers(layer(Q)), DIALECTS["peft"], with_alpha=False)
    file = save(tmp_path / "adapter_model.safetensors", content)
    (tmp_path / SIDECAR).write_text('{"peft_type": "LORA", "lora_alpha": 2, "alpha_pattern": {"(a+)+b": 3}}')
    with pytest.raises(UnsupportedLoraError, match=r"adapter_model.*alpha_pattern.*quantifiers within"):
        read_lora(file)


def test_there_are_no_more_patterns_than_can_be_followed_in_a_moment():
    check_patterns(f"down_blocks.{i}.attn1.to_q" for i in range(COUNT_LIMIT))
    with pytest.raises(ValueError, match="more than"):
        check_patterns(f"down_blocks.{i}.attn1.to_q" for i in range(COUNT_LIMIT + 1))
    with pytest.raises(ValueError, match="characters"):
        check_patterns(f".*{i}" for i in range(PATTERNS_LIMIT // 3))
