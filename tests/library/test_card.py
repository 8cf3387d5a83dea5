"""The card of a merge: what is filled in, what of the user's stays, which picture becomes the preview."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.errors import OutputError
from lib_ziplora.hosts import Drawn
from lib_ziplora.library.card import OWN, filled, with_card, write_card, write_preview
from lib_ziplora.pipeline.merge import run

from ..support.pico_host import PicoHost
from ..support.small_merges import pico_host

OURS = Drawn(Image.new("RGB", (8, 8), "red"), "a dog\nSeed: 1")


@pytest.fixture
def host(tmp_path: Path) -> PicoHost:
    host = pico_host(tmp_path)
    merge(host)
    return host


def merge(host, subject_prompt="a sks dog", overwrite=False, **settings):
    loras = LoraInput("dog", subject_prompt, 0.8), LoraInput("ink", "a cat in ink style", role="style")
    request = MergeRequest(loras, "merged", overwrite, MergeSettings(method="direct", **settings))
    return run(request, host)


def card(host: PicoHost) -> dict[str, object]:
    return json.loads((host.folder / "merged.json").read_text(encoding="utf-8"))


def put(host: PicoHost, **values: object) -> None:
    (host.folder / "merged.json").write_text(json.dumps(values), encoding="utf-8")


def test_a_new_card_has_what_the_lora_pane_shows(host: PicoHost) -> None:
    assert write_card("merged", host) == host.folder / "merged.json"
    written = card(host)
    assert written["activation text"] == "a sks dog in ink style"
    assert (written["sd version"], written["preferred weight"]) == ("SDXL", 1.0)
    assert "dog (subject)" in str(written["description"]) and "ink (style)" in str(written["description"])
    assert "dog: weight 0.8, prompt: a sks dog" in str(written["notes"])


def test_the_prompt_for_both_is_the_activation_text(host: PicoHost) -> None:
    merge(host, overwrite=True, combined_prompt="ink dog")
    write_card("merged", host)
    assert card(host)["activation text"] == "ink dog"


def test_what_the_user_has_written_stays(host: PicoHost) -> None:
    put(host, **{"activation text": "mine", "preferred weight": 0.6, "notes": "", "rating": 5})
    write_card("merged", host)
    written = card(host)
    assert (written["activation text"], written["preferred weight"], written["rating"]) == ("mine", 0.6, 5)
    assert written["notes"] and written["sd version"] == "SDXL"


def test_what_an_older_merge_of_the_name_has_left_is_replaced_but_not_what_was_edited(host: PicoHost) -> None:
    write_card("merged", host)
    put(host, **{**card(host), "description": "edited"})
    merge(host, "a zwx hound", overwrite=True)
    write_card("merged", host)
    assert card(host)["activation text"] == "a zwx hound in ink style"
    assert card(host)["description"] == "edited"
    before = (host.folder / "merged.json").read_bytes()
    write_card("merged", host)
    assert (host.folder / "merged.json").read_bytes() == before


@pytest.mark.parametrize("left", [{}, {"a": 1}, "none", None, 3])
def test_filling_keeps_every_foreign_value(left: object) -> None:
    current = {"a": "user's", "b": "", "c": False, OWN: left}
    found = filled(current, {"a": "x", "b": "y", "c": "z", "d": "w"})
    assert (found["a"], found["b"], found["c"], found["d"]) == ("user's", "y", False, "w")


@pytest.mark.parametrize("content", ["{", "[1]", "\xff", "nul", '"text"'])
def test_a_damaged_card_is_left_alone_and_told(host: PicoHost, content: str) -> None:
    file = host.folder / "merged.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(OutputError, match=r"merged\.json"):
        write_card("merged", host)
    report = with_card(merge(host, overwrite=True), host)
    assert "its card is not" in report.warnings[-1] and file.read_bytes() == content.encode("latin-1")


def test_a_card_that_can_be_written_adds_no_warning(host: PicoHost) -> None:
    report = merge(host, overwrite=True)
    assert with_card(report, host) == report and card(host)["sd version"] == "SDXL"


def test_no_half_written_card_is_left(host: PicoHost, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, notes="mine")
    before = {path.name for path in host.folder.iterdir()}

    def full(self: Path, *_: object, **__: object) -> None:
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="disk is full"):
        write_card("merged", host)
    assert {path.name for path in host.folder.iterdir()} == before and card(host) == {"notes": "mine"}


def preview(host: PicoHost, drawn: Drawn = OURS, replace: bool = False) -> Path:
    return write_preview("merged", host, drawn, replace)


def colour(path: Path) -> object:
    with Image.open(path) as image:
        return image.convert("RGB").getpixel((0, 0))


def test_the_preview_carries_its_infotext_and_may_be_replaced_by_another(host: PicoHost) -> None:
    file = preview(host)
    with Image.open(file) as image:
        assert image.info["parameters"] == OURS.infotext
    assert file.name == "merged.preview.png"
    assert preview(host, Drawn(Image.new("RGB", (8, 8), "blue"), "")) == file and colour(file) == (0, 0, 255)


@pytest.mark.parametrize("name", ["merged.png", "merged.preview.png", "merged.jpg", "merged.preview.webp"])
def test_a_picture_of_the_users_stays(host: PicoHost, name: str) -> None:
    (host.folder / name).write_bytes(b"the user's")
    with pytest.raises(OutputError, match=name):
        preview(host)
    assert (host.folder / name).read_bytes() == b"the user's"
    assert [path.name for path in host.folder.glob("merged*.*g")] in ([name], [])


def test_on_the_users_word_his_png_is_replaced_and_no_other_kind(host: PicoHost) -> None:
    Image.new("RGB", (8, 8), "white").save(host.folder / "merged.png")
    assert preview(host, replace=True).name == "merged.png"
    assert colour(host.folder / "merged.png") == (255, 0, 0)
    (host.folder / "merged.webp").write_bytes(b"the user's")
    with pytest.raises(OutputError, match=r"merged\.webp"):
        preview(host, replace=True)
