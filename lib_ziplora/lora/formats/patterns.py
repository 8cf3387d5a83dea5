"""Regular expressions of other people's files, matched in time that grows with their length and no faster.

Python's ``re`` goes back over what it has tried, which a hostile pattern makes it do for years. Here all places where
a match can stand are followed at once, as the bits of one number (Thompson's construction).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

PATTERN_LIMIT = 300
"""Characters of a pattern."""
PATTERNS_LIMIT = 3_000
"""Characters of all patterns of a file that are more than names."""
COUNT_LIMIT = 4_000
"""Patterns of a file."""

_TOKEN = re.compile(
    r"\\[dDwWsS]|\\[^a-zA-Z0-9]|\[\^?\]?(?:\\.|[^\]\\\[])*\]|\(\?:|\{\d{1,3}(?:,\d{0,3})?\}|[^\\\[\]{}]", re.S
)
# Hardly more than a name: what Python's own matching does in no time.
_PLAIN = re.compile(r"\^?[\w.]*\$?")
_QUANTIFIERS = {"*": (0, None), "+": (1, None), "?": (0, 1)}

Node = Callable[["_Text", int], int]
"""(the text, the places where it may begin) -> the places where it may end; bit n is before character n."""


class _Text:
    def __init__(self, text: str) -> None:
        self.text, self.end, self.everywhere = text, 1 << len(text), (1 << len(text)) - 1
        self._masks: dict[str, int] = {".": self.everywhere}
        for n, character in enumerate(text):
            literal = "\\." if character == "." else character
            self._masks[literal] = self._masks.get(literal, 0) | 1 << n

    def mask(self, token: str) -> int:
        """The places of the characters that a one-character pattern fits."""
        if token not in self._masks:
            fits = re.compile(token).fullmatch
            self._masks[token] = sum(1 << n for n, character in enumerate(self.text) if fits(character))
        return self._masks[token]


def matches(pattern: str, name: str) -> bool:
    r"""Whether PEFT takes a key of ``alpha_pattern`` or ``rank_pattern`` for a module's name.

    Its rule is ``re.match(rf"(.*\.)?({key})$", name)``.

    Raises:
        ValueError: the pattern is no regular expression, too long, or has what PEFT's patterns never need
            (look-around, back references, quantifiers within quantifiers).
    """
    return _compiled(pattern)(name)


def check_patterns(patterns: Iterable[str]) -> None:
    """Raise ValueError for a pattern that ``matches`` refuses, or more of them than can be followed in a moment."""
    length = 0
    for count, pattern in enumerate(patterns):
        if count == COUNT_LIMIT:
            raise ValueError(f"there are more than {COUNT_LIMIT} patterns")
        _compiled(pattern)
        length += 0 if _PLAIN.fullmatch(pattern) else len(pattern)
    if length > PATTERNS_LIMIT:
        raise ValueError(f"the patterns have {length} characters")


@lru_cache(maxsize=8192)
def _compiled(pattern: str) -> Callable[[str], bool]:
    if len(pattern) > PATTERN_LIMIT:
        raise ValueError(f"{pattern[:80]!r}... is too long")
    if _PLAIN.fullmatch(pattern):
        plain = re.compile(rf"(?:.*\.)?(?:{pattern})$", re.S)
        return lambda name: plain.match(name) is not None
    tokens = _TOKEN.findall(pattern)
    if "".join(tokens) != pattern:
        raise ValueError(f"{pattern!r} can't be followed")
    parser = _Parser(iter([*tokens, ""]), pattern)
    node = parser.either()
    if parser.token:
        raise ValueError(f"{pattern!r} has a bracket too many")

    def followed(name: str) -> bool:
        text = _text(name)
        starts = 1 | (text.mask("\\.") << 1)
        return bool(node(text, starts) & text.end)

    return followed


@lru_cache(maxsize=4)
def _text(name: str) -> _Text:
    return _Text(name)


class _Parser:
    def __init__(self, tokens: Iterator[str], pattern: str) -> None:
        self._tokens, self._pattern, self.repeats = tokens, pattern, 0
        self.token = next(tokens)

    def _take(self) -> str:
        taken, self.token = self.token, next(self._tokens, "")
        return taken

    def either(self) -> Node:
        options = [self._sequence()]
        while self.token == "|":
            self._take()
            options.append(self._sequence())
        return (
            options[0]
            if len(options) == 1
            else lambda text, at: _union(option(text, at) for option in options)
        )

    def _sequence(self) -> Node:
        nodes = []
        while self.token not in ("", "|", ")"):
            nodes.append(self._repeated())

        def sequence(text: _Text, at: int) -> int:
            for node in nodes:
                if not at:
                    break
                at = node(text, at)
            return at

        return sequence

    def _repeated(self) -> Node:
        before = self.repeats
        node = self._atom()
        if self.token in _QUANTIFIERS:
            low, high = _QUANTIFIERS[self._take()]
        elif self.token.startswith("{"):
            first, comma, last = self._take()[1:-1].partition(",")
            low, high = int(first), (int(last) if last else None) if comma else int(first)
        else:
            return node
        if self.token == "?":  # the lazy form fits the same texts
            self._take()
        if self.repeats > before or self.token in ("*", "+") or self.token.startswith("{"):
            raise ValueError(f"{self._pattern!r} has quantifiers within quantifiers")
        self.repeats += 1
        return lambda text, at: _repeat(node, text, at, low, high)

    def _atom(self) -> Node:
        token = self._take()
        if token in ("(", "(?:"):
            node = self.either()
            if self._take() != ")":
                raise ValueError(f"{self._pattern!r} has a bracket too few")
            return node
        if token == "^":
            return lambda text, at: at & 1
        if token == "$":
            return lambda text, at: at & text.end
        if token in _QUANTIFIERS or token == ")":
            raise ValueError(f"{self._pattern!r} has a {token} at a wrong place")
        try:
            re.compile(token)
        except re.error as error:
            raise ValueError(f"{self._pattern!r} is no regular expression ({error})") from error
        return lambda text, at: (at & text.mask(token)) << 1


def _union(places: Iterator[int]) -> int:
    found = 0
    for at in places:
        found |= at
    return found


def _repeat(node: Node, text: _Text, at: int, low: int, high: int | None) -> int:
    """The places where so many repetitions may end; more than the text is long make no difference."""
    for _ in range(min(low, len(text.text) + 1)):
        at = node(text, at)
    found, count = at, low
    while at and (high is None or count < high):
        at = node(text, at) & ~found
        found, count = found | at, count + 1
    return found
