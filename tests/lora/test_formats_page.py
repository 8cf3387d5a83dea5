"""The page about formats is the one that the tables make."""

from __future__ import annotations

from lib_ziplora.lora.formats.families import FAMILIES
from lib_ziplora.lora.formats.keys import PARTS

from .formats_page import PAGE, page


def test_the_page_is_that_of_the_tables():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_family_and_every_tensor_name_is_on_it():
    text = page()
    assert all(family.label in text for family in FAMILIES.values())
    assert all(f"| `{tail}` |" in text for tail in PARTS)
