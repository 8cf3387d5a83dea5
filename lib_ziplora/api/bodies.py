"""What the API takes: JSON bodies as requests, and their schemas, both from the one configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import ROLES, LoraInput, MergeRequest, Role, setting_fields
from ..errors import ConfigError
from ..pipeline.reexport import ReexportRequest
from .fields import (
    Schema,
    name_of,
    object_schema,
    refuse_unknown,
    setting_schema,
    settings_of,
    typed,
    value_of,
)

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
MERGED = "Name of a merged LoRA with its coefficients beside it."


def merge_request(body: Mapping[str, Any]) -> MergeRequest:
    """The job that a body of ``POST /merge`` asks for, or that one of ``POST /check`` asks about.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or outside its range.
    """
    refuse_unknown(body, REQUEST_FIELDS, "the request")
    return MergeRequest(
        loras=_loras(body),
        output=name_of(body),
        overwrite=value_of(body, "overwrite", bool, default=False),
        settings=settings_of(value_of(body, "settings", dict, default={})),
        report=value_of(body, "report", bool, default=False),
    )


def reexport_request(body: Mapping[str, Any]) -> ReexportRequest:
    """The job that a body of ``POST /re-export`` asks for.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or outside its range.
    """
    refuse_unknown(body, REEXPORT_FIELDS, "the request")
    return ReexportRequest(
        source=value_of(body, "source", str),
        output=name_of(body),
        overwrite=value_of(body, "overwrite", bool, default=False),
        subject_weights=_weights(body, "subject_weights"),
        style_weights=_weights(body, "style_weights"),
        rank=value_of(body, "rank", str, default=""),
        precision=value_of(body, "precision", str, default=""),
        split=value_of(body, "split", bool, default=False),
        report=value_of(body, "report", bool, default=False),
    )


def explain_request(body: Mapping[str, Any]) -> str:
    """The name in a body of ``POST /explain``.

    Raises:
        ConfigError: a field is unknown, missing or of the wrong type.
    """
    refuse_unknown(body, ("lora",), "the request")
    name: str = value_of(body, "lora", str)
    return name


def inspect_request(body: Mapping[str, Any]) -> tuple[str, str, bool]:
    """The two names of ``POST /inspect`` (the second may be "") and whether layers are to be listed.

    Raises:
        ConfigError: a field is unknown, missing or of the wrong type.
    """
    refuse_unknown(body, INSPECT_FIELDS, "the request")
    names = value_of(body, "lora", str), value_of(body, "other", str, default="")
    layers = value_of(body, "layers", bool, default=False)
    if layers and names[1]:
        raise ConfigError("layers lists the layers of one LoRA; leave other out, or layers.")
    return (*names, layers)


def _loras(body: Mapping[str, Any]) -> tuple[LoraInput, ...]:
    """``loras``, or ``subject`` and ``style``."""
    if "loras" not in body:
        return tuple(lora_of(value_of(body, role, dict), role, role) for role in ROLES)
    if set(ROLES) & set(body):
        raise ConfigError("Give either loras, or subject and style.")
    found = []
    for index, given in enumerate(value_of(body, "loras", list)):
        within = f"loras[{index}]"
        if not isinstance(given, dict):
            raise ConfigError(f"{within} must be an object, not {given!r:.60}.")
        role = value_of(given, "role", str, within=within)
        if role not in ROLES:
            raise ConfigError(f"{within}.role must be one of {', '.join(ROLES)}, not {role!r:.60}.")
        found.append(lora_of({key: value for key, value in given.items() if key != "role"}, role, within))
    return tuple(found)


def lora_of(given: Mapping[str, Any], role: Role, within: str) -> LoraInput:
    """The LoRA that an object of a body asks for.

    Args:
        given: the object.
        role: what the LoRA brings.
        within: what the object is called in errors.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or outside its range.
    """
    refuse_unknown(given, tuple(LORA_FIELDS), within)
    lora = value_of(given, "lora", str, within=within)
    prompt = value_of(given, "prompt", str, default="", within=within)
    return LoraInput(lora, prompt, value_of(given, "weight", float, default=1.0, within=within), role=role)


def _weights(body: Mapping[str, Any], name: str) -> tuple[float, ...]:
    given = value_of(body, name, list, default=[])
    return tuple(typed(one, float, f"{name}[{index}]") for index, one in enumerate(given))


def settings_schema() -> Schema:
    """JSON schema of ``MergeSettings``."""
    fields = {name: setting_schema(name) for name in setting_fields()}
    return object_schema(fields, (), description="What to compute; absent settings keep their default.")


def merge_schema() -> Schema:
    """JSON schema of ``MergeRequest``, as the API takes it."""
    lora = object_schema(LORA_FIELDS, ("lora",))
    one = object_schema({**LORA_FIELDS, "role": ROLE_FIELD}, ("lora", "role"))
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
            "settings": settings_schema(),
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
            "source": {"type": "string", "description": MERGED},
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
    merged = {"type": "string", "description": MERGED}
    return object_schema({"lora": merged}, ("lora",), title="ExplainRequest", example={"lora": "my_dog_ink"})
