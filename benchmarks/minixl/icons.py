"""Icon sets as a matrix of subjects and styles: what each icon of npm's ``@iconify/json`` draws, and in which style.

A style is a set together with the variant that its names carry (``ph/thin``, ``ion/sharp``). Sets
under permissive licences alone; logos, flags and copies of another set are left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = "2.2.535"


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


LICENSES = words("MIT Apache-2.0 CC0-1.0 CC-BY-4.0 CC-BY-3.0 ISC OFL-1.1 BSD-3-Clause Unlicense")
EXCLUDED_SETS = words("""
    thesvg thesvg-color simple-icons selfhst logos token token-branded cib cif circle-flags flag flagpack devicon
    devicon-plain devicon-original cryptocurrency cryptocurrency-color skill-icons vscode-icons file-icons catppuccin
    material-icon-theme unjs k8s streamline-logos bxl fa-brands fa6-brands fa7-brands svg-spinners academicons brandico
    entypo-social bpmn geo ginetex gcp nonicons wi meteocons covid websymbol heroicons-outline heroicons-solid fa
    fa-solid fa-regular fa6-solid fa6-regular pepicons streamline-emojis streamline-stickies-color line-md
    """)
"""Logos, flags, weather and money; older versions and copies of another set; animations (line-md)."""
EXCLUDED_STYLES = words("""
    garden/16+fill garden/16+stroke healthicons/24px healthicons/outline+24px heroicons/16+solid heroicons/20+solid
    icon-park-outline/two icon-park-solid/two icon-park-twotone/two icon-park/two famicons famicons/outline
    famicons/sharp
    """)
"""Smaller sizes, and copies of another style, whose names alone don't tell so."""
VARIANT_WORDS = words("""
    outline outlined filled fill solid bold line linear duotone twotone sharp round rounded thin regular broken bulk
    stroke flat color baseline two tone loop stroked
    """)
COMPOUND_VARIANTS = ("bold-duotone", "line-duotone", "two-tone")
ONE_SIZE = {"fluent": "24", "fluent-color": "24", "octicon": "24"}
"""Sets that draw each icon in several sizes -> the size to take."""
SYNONYMS = {
    name: subject
    for subject, names in {
        "alarm": "alarm-clock",
        "ambulance": "ambulance-car",
        "bag": "shopping-bag",
        "bank": "museum",
        "bar-chart": "barchart chart-bar",
        "battery": "battery-full",
        "bell": "notification notifications",
        "bike": "bicycle",
        "bolt": "lightning lightning-bolt flash zap",
        "book-open": "open-book",
        "briefcase": "suitcase",
        "brush": "paintbrush paint-brush",
        "burger": "hamburger-food",
        "cake": "birthday-cake",
        "calendar": "calendar-blank",
        "camera": "camera-photo photo-camera",
        "car": "automobile",
        "cart": "shopping-cart",
        "clock": "clock-time watch-later",
        "coffee": "coffee-cup",
        "donut": "doughnut",
        "film": "film-strip",
        "flame": "fire",
        "floppy": "save floppy-disk diskette",
        "folder": "folder-close",
        "gamepad": "gamepad-controller game-controller",
        "gift": "present gift-box",
        "glasses": "eyeglasses",
        "globe": "world earth",
        "headphones": "headset headphone",
        "heart": "love favorite",
        "home": "house",
        "hourglass": "hour-glass",
        "image": "photo picture",
        "lightbulb": "light-bulb bulb idea",
        "lock": "padlock locked",
        "mail": "envelope email",
        "map-pin": "location location-pin marker map-marker",
        "microphone": "mic",
        "monitor": "tv television",
        "phone": "phone-call telephone call",
        "pie-chart": "chart-pie",
        "plane": "airplane aeroplane flight",
        "plug": "electric-plug",
        "printer": "print",
        "puzzle": "puzzle-piece extension",
        "rocket": "rocket-launch",
        "search": "magnifying-glass magnify magnifier",
        "settings": "gear cog setting",
        "ship": "boat",
        "smartphone": "mobile mobile-phone",
        "stopwatch": "timer",
        "sunrise": "sunset",
        "thumbs-up": "thumb-up like",
        "trash": "delete bin trash-can trashcan trash-bin",
        "umbrella": "umbrella-open",
        "unlock": "unlocked lock-open",
        "user": "person account",
        "video": "videocam video-camera",
        "wifi": "wifi-high",
    }.items()
    for name in names.split()
}
"""Names of one thing -> the one used here."""


