"""The labelled sheet: where pictures stand, what texts may take, which fonts can be missing."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from lib_ziplora.pictures import grid
from lib_ziplora.pictures.grid import GAP, LARGEST_CELL, SMALLEST_CELL, Label, labelled_grid

ROWS, GROUPS, COLUMNS = [Label("one"), Label("two")], [Label("a"), Label("b"), Label("c")], ["s 0", "s 1"]
LONG = "a very detailed picture of a turtle, " * 40


def pictures(size=(200, 200)):
    """Each of its own colour."""
    places = itertools.product(range(len(ROWS)), range(len(GROUPS)), range(len(COLUMNS)))
    return {
        place: Image.new("RGB", size, (40 + 100 * place[0], 50 + 60 * place[1], 250 - 100 * place[2]))
        for place in places
    }


def corner_of(sheet: Image.Image, picture: Image.Image) -> tuple[int, int]:
    """Where a picture's colour begins."""
    same = (np.asarray(sheet) == picture.getpixel((0, 0))).all(axis=-1)
    top, left = np.argwhere(same)[0]
    return int(left), int(top)


def test_every_picture_stands_in_its_row_and_column() -> None:
    given = pictures()
    sheet = labelled_grid(ROWS, GROUPS, COLUMNS, given)
    corners = {place: corner_of(sheet, picture) for place, picture in given.items()}
    for (row, group, column), (left, top) in corners.items():
        assert top == corners[row, 0, 0][1] and left == corners[0, group, column][0]
    ordered = [corners[0, group, column][0] for group in range(3) for column in range(2)]
    assert ordered == sorted(ordered) and corners[1, 0, 0][1] == corners[0, 0, 0][1] + 200 + GAP
    last = corners[1, 2, 1]
    assert last[0] + 200 <= sheet.width and last[1] + 200 <= sheet.height


@pytest.mark.parametrize(
    ("size", "cell"),
    [
        ((64, 64), (SMALLEST_CELL, SMALLEST_CELL)),
        ((1024, 1024), (LARGEST_CELL, LARGEST_CELL)),
        ((1024, 512), (LARGEST_CELL, LARGEST_CELL // 2)),
        ((300, 200), (300, 200)),
    ],
)
def test_small_pictures_grow_and_large_ones_shrink(size, cell) -> None:
    picture = Image.new("RGB", size, (10, 200, 30))
    sheet = labelled_grid(ROWS[:1], GROUPS[:1], COLUMNS[:1], {(0, 0, 0): picture})
    colours = {value: count for count, value in sheet.getcolors(1 << 20)}
    assert colours[10, 200, 30] == cell[0] * cell[1]


def test_a_missing_picture_leaves_a_grey_field() -> None:
    given = pictures()
    del given[1, 2, 1]
    sheet = labelled_grid(ROWS, GROUPS, COLUMNS, given)
    whole = labelled_grid(ROWS, GROUPS, COLUMNS, pictures())
    left, top = corner_of(whole, pictures()[1, 2, 1])
    assert sheet.size == whole.size and sheet.getpixel((left + 190, top + 190)) == (0xE5, 0xE5, 0xE5)


def test_long_texts_are_cut_and_leave_the_pictures_alone() -> None:
    given = pictures()
    long_rows, long_groups = [Label(LONG, LONG)] * 2, [Label(LONG, LONG)] * 3
    sheet = labelled_grid(long_rows, long_groups, [LONG] * 2, given)
    assert sheet.height < 2 * labelled_grid(ROWS, GROUPS, COLUMNS, given).height
    colours = {value: count for count, value in sheet.getcolors(1 << 20)}
    assert all(colours[picture.getpixel((0, 0))] == 200 * 200 for picture in given.values())


@pytest.mark.parametrize("text", ["x" * 500, "墨" * 300, "word " * 200, "one", "", "W", " spaced  out "])
@pytest.mark.parametrize("lines", [1, 3])
def test_fitted_lines_are_few_and_narrow(text: str, lines: int) -> None:
    font = grid._font(None, 14)
    found = grid._fitted(text, 120, lines, font)
    assert len(found) <= lines and all(font.getlength(line) <= 120 for line in found)
    words = " ".join(text.split())
    assert " ".join(found) == words if font.getlength(words) <= 120 else "…" in " ".join(found)


@pytest.mark.parametrize("name", ["minixl_subject_rocket-v1.2", "Ünïcödé_" * 12, "x" * 500])
def test_a_long_name_is_shortened_in_its_middle(name: str) -> None:
    font = grid._font(None, 14)
    found = grid._fitted(f"of {name} too", 120, 3, font)
    (shown,) = (word for line in found for word in line.split() if "…" in word)
    head, tail = shown.split("…")
    assert name.startswith(head) and name.endswith(tail) and 0 <= len(head) - len(tail) <= 1
    assert font.getlength(f"{name[: len(head) + 1]}…{name[-len(tail) - 1 :]}") > 120
    assert " ".join(found) == f"of {shown} too"


def test_without_any_font_pillows_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_):
        raise OSError("no such font")

    monkeypatch.setattr(ImageFont, "truetype", missing)
    sheet = labelled_grid([Label("墨 … é")], GROUPS, COLUMNS, pictures(), Path("nowhere.ttf"))
    assert sheet.size > (600, 200)


def test_nothing_makes_no_sheet() -> None:
    with pytest.raises(ValueError, match="needs rows"):
        labelled_grid([], GROUPS, COLUMNS, {})
