"""The prompt for all LoRAs of a merge together, made of their own."""

from __future__ import annotations

import pytest

from lib_ziplora.library.prompts import Prompted, combined_prompt, prompt_notes, style_words


@pytest.mark.parametrize(
    ("prompt", "trigger", "words"),
    [
        ("a cat icon in szn style", "", "in szn style"),
        ("a cat in the szn style, flat colours", "", "in the szn style, flat colours"),
        ("a cat in the style of szn", "", "in the style of szn"),
        ("portrait, style of szn", "", "style of szn"),
        ("a cat in a flat vector art style.", "", "in a flat vector art style"),
        ("a house painted by szn", "", "painted by szn"),
        ("a house by the sea", "szn", "a house by the sea"),
        ("a cat, szn style", "", "szn style"),
        ("a szn style drawing of a cat", "", "szn style"),
        ("a cat, szn, watercolor", "szn, watercolor", "szn, watercolor"),
        ("a cat, SZN", "szn", "szn"),
        ("szn", "", "szn"),
        ("a woman in the garden", "", "a woman in the garden"),
        ("a woman in the garden in szn style", "", "in szn style"),
        ("", "szn", ""),
    ],
)
def test_the_words_that_mean_the_style(prompt: str, trigger: str, words: str) -> None:
    assert style_words(prompt, trigger) == words


@pytest.mark.parametrize(
    ("subject", "style", "together"),
    [
        ("a sks icon", "a cat icon in szn style", "a sks icon in szn style"),
        ("photo of sks dog, ", "szn", "photo of sks dog, szn"),
        ("a sks dog in szn style", "a cat in szn style", "a sks dog in szn style"),
        ("a sks dog", "", ""),
        (" ", "szn style", ""),
    ],
)
def test_subject_and_style(subject: str, style: str, together: str) -> None:
    assert combined_prompt([Prompted("subject", subject), Prompted("style", style)]) == together
    assert combined_prompt([Prompted("style", style), Prompted("subject", subject)]) == together


def test_every_lora_has_its_words_once() -> None:
    loras = [
        Prompted("subject", "a sks dog"),
        Prompted("subject", "a zwx crown"),
        Prompted("style", "a cat in szn style"),
        Prompted("style", "a cat, ink", "ink"),
        Prompted("style", "a house in szn style"),
    ]
    assert combined_prompt(loras) == "a sks dog and a zwx crown in szn style, ink"


def test_without_a_subject_or_a_style_there_is_none() -> None:
    assert combined_prompt([Prompted("subject", "a dog"), Prompted("subject", "a cat")]) == ""
    assert combined_prompt([]) == ""


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a cat <lora:dog_v2:0.8> <lyco:x:1:2>", ["<lora:dog_v2:0.8> <lyco:x:1:2>"]),
        ("a [cat:dog:0.5]", ["[cat:dog:0.5]"]),
        ("a [cat: 12 ]", ["[cat: 12 ]"]),
        ("a [[red]|blue] [x|y]", ["[x|y]"]),
        ("a cat AND a dog", ["AND"]),
        ("a [dull] ((big)) [(red:1.3)] SAND and 3 < 4, time [12:30 pm]", []),
        (r"a \[x|y\]", []),
        ("[" * 10_000, []),
    ],
)
def test_what_a_merge_does_not_follow_is_told(prompt: str, says: list[str]) -> None:
    notes = prompt_notes(prompt)
    assert len(notes) == len(says)
    assert all(note.startswith(start) for note, start in zip(notes, says, strict=True))