@dataclass(frozen=True)
class Icon:
    """One drawing of one subject in one style.

    Attributes:
        body: SVG elements.
        box: left, top, width and height of the view.
    """

    subject: str
    style: str
    name: str
    body: str
    box: tuple[float, float, float, float]


def fetch(folder: Path) -> Path:
    """The package's archive, downloaded with npm unless the folder has it."""
    file = folder / f"iconify-json-{VERSION}.tgz"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"@iconify/json@{VERSION}"], cwd=folder, check=True)
    return file


def read(archive: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Key, information (licence, author) and icons of each permitted set."""
    with tarfile.open(archive) as package:
        members = {member.name: member for member in package}

        def parsed(name: str) -> dict[str, Any]:
            file = package.extractfile(members[f"package/{name}.json"])
            if file is None:
                raise FileNotFoundError(f"{archive} has no {name}.json; delete it and run again.")
            data: dict[str, Any] = json.load(file)
            return data

        for key, about in parsed("collections").items():
            if about["license"].get("spdx") in LICENSES and key not in EXCLUDED_SETS:
                yield key, about, parsed(f"json/{key}")


def split_name(key: str, name: str, data: Mapping[str, Any]) -> tuple[str, str] | None:
    """Subject and variant in an icon's name; None for a size or an animation that is not used.

    Args:
        key: of the set.
        name: of the icon.
        data: the set's JSON, whose ``prefixes`` and ``suffixes`` name its variants.
    """
    tokens = name.split("-")
    if key in ONE_SIZE:
        if ONE_SIZE[key] not in tokens:
            return None
        tokens.remove(ONE_SIZE[key])
    if key in ("bx", "bxs") and tokens[0] == key:
        tokens = tokens[1:]
    front = cut(tokens, data.get("prefixes") or {}, front=True)
    back = cut(tokens, {*(data.get("suffixes") or {}), *COMPOUND_VARIANTS}, front=False)
    variant = front + back
    while len(tokens) > 1 and tokens[-1] in VARIANT_WORDS:
        variant.append(tokens.pop())
    if key == "ic" and tokens[0] in ("baseline", "outline", "round", "sharp", "twotone"):
        variant.append(tokens.pop(0))
    for empty in ("0?[12]|variant|alt|empty|simple|icon", "icon"):
        if len(tokens) > 1 and re.fullmatch(empty, tokens[-1]):
            tokens.pop()
    if {"loop", "transition"} & set(variant):
        return None
    subject = "-".join(filter(None, tokens))
    return SYNONYMS.get(subject, subject), "+".join(dict.fromkeys(variant))


def cut(tokens: list[str], affixes: Iterable[str], *, front: bool) -> list[str]:
    """Take the longest affix that fits off the tokens, in place; its words, or none."""
    for affix in sorted(filter(None, affixes), key=lambda word: (-len(word), word)):
        parts = affix.split("-")
        place = slice(None, len(parts)) if front else slice(-len(parts), None)
        if len(tokens) > len(parts) and tokens[place] == parts:
            del tokens[place]
            return parts
    return []


def matrix(archive: Path, subjects: Container[str]) -> tuple[list[Icon], dict[str, dict[str, Any]]]:
    """Every permitted icon of the given subjects, one a style; and what the archive says of each set."""
    found: dict[tuple[str, str], Icon] = {}
    about: dict[str, dict[str, Any]] = {}
    for key, information, data in read(archive):
        about[key] = information
        for name, icon in data["icons"].items():
            parts = None if icon.get("hidden") else split_name(key, name, data)
            if parts is None or parts[0] not in subjects:
                continue
            subject, variant = parts
            style = f"{key}/{variant}" if variant else key
            before = found.get((subject, style))
            if style in EXCLUDED_STYLES or (before is not None and len(before.name) <= len(name)):
                continue
            left, top = (icon.get(side, data.get(side, 0)) for side in ("left", "top"))
            width, height = (icon.get(side, data.get(side, 16)) for side in ("width", "height"))
            found[subject, style] = Icon(subject, style, name, icon["body"], (left, top, width, height))
    return [found[pair] for pair in sorted(found)], about
