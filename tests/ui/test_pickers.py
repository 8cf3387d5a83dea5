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
import torch
from PIL import Image
from safetensors.torch import load_file

from lib_ziplora.config import setting_defaults
from lib_ziplora.hosts import InstalledLora
from lib_ziplora.hosts.listing import listed
from lib_ziplora.jobs.service import Service
from lib_ziplora.library.catalog import CatalogEntry, entries_of
from lib_ziplora.ui import card
from lib_ziplora.ui.lora_list import MOST_PICTURES, PATIENCE, LoraList
from lib_ziplora.ui.thumbnail import SIDE, SMALL_SIDE, preview_of, thumbnail

from ..support.pico_host import PicoHost, module_names, write_kohya
from .conftest import TabHost
from .page import EVIL, Balance, Page, recent_keys, rows, words

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
        replace(ENTRY, name="both", merged=True),
        replace(ENTRY, name="new", pending=True),
        ENTRY,
    ]
    shown = rows(card.listing(entries))
    assert [name for name, _, _ in shown] == ["new", "cat", "both", "old", "broken"]
    states = [card.LIST_STATES[state] for _, _, state in shown]
    assert states == ["pending", "usable", "usable", "unusable", "unusable"]
    notes = {name: note for name, note, _ in shown}
    assert notes["old"] == "for Stable Diffusion 1.x" and notes["broken"] == "can't be read"
    assert (
        notes["cat"] == "LoRA + DoRA · rank 64" and notes["new"] == "" and notes["both"] == "merge · rank 64"
    )
    assert 'data-pending="1"' in card.listing(entries)


def test_names_in_the_list_are_escaped() -> None:
    listing = card.listing([replace(ENTRY, name=EVIL)])
    assert "<img" not in listing and rows(listing)[0][0] == EVIL


def test_one_request_inspects_only_for_a_while(host: TabHost) -> None:
    asked: list[tuple[list[str], float]] = []

    def inspect(loras: Any, host: Any, patience: float) -> list[CatalogEntry]:
        asked.append(([lora.name for lora in loras], patience))
        return [replace(ENTRY, name=lora.name) for lora in loras]

    loras = LoraList(host, inspect)
    loras.refresh()
    loras.inspect_more()
    assert asked == [(["dog", "ink", "old"], PATIENCE)] * 2
    loras.card("ink")
    assert asked[2:] == [(["ink"], float("inf"))]


def test_the_folder_is_listed_when_asked_to_or_when_a_name_is_new(host: TabHost) -> None:
    loras = LoraList(host)
    assert loras.names() == ["dog", "ink", "old"]
    (host.folder / "new.safetensors").write_bytes((host.folder / "dog.safetensors").read_bytes())
    loras.inspect_more()
    assert loras.names() == ["dog", "ink", "old"]
    assert loras.entry("new") is not None and loras.names() == ["dog", "ink", "new", "old"]
    (host.folder / "dog.safetensors").unlink()
    assert loras.trigger("dog") == "a sks dog"
    loras.refresh()
    assert loras.names() == ["ink", "new", "old"] and loras.entry("dog") is None


def test_usable_loras_are_listed_first_and_others_say_why_not(page: Page) -> None:
    page.fire("refresh")
    shown = rows(page["catalog"])
    assert [(name, state) for name, _, state in shown] == [("dog", 1), ("ink", 1), ("old", 0)]
    page.pick(third="old")
    assert "not for Stable Diffusion XL" in words(page["third_facts"]) and page["third_prompt"] == ""


def test_picking_prefills_prompt_and_name(page: Page) -> None:
    page.pick(subject="dog", style="ink")
    assert "rank 3" in words(page["style_facts"]) and page["style_prompt"] == "a cat in ink style"
    assert page["output"] == "dog_x_ink"
    page.set(style_prompt="mine")
    page.pick(style="dog")
    assert page["style_prompt"] == "mine" and page["output"] == "dog_x_dog"


def test_an_empty_prompt_shows_what_will_be_used(page: Page) -> None:
    page.pick(subject="dog", style="ink")
    assert page.shown["subject_prompt.placeholder"] == "a sks dog"
    page.set(subject_prompt="", combined_prompt="")
    page.fire("subject_prompt", "blur")
    assert page["combined_prompt"] == ""
    assert page.shown["combined_prompt.placeholder"] == "a sks dog in ink style"


def test_one_more_lora_can_be_picked_and_taken_out_again(page: Page) -> None:
    page.pick(third="ink")
    assert "rank 3" in words(page["third_facts"]) and page["third_prompt"] == "a cat in ink style"
    page.fire("third_clear")
    assert page["third"] == page["third_prompt"] == "" and "Choose" in words(page["third_facts"])


def test_a_lora_that_is_deleted_after_it_was_picked_says_so(pair: Page, host: TabHost) -> None:
    (host.folder / "dog.safetensors").unlink()
    pair.fire("style_refresh")
    assert "not installed any more" in words(pair["subject_facts"]) and "rank" in words(pair["style_facts"])


