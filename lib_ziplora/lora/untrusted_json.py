"""JSON of other people's files, read with no more time and memory than its length allows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# JSON text from this length on must have this many characters an item: a list of empty lists takes 24 bytes a
# character, once it is read.
LONG_JSON = 1 << 16
CHARACTERS_PER_ITEM = 8

_SPACE = re.compile(r"[ \t\n\r]*")
_SCALAR = re.compile(r"[-+.\w]{1,40}")
_DECODER = json.JSONDecoder()


def load_json(text: str) -> Any:
    """Read JSON from a file of somebody else.

    Raises:
        ValueError: it is none, is nested too deeply, or would take many times its size in memory.
    """
    items = sum(map(text.count, ",[{")) if len(text) > LONG_JSON else 0
    if items * CHARACTERS_PER_ITEM > len(text):
        raise ValueError("it consists of hardly anything but brackets and commas")
    try:
        value = json.loads(text)
        if "\\u" in text:
            require_text(json.dumps(value, ensure_ascii=False))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def require_text(text: str) -> None:
    """Raise ValueError for half of a surrogate pair, which Python's JSON reads and nothing can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a character at character {error.start}") from error


class Scanner:
    """JSON text that is read value by value; every method raises ValueError where it stands at something else."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def members(self) -> Iterator[str]:
        """The names of an object's members; the caller reads the value of each before it asks for the next."""
        self._expect("{")
        if self.stands_at("}"):
            self._at += 1
            return
        while True:
            key = self.string()
            self._expect(":")
            yield key
            if not self.stands_at(","):
                self._expect("}")
                return
            self._at += 1

    def stands_at(self, character: str) -> bool:
        """Whether the next character, spaces aside, is this one."""
        if character and self._text.startswith(character, self._at):
            return True
        found = _SPACE.match(self._text, self._at)
        self._at = self._at if found is None else found.end()
        return self._text.startswith(character, self._at)

    def string(self) -> str:
        if not self.stands_at('"'):
            raise ValueError(f"no string at character {self._at}")
        value, self._at = _DECODER.raw_decode(self._text, self._at)
        require_text(value)
        return str(value)

    def scalar(self) -> Any:
        """A number, true, false or null."""
        self.stands_at("")
        found = _SCALAR.match(self._text, self._at)
        if found is None:
            raise ValueError(f"no simple value at character {self._at}")
        self._at = found.end()
        return json.loads(found.group())

    def flat_object(self, limit: int) -> Any:
        """An object without objects and braces in it, of at most ``limit`` characters."""
        self.stands_at("{")
        end = self._text.find("}", self._at, self._at + limit) + 1
        if not end:
            raise ValueError(f"no short object at character {self._at}")
        start, self._at = self._at, end
        return json.loads(self._text[start:end])

    def end(self) -> None:
        self.stands_at("")
        if self._at != len(self._text):
            raise ValueError(f"more text after character {self._at}")

    def _expect(self, character: str) -> None:
        if not self.stands_at(character):
            raise ValueError(f"no {character} at character {self._at}")
        self._at += 1
