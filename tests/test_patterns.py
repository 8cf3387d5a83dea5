"""No regular expression of ours takes more than a moment for any text: none backtracks."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

import lib_ziplora

LENGTH = 10_000
PIECES = (
    *"'<>.-[]()/\\:\"ax1 \t\n_,",
    *(
        "<a:",
        "<lora:x",
        "in ",
        "by ",
        "in a ",
        "style of ",
        " style",
        "-style",
        "a'",
        "drawn by the ",
        "BREAK ",
    ),
    *(
        "/ a",
        " /",
        "C:\\",
        " /a b",
        "'/a/",
        "<script ",
        "<link href=",
        ":1.1",
        ": ",
        "lora_unet_",
        "_conv",
        "\\(",
    ),
)
OF_FILE_NAMES = ("lib_ziplora.lora.io.atomic",)
"""Their patterns see nothing but names of files, which have 255 characters at most."""
SECONDS = 0.4
"""For a text of LENGTH; a quadratic pattern takes a hundred times as long."""


def patterns() -> list[tuple[str, re.Pattern[Any]]]:
    found = {}
    for module in pkgutil.walk_packages(lib_ziplora.__path__, "lib_ziplora."):
        if module.name.endswith("__main__") or module.name in OF_FILE_NAMES:
            continue
        try:
            names = vars(importlib.import_module(module.name))
        except ImportError:  # a WebUI's modules, gradio
            continue
        for name, value in names.items():
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, re.Pattern) and one not in found:
                    found[one] = f"{module.name}.{name}: {one.pattern!r:.60}"
    return [(name, pattern) for pattern, name in found.items()]


def hostile() -> Iterator[str]:
    for first, second in itertools.product(PIECES, ("", *PIECES[:4])):
        piece = first + second
        yield piece * (LENGTH // len(piece))
        yield first + second * LENGTH if second else first


PATTERNS = patterns()


@pytest.mark.parametrize("pattern", [pattern for _, pattern in PATTERNS], ids=[name for name, _ in PATTERNS])
def test_no_pattern_backtracks(pattern: re.Pattern[Any]) -> None:
    for text in hostile():
        start = time.process_time()
        given = text if isinstance(pattern.pattern, str) else text.encode()
        for _ in pattern.finditer(given):
            pass
        pattern.fullmatch(given)
        assert time.process_time() - start < SECONDS, text[:30]


def test_the_patterns_are_found() -> None:
    assert len(PATTERNS) > 12
