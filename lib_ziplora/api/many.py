"""Bodies of ``POST /matrix`` and ``POST /compare`` as what a job is asked for, and their schemas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from ..config import ROLES, LoraInput, Role
from ..errors import ConfigError, OutputError
from ..hosts import Sampler
from ..jobs.service import CompareTask, MatrixTask
from ..names import validate_name
from ..pictures.comparison import (
    LARGEST_GUIDANCE,
    LARGEST_SEED,
    LARGEST_SIDE,
    MOST_PROMPTS,
    MOST_SEEDS,
    MOST_STEPS,
    SIDE_STEP,
    CompareRequest,
)
from ..pipeline.matrix import NAMES, MatrixRequest
from .bodies import LORA_FIELDS, MERGED, OUTPUT_FIELDS, lora_of, settings_schema
from .fields import Schema, object_schema, refuse_unknown, settings_of, typed, value_of

LISTS: Mapping[Role, str] = {role: f"{role}s" for role in ROLES}
MATRIX_FIELDS = (*LISTS.values(), "names", "overwrite", "report", "sheet", "settings")
SAMPLER_FIELDS: Mapping[str, type] = {
    "sampler": str,
    "steps": int,
    "guidance_scale": float,
    "width": int,
    "height": int,
    "negative_prompt": str,
}
"""Of the body, in the order of ``Sampler``'s."""
COMPARE_FIELDS = ("source", "prompts", "seeds", "seed", *SAMPLER_FIELDS, "preview")


def matrix_task(body: Mapping[str, Any]) -> MatrixTask:
    """The job that a body of ``POST /matrix`` asks for.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or outside its range.
    """
    refuse_unknown(body, MATRIX_FIELDS, "the request")
    subjects, styles = (_loras(body, role) for role in ROLES)
    matrix = MatrixRequest(
        subjects,
        styles,
        names=value_of(body, "names", str, default=NAMES),
        overwrite=value_of(body, "overwrite", bool, default=False),
        settings=settings_of(value_of(body, "settings", dict, default={})),
        report=value_of(body, "report", bool, default=False),
    )
    for pair in matrix.pairs():
        try:
            validate_name(pair.output)
        except OutputError as error:
            raise ConfigError(str(error)) from error
    return MatrixTask(matrix, value_of(body, "sheet", bool, default=False))


def compare_task(body: Mapping[str, Any], default: Sampler) -> CompareTask:
    """The job that a body of ``POST /compare`` asks for.

    Args:
        body: of the request.
        default: how to draw where it says nothing.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or outside its range.
    """
    refuse_unknown(body, COMPARE_FIELDS, "the request")
    how = [
        value_of(body, name, kind, default=value)
        for (name, kind), value in zip(SAMPLER_FIELDS.items(), astuple(default), strict=True)
    ]
    prompts = value_of(body, "prompts", list, default=[])
    comparison = CompareRequest(
        value_of(body, "source", str),
        tuple(typed(one, str, f"prompts[{index}]") for index, one in enumerate(prompts)),
        int(value_of(body, "seeds", int, default=1)),
        int(value_of(body, "seed", int, default=0)),
        Sampler(how[0], int(how[1]), how[2], int(how[3]), int(how[4]), how[5]),
    )
    return CompareTask(comparison, value_of(body, "preview", bool, default=False))


def _loras(body: Mapping[str, Any], role: Role) -> tuple[LoraInput, ...]:
    name = LISTS[role]
    given = enumerate(value_of(body, name, list))
    return tuple(
        lora_of(typed(one, dict, f"{name}[{index}]"), role, f"{name}[{index}]") for index, one in given
    )


def matrix_schema() -> Schema:
    """JSON schema of the body of ``POST /matrix``."""
    one = object_schema(LORA_FIELDS, ("lora",))
    lists = {
        name: {"type": "array", "items": one, "minItems": 1, "description": f"LoRAs of {name}, each once."}
        for name in LISTS.values()
    }
    return object_schema(
        {
            **lists,
            "names": {
                "type": "string",
                "default": NAMES,
                "description": "Names of the merged LoRAs; {subject} and {style} stand for the LoRAs' names.",
            },
            "overwrite": {
                "type": "boolean",
                "default": False,
                "description": "Replace merges that exist; otherwise they are left out.",
            },
            "report": OUTPUT_FIELDS["report"],
            "sheet": {
                "type": "boolean",
                "default": False,
                "description": "Draw a sheet with a picture of every merge.",
            },
            "settings": settings_schema(),
        },
        tuple(LISTS.values()),
        title="MatrixRequest",
        example={
            "subjects": [{"lora": "my_dog", "prompt": "a sks dog"}, {"lora": "my_cat"}],
            "styles": [{"lora": "ink"}, {"lora": "clay", "weight": 0.9}],
            "settings": {"steps": 100},
            "sheet": True,
        },
    )


def compare_schema() -> Schema:
    """JSON schema of the body of ``POST /compare``."""

    def whole(low: int, high: int, description: str, **more: Any) -> Schema:
        return {"type": "integer", "minimum": low, "maximum": high, "description": description, **more}

    usual = "Absent: what the host draws with by itself."
    side = f"In pixels, a multiple of {SIDE_STEP}; 0 is the checkpoint's own. {usual}"
    return object_schema(
        {
            "source": {"type": "string", "description": MERGED},
            "prompts": {
                "type": "array",
                "items": {"type": "string"},
                "maxItems": MOST_PROMPTS,
                "description": "Each is drawn in every row. Absent: the prompts of the merge, and one for all.",
            },
            "seeds": whole(1, MOST_SEEDS, "Pictures of each row and prompt.", default=1),
            "seed": whole(0, LARGEST_SEED - MOST_SEEDS, "The first seed; the others follow it.", default=0),
            "sampler": {"type": "string", "description": f"Its name. {usual}"},
            "steps": whole(1, MOST_STEPS, usual),
            "guidance_scale": {
                "type": "number",
                "minimum": 1,
                "maximum": LARGEST_GUIDANCE,
                "description": usual,
            },
            "width": whole(0, LARGEST_SIDE, side),
            "height": whole(0, LARGEST_SIDE, side),
            "negative_prompt": {"type": "string", "description": usual},
            "preview": {
                "type": "boolean",
                "default": False,
                "description": "Make the merge's picture the preview of its card, where there is none of your own.",
            },
        },
        ("source",),
        title="CompareRequest",
        example={"source": "my_dog_ink", "prompts": ["a sks dog in szn style"], "seeds": 2},
    )
