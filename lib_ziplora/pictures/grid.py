"""Labelled grid of pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST_CELL, LARGEST_CELL = 192, 512
"""Edges that a picture gets on the sheet, in pixels."""
GAP = 8
SMALLEST_LETTERS, LETTERS_OF_CELL, LEFT_IN_LETTERS = 12, 16, 9
"""Size of the letters in pixels, how many of them make a cell, and the width of the row names."""
DETAIL_SIZE, LEADING = 0.85, 1.4
TITLE_LINES, DETAIL_LINES = 2, 3
WHITE, BLACK, GREY, PALE = "#ffffff", "#111111", "#555555", "#e5e5e5"
FONTS = ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf", "Helvetica.ttc")
"""Looked for among the system's, where the host brings none."""
NOT_DRAWN = "not drawn"
ELLIPSIS = "…"
WIDE = ("W", "F")
"""East Asian widths of letters that stand without spaces between words."""


@dataclass(frozen=True)
class Label:
    """The name of a row or column: a title, and a few lines in smaller letters."""

    title: str
    detail: str = ""


@dataclass(frozen=True)
class _Hand:
    """A font, its colour, and the pixels from one line to the next."""

    font: Any
    colour: str
    leading: int


@dataclass(frozen=True)
class _Frame:
    """Where things stand on a sheet, in pixels."""

    cell: tuple[int, int]
    columns: int
    left: int
    top: int

    @property
    def group(self) -> int:
        """Width of a group of columns, with the room behind it."""
        return self.columns * (self.cell[0] + GAP) + GAP

    def corner(self, row: int, group: int, column: int) -> tuple[int, int]:
        """The upper left corner of a picture."""
        left = self.left + group * self.group + column * (self.cell[0] + GAP)
        return left, self.top + row * (self.cell[1] + GAP)


