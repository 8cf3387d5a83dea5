"""What the pickers offer and show: list, card, thumbnail, recent merges, the prompt for both."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
from PIL import Image

from lib_ziplora.config import setting_defaults
from lib_ziplora.hosts import InstalledLora
from lib_ziplora.library.catalog import CatalogEntry, entries_of
from lib_ziplora.ui import card, tab
from lib_ziplora.ui.forms import SLOTS, value_names
from lib_ziplora.ui.handlers import Desk
from lib_ziplora.ui.shelf import MOST_PICTURES, PATIENCE, Shelf
from lib_ziplora.ui.thumbnail import SIDE, SMALL_SIDE, preview_of, thumbnail

from ..support.pico_host import PicoHost, module_names, write_kohya
from .fake_host import EVIL, FakeEngine, FakeHost, rows
from .test_tab import component, functions, handler
from .test_text import Balance

ENTRY = CatalogEntry(
    "cat",
    Path("cat.safetensors"),
    "sdxl",
    64,
    722,
    "a cat",
    True,
    "",
    (4, 16, 64),
    "lora+dora",
    12_345_678,
    "sks",
)


# The list


def test_the_list_says_what_each_lora_is_and_why_not() -> None:
    entries = [
        replace(ENTRY, name="old", base="sd1", usable=False, reason="It is old."),
        replace(ENTRY, name="broken", base="", family="", usable=False, reason="It is broken."),
        replace(ENTRY, name="new", pending=True),
        ENTRY,
    ]
    shown = rows(card.listing(entries))
    assert [name for name, _, _ in shown] == ["new", "cat", "old", "broken"]
    assert [card.LIST_STATES[state] for _, _, state in shown] == ["pending", "usable", "unusable", "unusable"]
    notes = {name: note for name, note, _ in shown}
    assert notes["old"] == "for Stable Diffusion 1.x" and notes["broken"] == "can't be read"
    assert notes["cat"] == "LoRA + DoRA · rank 64" and notes["new"] == ""
    assert 'data-pending="1"' in card.listing(entries)


def test_names_in_the_list_are_escaped() -> None:
    listing = card.listing([replace(ENTRY, name=EVIL)])
    assert "<img" not in listing and rows(listing)[0][0] == EVIL


def test_one_request_judges_only_for_a_while() -> None:
    asked: list[tuple[list[str], float]] = []

    def entries_of(loras: Any, host: Any, patience: float) -> list[CatalogEntry]:
        asked.append(([lora.name for lora in loras], patience))
        return [replace(ENTRY, name=lora.name) for lora in loras]

    shelf = Shelf(FakeHost(), entries_of)
    shelf.refresh()
    shelf.judge_more()
    assert asked == [(["cat", "ink", "old"], PATIENCE)] * 2
    shelf.card("ink")
    assert asked[2:] == [(["ink"], float("inf"))]


def test_the_folder_is_listed_when_asked_to_or_when_a_name_is_new() -> None:
    class Counting(FakeHost):
        listed = 0

        def loras(self) -> Any:
            self.listed += 1
            return super().loras()

    host = Counting()
    shelf = Shelf(host, FakeEngine().judged)
    for _ in range(3):
        assert shelf.names() == ["cat", "ink", "old"] and shelf.trigger("cat") == "a cat"
    shelf.judge_more()
    shelf.card("cat")
    assert host.listed == 1
    host.cards["new"] = {}
    assert shelf.entry("new") is not None and host.listed == 2
    assert shelf.entry("gone") is None and host.listed == 3
    shelf.refresh()
    assert host.listed == 4


# The card


def test_the_card_shows_everything_of_a_picked_lora() -> None:
    html = card.card(ENTRY, "cat", "data:image/jpeg;base64,AAAA")
    words = " ".join(text for text in Texts(html).found)
    for part in ("Stable Diffusion XL", "LoRA + DoRA", "ranks 4 to 64", "722 layers", "12.3 MB", "sks"):
        assert part in words
    assert 'src="data:image/jpeg;base64,AAAA"' in html and "Not usable" not in words


def test_the_card_says_why_a_lora_can_not_be_used() -> None:
    html = card.card(replace(ENTRY, usable=False, reason=f"It is for SD 1.5 {EVIL}."), "cat")
    assert "ziplora-bad" in html and "It is for SD 1.5" in html and "<img" not in html
    assert card.CHOOSE in card.card(None, "") and "not installed" in card.card(None, "gone")


def test_the_card_of_a_real_file(tmp_path: Path) -> None:
    write_kohya(tmp_path / "a.safetensors", module_names(), rank=3)
    host = PicoHost(tmp_path)
    host.cards["a"] = {"activation text": "sks dog"}
    words = " ".join(Texts(Desk(host).shelf.card("a")).found)
    for part in ("Stable Diffusion XL", "LoRA", "rank 3", f"{len(module_names())} layers", "sks dog"):
        assert part in words


class Texts(Balance):
    """The text nodes of a piece of HTML."""

    def __init__(self, html: str) -> None:
        self.found: list[str] = []
        super().__init__(html)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.found.append(data.strip())


@pytest.mark.parametrize("ranks, words", [((16,), "16"), ((4, 8), "4 and 8"), ((4, 8, 64), "4 to 64")])
def test_ranks_in_words(ranks: tuple[int, ...], words: str) -> None:
    assert card.ranks(ranks) == words


# The thumbnail


def picture(path: Path, size: tuple[int, int] = (40, 20), colour: str = "red") -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def decoded(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_preview_is_the_one_that_the_webui_shows(tmp_path: Path) -> None:
    lora = tmp_path / "a.b.safetensors"
    assert preview_of(lora) is None and thumbnail(lora) == ""
    later = picture(tmp_path / "a.b.preview.jpg")
    assert preview_of(lora) == later
    first = picture(tmp_path / "a.b.png")
    assert preview_of(lora) == first


def test_the_thumbnail_is_small_and_follows_the_file(tmp_path: Path) -> None:
    lora = tmp_path / "a.safetensors"
    picture(tmp_path / "a.png", (1000, 500))
    red = decoded(thumbnail(lora))
    assert red.size == (SIDE, SIDE // 2)
    picture(tmp_path / "a.png", (1001, 500), "blue")
    assert decoded(thumbnail(lora)).getpixel((5, 5)) != red.getpixel((5, 5))


@pytest.mark.parametrize(
    "content", [b"", b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_a_file_that_is_no_picture_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert thumbnail(tmp_path / "a.safetensors") == ""


@pytest.mark.parametrize(
    "names", ["", "[]", "{", "3", "[1, null]", "[" * 100_000, '["gone", "../a"]'], ids=lambda n: n[:9]
)
def test_pictures_of_what_is_not_installed_are_none(names: str) -> None:
    assert all(url == "" for url in pictures_of(FakeHost(["a"]), names).values())


def pictures_of(host: FakeHost, names: str) -> dict[str, str]:
    found = re.search(r'data-pictures="([^"]*)"', Desk(host, FakeEngine().engine()).shelf.pictures(names))
    assert found
    shown: dict[str, str] = json.loads(unescape(found[1]))
    return shown


def test_a_list_gets_small_pictures_and_not_too_many_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png", (1000, 500))
    names = ["a", "b", EVIL, *map(str, range(100))]
    found = pictures_of(FakeHost(names), json.dumps(names))
    assert list(found) == names[:MOST_PICTURES] and found["b"] == found[EVIL] == ""
    assert decoded(found["a"]).size == (SMALL_SIDE, SMALL_SIDE // 2)


def test_a_link_to_a_picture_elsewhere_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    (folder / "a.png").symlink_to(picture(tmp_path / "private.png"))
    assert preview_of(folder / "a.safetensors") is None
    (tmp_path / "linked").symlink_to(folder, target_is_directory=True)
    picture(folder / "a.jpg")
    assert preview_of(tmp_path / "linked" / "a.safetensors") == tmp_path / "linked" / "a.jpg"


# Recent merges


@pytest.fixture
def desk() -> Desk:
    return Desk(FakeHost(), FakeEngine().engine())


@pytest.fixture
def page(desk: Desk) -> Any:
    return tab.build(desk.host, desk)


GIVEN = {
    "subject": "cat",
    "subject_prompt": "a cat",
    "subject_weight": 0.8,
    "style": "ink",
    "style_prompt": "a cat in ink style",
    "style_weight": 1.2,
    "third": "old",
    "third_prompt": "an old cat",
    "third_weight": 0.5,
    "third_role": "style",
    "output": "made",
    "combined_prompt": "mine",
}


def merge(desk: Desk, **changed: Any) -> str:
    given = {**dict.fromkeys(value_names()), **setting_defaults(), **GIVEN, "overwrite": False, **changed}
    values = [given[name] for name in value_names()]
    ticket, refused = desk.prepare(values)
    assert refused == ""
    desk.work(ticket, values)
    return desk.recent.merges()[0].key


def recalled(page: Any, key: str) -> dict[str, Any]:
    """Name of a control -> what a click on a recent merge puts into it."""
    target = component(page, "recall")._id
    outputs = next(d["outputs"] for d in page.config["dependencies"] if target in flat(d["targets"]))
    known = {block._id: getattr(block, "elem_id", None) or "" for block in page.blocks.values()}
    names = [known[one].removeprefix("ziplora_") for one in outputs]
    return dict(zip(names, handler(page, "recall")(key), strict=True))


def flat(targets: Any) -> list[Any]:
    return [one if isinstance(one, int) else one[0] for one in targets]


def test_one_click_fills_the_form(desk: Desk, page: Any) -> None:
    filled = recalled(page, merge(desk))
    names = [name for slot in SLOTS[:3] for name in slot.value_names()]
    assert {name: filled[name] for name in names} == {name: GIVEN[name] for name in names}
    assert filled["fourth"] == "" and filled["combined_prompt"] == "mine"


def test_a_merge_that_failed_is_not_remembered(desk: Desk) -> None:
    merge(desk)
    with pytest.raises(AssertionError):
        merge(desk, style="cat")
    assert len(desk.recent.merges()) == 1


def test_a_forgotten_merge_changes_nothing(page: Any) -> None:
    values = recalled(page, "gone").values()
    assert all(isinstance(value, dict) and "value" not in value for value in values)


def test_recent_merges_are_buttons_and_missing_loras_are_named(desk: Desk, page: Any) -> None:
    assert handler(page, "refresh")()[1] == ""
    key = merge(desk)
    html = handler(page, "refresh")()[1]
    assert f'data-recent="{key}"' in html and "cat × ink × old" in html and "disabled" not in html
    desk.host.cards.pop("old")
    html = handler(page, "refresh")()[1]
    assert "disabled" in html and "old: not installed any more" in html


def test_names_on_the_buttons_are_escaped(desk: Desk, page: Any) -> None:
    desk.host.cards[EVIL] = {}
    merge(desk, third=EVIL, third_prompt=f'" {EVIL}')
    html = handler(page, "refresh")()[1]
    parsed = Balance(html)
    assert parsed.open == [] and parsed.seen == {"div", "span", "button"}


# The prompt for both together


def combine(page: Any, current: str = "", filled: str = "", **changed: Any) -> list[str]:
    given = {**dict.fromkeys((name for slot in SLOTS for name in slot.value_names()), ""), **GIVEN, **changed}
    names = [name for slot in SLOTS for name in slot.value_names() if not name.endswith("_weight")]
    function = next(one for one in functions(page) if getattr(one, "__name__", "") == "combine")
    return function(current, filled, *[given[name] for name in names])


def test_it_follows_the_prompts_until_the_user_writes_or_clears_it(page: Any) -> None:
    made = combine(page, third="")
    assert made == ["a cat in ink style"] * 2
    assert combine(page, *made, third="", subject_prompt="a dog") == ["a dog in ink style"] * 2
    assert combine(page, "my own", made[1]) == ["my own", made[1]]
    assert combine(page, "", made[1]) == ["", made[1]]


def test_it_has_the_words_of_every_lora_in_its_role(page: Any) -> None:
    assert combine(page) == ["a cat in ink style, an old cat"] * 2
    assert combine(page, third_role="subject") == ["a cat and an old cat in ink style"] * 2
    assert combine(page, style="", third="") == ["", ""]


def test_the_settings_pages_default_counts_as_the_users_own() -> None:
    host = FakeHost()
    chosen = {**setting_defaults(), "combined_prompt": "always this"}
    page = tab.build(host, Desk(host, FakeEngine().engine()), chosen)
    assert component(page, "combined_prompt").value == "always this"
    assert combine(page, "always this", "")[0] == "always this"


def test_a_recalled_prompt_goes_on_following_if_it_was_the_suggested_one(desk: Desk, page: Any) -> None:
    own = merge(desk)
    assert handler(page, "recall")(own)[-2:] == ["mine", ""]
    made = combine(page)[0]
    suggested = merge(desk, combined_prompt=made)
    assert handler(page, "recall")(suggested)[-2:] == [made, made]


def test_the_host_of_a_listing_is_passed_on(tmp_path: Path) -> None:
    host = PicoHost(tmp_path)
    path = write_kohya(tmp_path / "a.safetensors", module_names())
    (entry,) = entries_of([InstalledLora("other name", path)], host, 0)
    assert entry.name == "other name" and entry.path == path
