"""Merge methods: one row a method, with what it needs; everything that depends on the method reads this table.

A method that needs no model changes the layers as they are read, by its function in ``pipeline.inputs``; one that
does is made by ``training.run.learn`` of the stages in its row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MethodName = Literal["ziplora", "instant", "balanced", "direct", "np-lora"]
ZIPLORA = "https://arxiv.org/abs/2311.13600"
DIFFUSION_CLASSIFIER = "https://arxiv.org/abs/2303.16203"


@dataclass(frozen=True)
class Method:
    """A way of merging, and what it needs.

    Attributes:
        help: what it does, in a sentence.
        reference: URL of its description.
        model: samples that the LoRAs draw with the checkpoint, so also a prompt for each.
        combined_prompt: a prompt for all LoRAs together; an optional one is used where it has a weight.
        strengths: search for the strengths at which subject and style both show in the combined prompt's pictures.
        closed_form: coefficients for every column, each layer solved by itself.
        updates: gradient updates of the coefficients.
        both_roles: a subject and a style.
    """

    help: str
    reference: str = ""
    model: bool = False
    combined_prompt: Literal["none", "optional", "required"] = "none"
    strengths: bool = False
    closed_form: bool = False
    updates: bool = False
    both_roles: bool = False


METHODS: Mapping[MethodName, Method] = {
    "ziplora": Method(
        "learns one coefficient for every column",
        ZIPLORA,
        model=True,
        combined_prompt="optional",
        strengths=True,
        closed_form=True,
        updates=True,
    ),
    "instant": Method(
        "solves each layer by itself, in a moment",
        ZIPLORA,
        model=True,
        combined_prompt="optional",
        closed_form=True,
    ),
    "balanced": Method(
        "is the plain sum at the strengths where both show in a picture of the combined prompt",
        DIFFUSION_CLASSIFIER,
        model=True,
        combined_prompt="required",
        strengths=True,
    ),
    "direct": Method("is the plain sum at the weights above"),
    "np-lora": Method(
        "is a plain sum in which each subject is a third weaker within the styles' row space (NP-LoRA)",
        "https://arxiv.org/abs/2511.11051",
        both_roles=True,
    ),
}