def test_swap_twice_is_as_before(pair: Page) -> None:
    names = [f"{side}{part}" for side in ("subject", "style") for part in ("", "_prompt", "_weight")]
    pair.set(subject_prompt="mine", style_weight=1.5)
    before = {name: pair[name] for name in (*names, "output", "subject_facts")}
    pair.fire("swap")
    assert (pair["subject"], pair["style_prompt"], pair["subject_weight"]) == ("ink", "mine", 1.5)
    assert pair["output"] == "ink_x_dog" and "rank 3" in words(pair["subject_facts"])
    pair.fire("swap")
    assert {name: pair[name] for name in before} == before


# The card


def test_the_card_shows_everything_of_a_picked_lora() -> None:
    html = card.card(ENTRY, "cat", "data:image/jpeg;base64,AAAA")
    told = words(html)
    for part in ("Stable Diffusion XL", "LoRA + DoRA", "ranks 4 to 64", "722 layers", "12.3 MB", "sks"):
        assert part in told
    assert 'src="data:image/jpeg;base64,AAAA"' in html and "Not usable" not in told


def test_the_card_says_why_a_lora_can_not_be_used() -> None:
    html = card.card(replace(ENTRY, usable=False, reason=f"It is for SD 1.5 {EVIL}."), "cat")
    assert "ziplora-bad" in html and "It is for SD 1.5" in html and "<img" not in html
    assert card.CHOOSE in card.card(None, "") and "not installed" in card.card(None, "gone")


def test_the_card_of_a_real_file(page: Page) -> None:
    page.pick(subject="dog")
    layers = f"{len(module_names()) + 1} layers"
    for part in ("Stable Diffusion XL", "LoRA", "rank 2", layers, "a sks dog"):
        assert part in words(page["subject_facts"])


@pytest.mark.parametrize("ranks, told", [((16,), "16"), ((4, 8), "4 and 8"), ((4, 8, 64), "4 to 64")])
def test_ranks_in_words(ranks: tuple[int, ...], told: str) -> None:
    assert card.ranks(ranks) == told


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
def test_pictures_of_what_is_not_installed_are_none(host: TabHost, names: str) -> None:
    assert all(url == "" for url in pictures_of(host, names).values())


def pictures_of(host: TabHost, names: str) -> dict[str, str]:
    found = re.search(r'data-pictures="([^"]*)"', LoraList(host).pictures(names))
    assert found
    shown: dict[str, str] = json.loads(unescape(found[1]))
    return shown