def labelled_grid(
    rows: Sequence[Label],
    groups: Sequence[Label],
    columns: Sequence[str],
    pictures: Mapping[tuple[int, int, int], Image],
    font: Path | None = None,
) -> Image:
    """One sheet of pictures: a row for each of ``rows``, in each group the same ``columns``.

    Texts that don't fit are wrapped, and end in an ellipsis; a picture that is missing leaves a grey
    field.

    Args:
        rows: their names, at the left.
        groups: what stands above each group of columns.
        columns: of every group; one alone gets no name.
        pictures: (row, group, column) -> picture, all of one size.
        font: a TrueType file; the system's or Pillow's own by default.

    Returns:
        RGB.

    Raises:
        ValueError: no row, group or column.
    """
    from PIL import Image, ImageDraw

    if not (rows and groups and columns):
        raise ValueError("A grid needs rows, groups and columns.")
    cell = _cell(pictures)
    hands = _hands(font, max(SMALLEST_LETTERS, cell[0] // LETTERS_OF_CELL))
    left = LEFT_IN_LETTERS * max(SMALLEST_LETTERS, cell[0] // LETTERS_OF_CELL) + 2 * GAP
    shown = list(columns) if len(columns) > 1 else []
    heads = [_lines(group, _Frame(cell, len(columns), 0, 0).group - 2 * GAP, hands) for group in groups]
    above = 2 * GAP + max(_height(head) for head in heads)
    frame = _Frame(cell, len(columns), left, above + (hands[1].leading if shown else 0))
    size = frame.left + len(groups) * frame.group, frame.top + len(rows) * (cell[1] + GAP)
    sheet = Image.new("RGB", size, WHITE)
    pen = ImageDraw.Draw(sheet)
    for number, head in enumerate(heads):
        _write(pen, (frame.corner(0, number, 0)[0], GAP), head)
        for column, name in enumerate(shown):
            line = _fitted(name, cell[0], 1, hands[1].font)
            _write(pen, (frame.corner(0, number, column)[0], above), [(text, hands[1]) for text in line])
    for row, label in enumerate(rows):
        lines = _lines(label, frame.left - 2 * GAP, hands)
        _write(pen, (GAP, frame.corner(row, 0, 0)[1]), _within(lines, cell[1]))
        for group in range(len(groups)):
            for column in range(len(columns)):
                picture = pictures.get((row, group, column))
                _put(sheet, pen, picture, frame.corner(row, group, column), cell, hands[1])
    return sheet


def _cell(pictures: Mapping[tuple[int, int, int], Image]) -> tuple[int, int]:
    """The pictures' own size, within the bounds for the longer edge."""
    width, height = next((picture.size for picture in pictures.values()), (SMALLEST_CELL, SMALLEST_CELL))
    edge = max(width, height)
    scale = min(max(edge, SMALLEST_CELL), LARGEST_CELL) / edge
    return max(1, round(width * scale)), max(1, round(height * scale))


def _put(
    sheet: Image, pen: Any, picture: Image | None, corner: tuple[int, int], cell: tuple[int, int], hand: _Hand
) -> None:
    from PIL import Image

    if picture is not None:
        sheet.paste(picture.convert("RGB").resize(cell, Image.Resampling.LANCZOS), corner)
        return
    left, top = corner
    pen.rectangle((left, top, left + cell[0] - 1, top + cell[1] - 1), fill=PALE)
    _write(pen, (left + GAP, top + GAP), [(NOT_DRAWN, hand)])


def _lines(label: Label, width: int, hands: tuple[_Hand, _Hand]) -> list[tuple[str, _Hand]]:
    """A label's title in the large font, its detail in the small one below."""
    large, small = hands
    title = _fitted(label.title, width, TITLE_LINES, large.font)
    detail = _fitted(label.detail, width, DETAIL_LINES, small.font)
    return [*[(line, large) for line in title], *[(line, small) for line in detail]]


def _height(lines: Sequence[tuple[str, _Hand]]) -> int:
    return sum(hand.leading for _, hand in lines)


def _within(lines: list[tuple[str, _Hand]], height: int) -> list[tuple[str, _Hand]]:
    """As many of the lines as have room."""
    while _height(lines) > height:
        lines = lines[:-1]
    return lines


def _write(pen: Any, corner: tuple[int, int], lines: Sequence[tuple[str, _Hand]]) -> None:
    left, top = corner
    for text, hand in lines:
        pen.text((left, top), _drawable(text, hand.font), hand.colour, hand.font)
        top += hand.leading


def _fitted(text: str, width: int, lines: int, font: Any) -> list[str]:
    """The text in at most so many lines, none wider than ``width``; what is left over becomes an ellipsis.

    A word that is wider by itself, usually a file's name, gets the ellipsis in its middle.
    """
    words = " ".join(_shortened(word, width, font) for word in text.split())
    letters = len(words)
    while letters > 1:
        wrapped = textwrap.wrap(words, letters, max_lines=lines, placeholder=ELLIPSIS, break_on_hyphens=False)
        if all(font.getlength(_drawable(line, font)) <= width for line in wrapped):
            return wrapped
        letters -= max(1, letters // 20)
    if len(words) > 1:
        return [ELLIPSIS]
    return [words] if words else []


def _shortened(word: str, width: int, font: Any) -> str:
    """A word of letters in at most ``width``; scripts that are written without spaces are wrapped instead."""
    if any(east_asian_width(letter) in WIDE for letter in word):
        return word
    shown, kept = word, len(word)
    while kept > 2 and font.getlength(_drawable(shown, font)) > width:
        kept -= 1
        shown = f"{word[: (kept + 1) // 2]}{ELLIPSIS}{word[-(kept // 2) :]}"
    return shown


def _drawable(text: str, font: Any) -> str:
    """The text as the font can take it: Pillow's oldest own font knows Latin-1 alone."""
    from PIL import ImageFont

    if isinstance(font, ImageFont.FreeTypeFont):
        return text
    return text.replace(ELLIPSIS, "...").encode("latin-1", "replace").decode("latin-1")


def _hands(file: Path | None, size: int) -> tuple[_Hand, _Hand]:
    """For titles and for what stands below them."""
    small = round(DETAIL_SIZE * size)
    return (
        _Hand(_font(file, size), BLACK, round(LEADING * size)),
        _Hand(_font(file, small), GREY, round(LEADING * small)),
    )


def _font(file: Path | None, size: int) -> Any:
    """The file, else a font of the system, else Pillow's own."""
    from PIL import ImageFont

    for name in (*([str(file)] if file else []), *FONTS):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size only
        return ImageFont.load_default()
