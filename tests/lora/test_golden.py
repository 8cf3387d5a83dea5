"""Real-world layouts: every name of every list is understood, judged by its header, and read."""

from __future__ import annotations

import json
import math

import pytest

from lib_ziplora.lora.formats.families import RELATIVE, family_of
from lib_ziplora.lora.formats.keys import parse
from lib_ziplora.lora.io.inspect import inspect_header, unsupported_reason

from .golden_layouts import FOLDER, records

LISTS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
EVERY = pytest.mark.parametrize("name", LISTS)


def test_the_lists_are_those_of_the_generator():
    assert {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")} == dict(records())
    assert len(LISTS) >= 12


@EVERY
def test_every_name_is_understood(name):
    golden = LISTS[name]
    parsed = parse(golden["tensors"])
    assert sorted(parsed.modules) == golden["modules"]
    assert sorted(parsed.unknown) == golden["unknown"]
    assert parsed.dialect == golden["dialect"]
    assert sorted(parsed.families) == golden["families"]
    assert not parsed.duplicates
    family = {family_of(parts) for parts in parsed.modules.values()}
    assert family == {"lora" if f == "dora" else f for f in golden["families"]} or family == {"lora"}


def write_header(path, shapes):
    """A sparse file: the header of fp16 tensors and zeros that take no room."""
    table, position = {}, 0
    for name, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        table[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, end]}
        position = end
    header = json.dumps(table).encode()
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + position)
    return path


@EVERY
def test_every_layout_is_a_lora_of_sdxl(tmp_path, name):
    golden = LISTS[name]
    header = inspect_header(write_header(tmp_path / "a.safetensors", golden["tensors"]))
    assert (header.base, header.layers) == ("sdxl", len(golden["modules"]))
    assert header.unet_layers == sum(module.startswith("lora_unet_") for module in golden["modules"])
    assert unsupported_reason(header) == ""
    relative = bool(RELATIVE & set(golden["families"]))
    assert bool(unsupported_reason(header, checkpoint=False)) == relative == bool(header.relative_family())
