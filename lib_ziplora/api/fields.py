"""Fields of JSON bodies: read by type, and described as schemas.

The bodies are checked here and not by pydantic, whose two major versions, both at large,
coerce and refuse differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import MergeSettings, setting_defaults, setting_fields, settings_from
from ..errors import ConfigError, OutputError
from ..names import validate_name

Schema = dict[str, Any]
TYPE_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array"}


def name_of(body: Mapping[str, Any]) -> str:
    """The field ``output``, a name without folder and extension."""
    output: str = value_of(body, "output", str)
    try:
        return validate_name(output)
    except OutputError as error:
        raise ConfigError(str(error)) from error


def settings_of(given: Mapping[str, Any]) -> MergeSettings:
    """As ``settings_from``, but what JSON can tell apart is not coerced."""
    defaults = setting_defaults()
    values = {
        name: value_of(given, name, type(defaults[name]), within="settings") if name in defaults else value
        for name, value in given.items()
    }
    return settings_from(values)


def refuse_unknown(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raise ConfigError for a field that nobody reads."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"Unknown field {unknown[0]!r:.60} in {where}; there are {', '.join(known)}.")


def value_of(
    given: Mapping[str, Any], name: str, kind: type, *, default: Any = None, within: str = ""
) -> Any:
    """A field of a JSON object, of that type."""
    path = f"{within}.{name}" if within else name
    if name not in given:
        if default is None:
            raise ConfigError(f"{path} is missing.")
        return default
    return typed(given[name], kind, path)


def typed(value: Any, kind: type, path: str) -> Any:
    """A JSON value of that type: no text for a number, no 3.5 for an integer."""
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