def test_a_list_gets_small_pictures_and_not_too_many_at_once(host: TabHost) -> None:
    picture(host.folder / "dog.png", (1000, 500))
    names = ["dog", "ink", EVIL, *map(str, range(100))]
    found = pictures_of(host, json.dumps(names))
    assert list(found) == names[:MOST_PICTURES] and found["ink"] == found[EVIL] == ""
    assert decoded(found["dog"]).size == (SMALL_SIDE, SMALL_SIDE // 2)


def test_a_link_to_a_picture_elsewhere_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    (folder / "a.png").symlink_to(picture(tmp_path / "private.png"))
    assert preview_of(folder / "a.safetensors") is None
    (tmp_path / "linked").symlink_to(folder, target_is_directory=True)
    picture(folder / "a.jpg")
    assert preview_of(tmp_path / "linked" / "a.safetensors") == tmp_path / "linked" / "a.jpg"


# Recent merges


GIVEN = {
    "subject": "dog",
    "subject_prompt": "my dog",
    "subject_weight": 0.8,
    "style": "ink",
    "style_prompt": "a cat in ink style",
    "style_weight": 1.2,
    "third": "third",
    "third_prompt": "an old cat",
    "third_weight": 0.5,
    "third_role": "style",
}


@pytest.fixture
def filled(page: Page, host: TabHost) -> Page:
    """The form with three LoRAs."""
    write_kohya(host.folder / "third.safetensors", module_names(), seed=3)
    page.set(**GIVEN, combined_prompt="mine", output="made", overwrite=True)
    return page


def merged(page: Page) -> str:
    """Merge what the form holds; the key of its button."""
    page.run()
    page.fire("refresh")
    return next(recent_keys(page["recent"]))


def test_one_click_fills_the_form(filled: Page) -> None:
    key = merged(filled)
    other = Page(filled.service)
    other.recall(key)
    assert {name: other[name] for name in GIVEN} == GIVEN
    assert other["fourth"] == "" and other["combined_prompt"] == "mine"


def test_a_merge_that_failed_is_not_remembered(filled: Page) -> None:
    merged(filled)
    filled.set(style="old")
    assert filled.start() == ""
    filled.fire("refresh")
    assert len(list(recent_keys(filled["recent"]))) == 1


def test_a_forgotten_merge_changes_nothing(filled: Page) -> None:
    before = dict(filled.values)
    filled.recall("gone")
    assert filled.values == before


def test_recent_merges_are_buttons_and_missing_loras_are_named(filled: Page, host: TabHost) -> None:
    assert filled["recent"] == ""
    merged(filled)
    assert "dog × ink × third" in words(filled["recent"]) and "disabled" not in filled["recent"]
    (host.folder / "third.safetensors").unlink()
    filled.fire("refresh")
    assert "disabled" in filled["recent"] and "third: not installed any more" in filled["recent"]


def test_names_on_the_buttons_are_escaped(filled: Page, host: TabHost) -> None:
    name = "<b onmouseover=x>"
    (host.folder / "third.safetensors").rename(host.folder / f"{name}.safetensors")
    filled.set(third=name, third_prompt=f'" {EVIL}')
    merged(filled)
    parsed = Balance(filled["recent"])
    assert parsed.open == [] and parsed.seen == {"div", "span", "button"}


def test_names_and_metadata_in_facts_and_refusals_are_escaped(page: Page, host: TabHost) -> None:
    name = "<b onmouseover=x>"
    write_kohya(host.folder / f"{name}.safetensors", module_names())
    host.cards[name] = {"activation text": EVIL}
    page.pick(subject=name, style=f"{name} 2")
    page.start()
    page.fire("refresh")
    for box in ("subject_facts", "style_facts", "result", "catalog"):
        assert "&lt;" in page[box] and "<img" not in page[box] and "<b on" not in page[box]


# The combined prompt


def test_it_follows_the_prompts_until_the_user_writes_or_clears_it(pair: Page) -> None:
    assert pair["combined_prompt"] == "a sks dog in ink style"
    pair.set(subject_prompt="a bird")
    pair.fire("subject_prompt", "blur")
    assert pair["combined_prompt"] == "a bird in ink style"
    for own in ("my own", ""):
        pair.set(combined_prompt=own)
        pair.fire("subject_prompt", "blur")
        assert pair["combined_prompt"] == own


def test_it_has_the_words_of_every_lora_in_its_role(pair: Page, host: TabHost) -> None:
    write_kohya(host.folder / "third.safetensors", module_names(), seed=3)
    pair.pick(third="third")
    pair.set(third_prompt="an old cat", third_role="style")
    pair.fire("third_role", "change")
    assert pair["combined_prompt"] == "a sks dog in ink style, an old cat"
    pair.set(third_role="subject")
    pair.fire("third_role", "change")
    assert pair["combined_prompt"] == "a sks dog and an old cat in ink style"


def test_the_settings_pages_default_counts_as_the_users_own(service: Service) -> None:
    page = Page(service, {**setting_defaults(), "combined_prompt": "always this"})
    page.pick(subject="dog", style="ink")
    assert page["combined_prompt"] == "always this"


def test_a_recalled_prompt_goes_on_following_if_it_was_the_suggested_one(filled: Page) -> None:
    own = merged(filled)
    filled.recall(own)
    filled.fire("subject_prompt", "blur")
    assert filled["combined_prompt"] == "mine"
    filled.set(combined_prompt="my dog in ink style, an old cat")
    filled.recall(merged(filled))
    filled.set(subject_prompt="a bird")
    filled.fire("subject_prompt", "blur")
    assert filled["combined_prompt"] == "a bird in ink style, an old cat"


def test_a_listed_name_need_not_be_the_files(tmp_path: Path) -> None:
    host = PicoHost(tmp_path)
    path = write_kohya(tmp_path / "a.safetensors", module_names())
    (entry,) = entries_of([InstalledLora("other name", path)], host, 0)
    assert entry.name == "other name" and entry.path == path


def test_of_several_files_of_one_name_each_can_be_picked_and_the_picked_one_is_merged(
    host: TabHost, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, place in enumerate(("a", "b"), 11):
        (host.folder / place).mkdir()
        write_kohya(host.folder / place / "cat.safetensors", module_names(), rank=1, seed=number)
    files = sorted(host.folder.rglob("*.safetensors"))
    everything = listed(files, lambda paths: paths[-1])  # as in the WebUI
    monkeypatch.setattr(host, "loras", lambda: everything)
    monkeypatch.setattr(host, "resolve", {lora.name: lora.path for lora in everything}.get)
    page = Page(service)
    page.set(method="direct", precision="fp32", output="both")
    for name, place in (("cat", "b"), ("a/cat", "a")):
        page.pick(subject=name, style="ink")
        page.set(overwrite=True, subject_prompt="x", style_prompt="y")
        assert f"{name} is {host.folder / place / 'cat.safetensors'}." in words(page["subject_facts"])
        page.run()
        assert f"{name} is {host.folder / place / 'cat.safetensors'}." in words(page["result"])
        merged, layer = load_file(host.folder / "both.safetensors"), next(iter(module_names()))
        picked = load_file(host.folder / place / "cat.safetensors")[f"{layer}.lora_up.weight"]
        columns = merged[f"{layer}.lora_up.weight"].flatten(1).T
        ratios = columns / picked.flatten()
        assert any(torch.allclose(row, row[:1].expand_as(row), rtol=1e-4) for row in ratios)
