"""The bodies that the API takes and their JSON schemas, all from the options of the requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from ..config import ROLES, LoraInput, MergeRequest
from ..errors import ConfigError
from ..options import Schema, from_json, option, schema, typed
from ..pictures.comparison import CompareRequest
from ..pipeline.matrix import MatrixRequest
from ..pipeline.reexport import MERGED, ReexportRequest
from ..pipeline.scan import ScanRequest


@dataclass(frozen=True)
class InspectRequest:
    """The body of ``POST /inspect``."""

    lora: str = option(MISSING, "LoRA", "Name of an installed LoRA, as in <lora:name:1>")
    other: str = option("", "Another LoRA", "A second one, to see where the two overlap")
    layers: bool = option(False, "Layers", "List every layer (one LoRA)")

    def __post_init__(self) -> None:
        if self.layers and self.other:
            raise ConfigError("layers lists the layers of one LoRA; leave other out, or layers.")


@dataclass(frozen=True)
class ExplainRequest:
    """The body of ``POST /explain``."""

    lora: str = option(MISSING, "Merged LoRA", MERGED)


def merge_request(body: Mapping[str, Any]) -> MergeRequest:
    """The merge that a body asks for: ``loras``, or ``subject`` and ``style``.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or outside its range.
    """
    if "loras" in body:
        if set(ROLES) & set(body):
            raise ConfigError("Give either loras, or subject and style.")
        return from_json(MergeRequest, body)
    loras = []
    for role in ROLES:
        if role not in body:
            raise ConfigError(f"{role} is missing.")
        loras.append(typed(body[role], LoraInput, role, role=role))
    rest = {name: value for name, value in body.items() if name not in ROLES}
    return from_json(MergeRequest, rest, loras=tuple(loras))


def merge_schema() -> Schema:
    """JSON schema of what ``merge_request`` takes."""
    found = schema(MergeRequest, required=["output"], anyOf=[{"required": [*ROLES]}, {"required": ["loras"]}])
    found["properties"] |= {role: schema(LoraInput, "role", title=role.capitalize()) for role in ROLES}
    return found


SCHEMAS: dict[type, Schema] = {
    cls: {
        **(merge_schema() if cls is MergeRequest else schema(cls)),
        "title": cls.__name__,
        "example": example,
    }
    for cls, example in (
        (
            MergeRequest,
            {
                "subject": {"lora": "my_dog", "prompt": "a sks dog"},
                "style": {"lora": "ink", "prompt": "a house in szn style", "weight": 0.9},
                "output": "my_dog_ink",
                "settings": {"steps": 100},
            },
        ),
        (
            ReexportRequest,
            {"source": "my_dog_ink", "output": "my_dog_ink_light", "style_weights": [0.6], "rank": "32"},
        ),
        (
            MatrixRequest,
            {
                "subjects": [{"lora": "my_dog", "prompt": "a sks dog"}, {"lora": "my_cat"}],
                "styles": [{"lora": "ink"}, {"lora": "clay", "weight": 0.9}],
                "settings": {"steps": 100},
                "sheet": True,
            },
        ),
        (CompareRequest, {"source": "my_dog_ink", "prompts": ["a sks dog in szn style"], "seeds": 2}),
        (ScanRequest, {"subjects": ["my_dog"], "styles": ["ink", "clay"]}),
        (InspectRequest, {"lora": "my_dog", "other": "ink"}),
        (ExplainRequest, {"lora": "my_dog_ink"}),
    )
}
"""What each body is, by the request that is made of it."""
