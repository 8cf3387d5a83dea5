"""What the API takes: JSON bodies as requests, and their schemas, both from the one configuration.

The bodies are checked here and not by pydantic, whose two major versions, both at large,
coerce and refuse differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import (
    LoraInput,
    MergeRequest,
    MergeSettings,
    setting_defaults,
    setting_fields,
    settings_from,
)
from ..errors import ConfigError, OutputError
from ..names import validate_name

Schema = dict[str, Any]
TYPE_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean"}
LORA_NAME = "Name of an installed LoRA, as in <lora:name:1>. Paths are refused."
LORA_FIELDS: dict[str, Schema] = {
    "lora": {"type": "string", "description": LORA_NAME},
    "prompt": {
        "type": "string",
        "default": "",
        "description": "Prompt that draws it, trigger words included; without one the file's metadata is asked.",
    },
    "weight": {
        "type": "number",
        "default": 1.0,
        "minimum": -10,
        "maximum": 10,
        "description": "Strength that <lora:name:weight> would have; not 0.",
    },
}
REQUEST_FIELDS = ("subject", "style", "output", "overwrite", "settings")
INSPECT_FIELDS = ("lora", "other", "layers")


def merge_request(body: Mapping[str, Any]) -> MergeRequest:
    """The job that a body of ``POST /merge`` asks for.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or outside its range.
    """
    _refuse_unknown(body, REQUEST_FIELDS, "the request")
    output = _value(body, "output", str)
    try:
        validate_name(output)
    except OutputError as error:
        raise ConfigError(str(error)) from error
    return MergeRequest(
        subject=_lora(body, "subject"),
        style=_lora(body, "style"),
        output=output,
        overwrite=_value(body, "overwrite", bool, default=False),
        settings=_settings(_value(body, "settings", dict, default={})),
    )


def inspect_request(body: Mapping[str, Any]) -> tuple[str, str, bool]:
    """The two names of ``POST /inspect`` (the second may be "") and whether layers are to be listed.

    Raises:
        ConfigError: a field is unknown, missing or of the wrong type.
    """
    _refuse_unknown(body, INSPECT_FIELDS, "the request")
    names = _value(body, "lora", str), _value(body, "other", str, default="")
    layers = _value(body, "layers", bool, default=False)
    if layers and names[1]:
        raise ConfigError("layers lists the layers of one LoRA; leave other out, or layers.")
    return (*names, layers)


def _lora(body: Mapping[str, Any], side: str) -> LoraInput:
    given = _value(body, side, dict)
    _refuse_unknown(given, tuple(LORA_FIELDS), side)
    lora = _value(given, "lora", str, within=side)
    prompt = _value(given, "prompt", str, default="", within=side)
    return LoraInput(lora, prompt, _value(given, "weight", float, default=1.0, within=side))


def _settings(given: Mapping[str, Any]) -> MergeSettings:
    """As ``settings_from``, but what JSON can tell apart is not coerced."""
    defaults = setting_defaults()
    values = {
        name: _value(given, name, type(defaults[name]), within="settings") if name in defaults else value
        for name, value in given.items()
    }
    return settings_from(values)


def _refuse_unknown(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"Unknown field {unknown[0]!r:.60} in {where}; there are {', '.join(known)}.")


def _value(given: Mapping[str, Any], name: str, kind: type, *, default: Any = None, within: str = "") -> Any:
    """A field of a JSON object, of that type: no text for a number, no 3.5 for an integer."""
    path = f"{within}.{name}" if within else name
    if name not in given:
        if default is None:
            raise ConfigError(f"{path} is missing.")
        return default
    value = given[name]
    whole = kind is int and isinstance(value, float) and value.is_integer()
    fits = isinstance(value, (int, float) if kind is float else kind) or whole
    if not fits or (isinstance(value, bool) and kind is not bool):
        wanted = TYPE_NAMES.get(kind, "object")
        raise ConfigError(
            f"{path} must be {'an' if wanted[0] in 'aeiou' else 'a'} {wanted}, not {value!r:.60}."
        )
    try:
        return float(value) if kind is float else value
    except OverflowError as error:
        raise ConfigError(f"{path} is too large.") from error


def object_schema(properties: dict[str, Schema], required: tuple[str, ...], **more: Any) -> Schema:
    """JSON schema of an object that takes no other fields."""
    fields = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**fields, **({"required": list(required)} if required else {}), **more}


def setting_schema(name: str) -> Schema:
    """JSON schema of one setting."""
    option, default = setting_fields()[name], setting_defaults()[name]
    schema: Schema = {
        "title": option.label,
        "type": TYPE_NAMES[type(default)],
        "description": option.help,
        "default": default,
    }
    if option.choices:
        schema["enum"] = list(option.choices)
    if option.minimum is not None:
        schema |= {"minimum": option.minimum, "maximum": option.maximum}
    return schema


def merge_schema() -> Schema:
    """JSON schema of ``MergeRequest``, as the API takes it."""
    lora = object_schema(LORA_FIELDS, ("lora",))
    settings = object_schema({name: setting_schema(name) for name in setting_fields()}, ())
    return object_schema(
        {
            "subject": {**lora, "description": "The LoRA of the subject (the paper's content)."},
            "style": {**lora, "description": "The LoRA of the style."},
            "output": {
                "type": "string",
                "description": "Name of the merged LoRA, without folder and extension.",
            },
            "overwrite": {"type": "boolean", "default": False, "description": "Replace a file of that name."},
            "settings": {**settings, "description": "What to compute; absent settings keep their default."},
        },
        ("subject", "style", "output"),
        title="MergeRequest",
        example={
            "subject": {"lora": "my_dog", "prompt": "a sks dog"},
            "style": {"lora": "ink", "prompt": "a house in szn style", "weight": 0.9},
            "output": "my_dog_ink",
            "settings": {"steps": 100},
        },
    )


def inspect_schema() -> Schema:
    """JSON schema of the body of ``POST /inspect``."""
    return object_schema(
        {
            "lora": {"type": "string", "description": LORA_NAME},
            "other": {"type": "string", "description": "A second one, to see where the two overlap."},
            "layers": {"type": "boolean", "default": False, "description": "List every layer (one LoRA)."},
        },
        ("lora",),
        title="InspectRequest",
        example={"lora": "my_dog", "other": "ink"},
    )
