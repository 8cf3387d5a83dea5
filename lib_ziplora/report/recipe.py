"""Recipe of a merge as one line of text, to be shared and pasted back: its LoRAs and the settings that aren't default.

Behind the word ``ziplora`` stands what the REST API takes as the body of a merge, without the output.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..config import LoraInput, MergeRequest, MergeSettings
from ..errors import ConfigError
from ..lora.untrusted_json import load_json
from ..options import described, from_json, translated

WORD = "ziplora"
LONGEST = 100_000
"""Characters of a recipe."""


def write_recipe(loras: Sequence[LoraInput], settings: MergeSettings) -> str:
    """The recipe of a merge; reference images, which are files of one machine, are left out."""
    said = {"loras": [_chosen(lora) for lora in loras], "settings": _chosen(settings)}
    return f"{WORD} {json.dumps(said, ensure_ascii=False)}"


def read_recipe(text: str) -> MergeRequest:
    """The merge of a recipe, still without an output name.

    Raises:
        ConfigError: it is no recipe, or a value in it can't be.
    """
    line = " ".join(text[: LONGEST + 1].split()).removeprefix(WORD).lstrip(": ")
    try:
        found = load_json(line) if len(line) <= LONGEST else None
    except ValueError as error:
        raise ConfigError(
            f"This is no recipe ({error}). Paste the whole line that begins with {WORD}."
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"This is no recipe. Paste the whole line that begins with {WORD}.")
    return from_json(MergeRequest, found, "the recipe", output="")


def _chosen(one: LoraInput | MergeSettings) -> dict[str, Any]:
    """The fields that are not what they would be if they were left out."""
    fields = {field.json: field for field in described(type(one)) if field.json != "-"}
    values = {name: getattr(one, field.name) for name, field in fields.items()}
    needed = {
        name for name, field in fields.items() if field.option.required or values[name] != field.default
    }
    said = {name: value for name, value in values.items() if name in needed}
    return said | {
        name: values[name] for name, value in translated(type(one), said).items() if values[name] != value
    }
