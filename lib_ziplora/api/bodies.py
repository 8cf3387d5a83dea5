"""What the API takes: JSON bodies as requests, and their schemas, both from the one configuration.

The bodies are checked here and not by pydantic, whose two major versions, both at large,
coerce and refuse differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import (
    ROLES,
    LoraInput,
    MergeRequest,
    MergeSettings,
    Role,
    setting_defaults,
    setting_fields,
    settings_from,
)
from ..errors import ConfigError, OutputError
from ..job import ReexportRequest
from ..names import validate_name

Schema = dict[str, Any]
TYPE_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array"}
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
ROLE_FIELD: Schema = {"type": "string", "enum": list(ROLES), "description": "What the LoRA brings."}
REQUEST_FIELDS = ("loras", *ROLES, "output", "overwrite", "report", "settings")
REEXPORT_FIELDS = (
    "source",
    "output",
    "overwrite",
    "subject_weights",
    "style_weights",
    "rank",
    "precision",
    "split",
    "report",
)
OUTPUT_FIELDS: dict[str, Schema] = {
    "output": {"type": "string", "description": "Name of the merged LoRA, without folder and extension."},
    "overwrite": {"type": "boolean", "default": False, "description": "Replace a file of that name."},
    "report": {
        "type": "boolean",
        "default": False,
        "description": "Write what the merge did beside it, as name.report.html and name.report.json.",
    },
}
INSPECT_FIELDS = ("lora", "other", "layers")


def merge_request(body: Mapping[str, Any]) -> MergeRequest:
    """The job that a body of ``POST /merge`` asks for, or that one of ``POST /check`` asks about.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or outside its range.
    """
    _refuse_unknown(body, REQUEST_FIELDS, "the request")
    return MergeRequest(
        loras=_loras(body),
        output=_output(body),
        overwrite=_value(body, "overwrite", bool, default=False),
        settings=_settings(_value(body, "settings", dict, default={})),
        report=_value(body, "report", bool, default=False),
    )


def reexport_request(body: Mapping[str, Any]) -> ReexportRequest:
    """The job that a body of ``POST /re-export`` asks for.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or outside its range.
    """
    _refuse_unknown(body, REEXPORT_FIELDS, "the request")
    return ReexportRequest(
        source=_value(body, "source", str),
        output=_output(body),
        overwrite=_value(body, "overwrite", bool, default=False),
        subject_weights=_weights(body, "subject_weights"),
        style_weights=_weights(body, "style_weights"),
        rank=_value(body, "rank", str, default=""),
        precision=_value(body, "precision", str, default=""),
        split=_value(body, "split", bool, default=False),
        report=_value(body, "report", bool, default=False),
    )


def explain_request(body: Mapping[str, Any]) -> str:
    """The name in a body of ``POST /explain``.

    Raises:
        ConfigError: a field is unknown, missing or of the wrong type.
    """
    _refuse_unknown(body, ("lora",), "the request")
    name: str = _value(body, "lora", str)
    return name


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


def _output(body: Mapping[str, Any]) -> str:
    output: str = _value(body, "output", str)
    try:
        return validate_name(output)
    except OutputError as error:
        raise ConfigError(str(error)) from error


def _loras(body: Mapping[str, Any]) -> tuple[LoraInput, ...]:
    """``loras``, or ``subject`` and ``style``."""
    if "loras" not in body:
        return tuple(_lora(_value(body, role, dict), role, role) for role in ROLES)
    if set(ROLES) & set(body):
        raise ConfigError("Give either loras, or subject and style.")
    found = []
    for index, given in enumerate(_value(body, "loras", list)):
        within = f"loras[{index}]"
        if not isinstance(given, dict):
            raise ConfigError(f"{within} must be an object, not {given!r:.60}.")
        role = _value(given, "role", str, within=within)
        if role not in ROLES:
            raise ConfigError(f"{within}.role must be one of {', '.join(ROLES)}, not {role!r:.60}.")
        found.append(_lora({key: value for key, value in given.items() if key != "role"}, role, within))
    return tuple(found)


def _lora(given: Mapping[str, Any], role: Role, within: str) -> LoraInput:
    _refuse_unknown(given, tuple(LORA_FIELDS), within)
    lora = _value(given, "lora", str, within=within)
    prompt = _value(given, "prompt", str, default="", within=within)
    return LoraInput(lora, prompt, _value(given, "weight", float, default=1.0, within=within), role=role)


def _weights(body: Mapping[str, Any], name: str) -> tuple[float, ...]:
    given = _value(body, name, list, default=[])
    return tuple(_typed(one, float, f"{name}[{index}]") for index, one in enumerate(given))


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
    """A field of a JSON object, of that type."""
    path = f"{within}.{name}" if within else name
    if name not in given:
        if default is None:
            raise ConfigError(f"{path} is missing.")
        return default
    return _typed(given[name], kind, path)


def _typed(value: Any, kind: type, path: str) -> Any:
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


def merge_schema() -> Schema:
    """JSON schema of ``MergeRequest``, as the API takes it."""
    lora = object_schema(LORA_FIELDS, ("lora",))
    one = object_schema({**LORA_FIELDS, "role": ROLE_FIELD}, ("lora", "role"))
    settings = object_schema({name: setting_schema(name) for name in setting_fields()}, ())
    return object_schema(
        {
            "subject": {**lora, "description": "The LoRA of the subject (the paper's content)."},
            "style": {**lora, "description": "The LoRA of the style."},
            "loras": {
                "type": "array",
                "items": one,
                "minItems": 2,
                "description": "Instead of subject and style: any number of either.",
            },
            **OUTPUT_FIELDS,
            "settings": {**settings, "description": "What to compute; absent settings keep their default."},
        },
        ("output",),
        title="MergeRequest",
        anyOf=[{"required": ["subject", "style"]}, {"required": ["loras"]}],
        example={
            "subject": {"lora": "my_dog", "prompt": "a sks dog"},
            "style": {"lora": "ink", "prompt": "a house in szn style", "weight": 0.9},
            "output": "my_dog_ink",
            "settings": {"steps": 100},
        },
    )


def reexport_schema() -> Schema:
    """JSON schema of ``ReexportRequest``, as the API takes it."""

    def weights(role: Role) -> Schema:
        return {
            "type": "array",
            "items": {"type": "number", "minimum": -10, "maximum": 10},
            "description": f"What each {role} brings is multiplied by these, in the order of the merge; "
            "1, also where there is none, leaves it as it was merged.",
        }

    as_merged = "Absent: that of the merge."
    rank, precision = setting_schema("rank"), setting_schema("precision")
    return object_schema(
        {
            "source": {
                "type": "string",
                "description": "Name of a merged LoRA with its coefficients beside it.",
            },
            **OUTPUT_FIELDS,
            "subject_weights": weights("subject"),
            "style_weights": weights("style"),
            "rank": {**rank, "default": "", "description": f"{rank['description']}. {as_merged}"},
            "precision": {"type": "string", "enum": precision["enum"], "description": as_merged},
            "split": setting_schema("split"),
        },
        ("source", "output"),
        title="ReexportRequest",
        example={"source": "my_dog_ink", "output": "my_dog_ink_light", "style_weights": [0.6], "rank": "32"},
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


def explain_schema() -> Schema:
    """JSON schema of the body of ``POST /explain``."""
    merged = {"type": "string", "description": "Name of a merged LoRA with its coefficients beside it."}
    return object_schema({"lora": merged}, ("lora",), title="ExplainRequest", example={"lora": "my_dog_ink"})
