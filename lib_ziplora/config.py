"""One typed configuration that feeds the tab, the command line, the API and saved metadata.

A front end builds its controls from ``setting_fields()``; so a setting that is added here
appears everywhere, with the same name, range, default and help.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Literal, get_args

from .block_strengths import block_strengths
from .errors import ConfigError
from .methods import METHODS, Method, MethodName
from .options import Option as Option
from .options import check_all, check_length, coerce, described, option
from .options import parse_rank as parse_rank

Role = Literal["subject", "style"]
Start = Literal["closed-form", "ones"]
Objective = Literal["relative", "cosine", "public", "paper"]
TextEncoders = Literal["both", "subject", "style", "none"]
Precision = Literal["fp16", "bf16", "fp32"]
Checkpointing = Literal["auto", "on", "off"]
Batching = Literal["auto", "together", "separate"]

ROLES: tuple[Role, ...] = get_args(Role)
PAPER_LAMBDA = 0.01
LARGEST_WEIGHT = 10


@dataclass(frozen=True)
class MergeSettings:
    """Everything that decides what a merge computes, apart from its inputs."""

    method: MethodName = option(
        "ziplora",
        "Method",
        "; ".join(f"{name} {method.help}" for name, method in METHODS.items()),
    )
    steps: int = option(50, "Updates", "Updates of the coefficients", minimum=1, maximum=1000, step=1)
    learning_rate: float = option(
        0.01, "Learning rate", "Adam's learning rate", minimum=0.00001, maximum=0.5, step=0.0001
    )
    objective: Objective = option(
        "relative",
        "Objective",
        "relative divides each error by its LoRA's own effect; cosine does too, and keeps directions apart instead of "
        "sizes; public is the public script's mean squares; paper is equation 5 to the letter",
        advanced=True,
    )
    start: Start = option(
        "closed-form",
        "Start",
        "Where the coefficients start: closed-form solves each layer by itself first; ones is the plain sum (balanced, "
        "where that is found) and needs twice the updates",
        advanced=True,
    )
    similarity_lambda: float = option(
        0.1,
        "Similarity weight",
        "Weight of the term that keeps the columns of the LoRAs apart (the paper's objective: 0.01)",
        minimum=0.0,
        maximum=100.0,
        step=0.01,
    )
    combined_prompt: str = option(
        "",
        "Combined prompt",
        "What you will draw with the merge, with the trigger words of all LoRAs; the merge stays close to what the "
        "balanced sum draws for it. Empty: made of their own prompts",
    )
    combined_weight: float = option(
        10.0,
        "Weight of the combined prompt",
        "Weight of the balanced sum's picture of the combined prompt, beside 1 for each LoRA's own; at 0 each "
        "LoRA counts only by itself",
        minimum=0.0,
        maximum=100.0,
        step=0.1,
        advanced=True,
    )
    auto_balance: bool = option(
        True,
        "Find the balance",
        "Find the strengths at which a picture of the combined prompt shows subject and style as the balance says; "
        "off, the combined prompt is drawn by the plain sum at your weights",
    )
    balance: float = option(
        0.3,
        "Balance of the combined prompt",
        "How much of the subject a picture of both together has: 1 is as the subject's LoRA alone draws, 0 as the "
        "style's alone",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    seed: int = option(
        0,
        "Merge seed",
        "Seed of the samples; -1 in the tab is a random one",
        minimum=0,
        maximum=2**32 - 1,
        step=1,
    )
    width: int = option(
        0,
        "Sample width",
        "Width of the samples in pixels; 0 is the checkpoint's own size (1024 for SDXL)",
        minimum=0,
        maximum=2048,
        step=64,
    )
    height: int = option(
        0,
        "Sample height",
        "Height of the samples in pixels; 0 is the checkpoint's own size (1024 for SDXL)",
        minimum=0,
        maximum=2048,
        step=64,
    )
    sampling_steps: int = option(
        3,
        "Sampling steps per trajectory",
        "Steps of each LoRA's own sampling trajectory; every step gives one sample",
        minimum=2,
        maximum=100,
        step=1,
        advanced=True,
    )
    trajectories: int = option(
        3,
        "Trajectories per LoRA",
        "Sampling trajectories that each LoRA draws to learn from",
        minimum=1,
        maximum=16,
        step=1,
        advanced=True,
    )
    guidance_scale: float = option(
        5.0,
        "Guidance scale of the samples",
        "Classifier-free guidance of the trajectories; 1 halves their cost",
        minimum=1.0,
        maximum=20.0,
        step=0.5,
        advanced=True,
    )
    negative_prompt: str = option(
        "", "Negative prompt of the samples", "Used by the guidance of the trajectories", advanced=True
    )
    text_encoders: TextEncoders = option(
        "both",
        "Text encoder layers from",
        "Whose text-encoder layers the merged file gets; both are those of every LoRA",
        advanced=True,
    )
    batching: Batching = option(
        "auto",
        "Samples of an update",
        "One sample of each LoRA: together in one batch (faster), or one after the other (less memory)",
        advanced=True,
    )
    checkpointing: Checkpointing = option(
        "auto",
        "Checkpointing",
        "Recompute activations in the backward pass: less memory, about 1.45 times the time",
        advanced=True,
    )
    precision: Precision = option(
        "fp16",
        "Precision of the file",
        "dtype of the tensors in the merged file",
    )
    rank: str = option(
        "exact",
        "Rank of the file",
        "exact keeps all of every LoRA; a number, 64, is the highest rank of a layer; a fraction, 0.995, is the share "
        "of each layer's energy that stays",
        advanced=True,
    )
    kept_energy: float = option(
        0.995,
        "Kept energy of converted layers",
        "Share of the energy that a layer of another family (LoHa, LoKr, full differences, ...) keeps when it becomes "
        "low-rank; layers of plain LoRAs stay as they are",
        minimum=0.5,
        maximum=1.0,
        step=0.001,
        advanced=True,
    )
    split: bool = option(
        False,
        "Also save one file per LoRA",
        "Also writes name_subject and name_style, which at 1 and 1 equal the merged file: a prompt can turn each",
        advanced=True,
    )
    save_embeddings: bool = option(
        False,
        "Also save bundled embeddings",
        "Also saves the textual inversion embeddings that come in a LoRA's file and can't go into the merged one: in a "
        "WebUI among its embeddings, else beside the merged file",
        advanced=True,
    )

    @property
    def needs(self) -> Method:
        """The method's row of the table."""
        return METHODS[self.method]

    @property
    def uses_combined_prompt(self) -> bool:
        """Whether a prompt for all LoRAs together counts, given or made of theirs."""
        needed = self.needs.combined_prompt
        return needed == "required" or (needed == "optional" and self.combined_weight > 0)

    @property
    def searches_strengths(self) -> bool:
        """Whether the strengths for the combined prompt are to be found."""
        return self.auto_balance and self.needs.strengths and self.uses_combined_prompt

    @property
    def uses_closed_form(self) -> bool:
        """Whether each layer is solved by itself: as the result, or as the start of the updates."""
        return self.needs.closed_form and (self.start == "closed-form" or not self.needs.updates)

    @property
    def text_roles(self) -> tuple[Role, ...]:
        """The roles whose LoRAs give their text-encoder layers to the merged file."""
        return ROLES if self.text_encoders == "both" else tuple(r for r in ROLES if r == self.text_encoders)

    def remarks(self) -> list[str]:
        """Settings that are allowed but hardly meant, as sentences."""
        remarks = []
        if self.needs.updates and self.objective == "paper" and self.similarity_lambda != PAPER_LAMBDA:
            remarks.append(
                f"The paper's objective was used with a similarity weight of {self.similarity_lambda:g}; "
                f"the paper's is {PAPER_LAMBDA:g}."
            )
        if not self.balance and not self.auto_balance and self.needs.strengths:
            remarks.append(
                "A balance of 0 without auto_balance means that the strengths are not adjusted, as it always has; for "
                "a picture as the style alone draws it, turn auto_balance on too."
            )
        return remarks

    @staticmethod
    def translated(given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What was given, in today's words: a balance of 0 alone is ``auto_balance`` off, as before there was one."""
        return {"auto_balance": False, **given} if given.get("balance") == 0 else given

    def __post_init__(self) -> None:
        if parse_rank(self.rank) is not None and self.split:
            raise ConfigError("The files of split hold each part whole: choose the rank exact, or no split.")
        check_all(self)


def setting_fields() -> dict[str, Option]:
    """Field name of ``MergeSettings`` -> how it is shown, in order."""
    return {one.name: one.option for one in described(MergeSettings)}


def setting_defaults() -> dict[str, Any]:
    """Field name of ``MergeSettings`` -> default value."""
    return {one.name: one.default for one in described(MergeSettings)}


def settings_from(values: Mapping[str, Any]) -> MergeSettings:
    """Settings from loosely typed values (a form, JSON, a header); absent ones keep their default.

    Raises:
        ConfigError: an unknown name, or a value of the wrong type or outside its range.
    """
    defaults = setting_defaults()
    unknown = sorted(set(values) - set(defaults))
    if unknown:
        raise ConfigError(f"Unknown setting {', '.join(unknown)}; there are {', '.join(defaults)}.")
    given = {name: coerce(name, defaults[name], value) for name, value in values.items()}
    return MergeSettings(**MergeSettings.translated(given))


@dataclass(frozen=True)
class LoraInput:
    """One LoRA of a merge."""

    lora: str = option(
        MISSING,
        "LoRA",
        "Name of an installed LoRA, as in <lora:name:1>, or a file where paths are taken",
        flag="-",
    )
    prompt: str = option(
        "", "Prompt", "Prompt that draws it, trigger words included; without one the file's metadata is asked"
    )
    weight: float = option(
        1.0,
        "Weight",
        "Strength that <lora:name:weight> would have; not 0",
        minimum=-LARGEST_WEIGHT,
        maximum=LARGEST_WEIGHT,
    )
    images: tuple[str, ...] = option(
        (),
        "Reference images",
        "Image files to learn from, instead of what the LoRA draws; none are needed",
        json="-",
    )
    blocks: str = option(
        "",
        "Blocks",
        "Strengths by block, such as style blocks only, content blocks only, or OUT00=0 MID=0.5; empty is all of it",
    )
    role: Role = option("subject", "Role", "What it brings, a subject or a style", required=True, flag="-")

    def __post_init__(self) -> None:
        if not self.lora:
            raise ConfigError("No LoRA is chosen. Choose a subject and a style.")
        check_length("The name of a LoRA", self.lora)
        if self.role not in ROLES:
            raise ConfigError(f"{self.lora} must be one of {', '.join(ROLES)}, not {self.role!r}.")
        check_weight(f"The weight of {self.lora}", self.weight)
        check_length(f"The prompt of {self.lora}", self.prompt)
        block_strengths(self.blocks)


def check_weight(what: str, weight: float) -> None:
    """Raise ConfigError for a strength that no ``<lora:name:weight>`` should have."""
    if not math.isfinite(weight) or weight == 0 or abs(weight) > LARGEST_WEIGHT:
        raise ConfigError(
            f"{what} must be between -{LARGEST_WEIGHT} and {LARGEST_WEIGHT} and not 0, not {weight!r}."
        )


def output_option() -> Any:
    """The field of a request for the name of the LoRA that is written."""
    return option(
        MISSING,
        "Output name",
        "Name of the merged LoRA, which may begin with a subfolder (merges/name); on the command line "
        "OUT.safetensors, or a name for the first --lora-dir",
        flag="-o --output",
    )


def overwrite_option() -> Any:
    """The field of a request that lets a file be replaced."""
    return option(False, "Overwrite", "Replace a file of that name", flag="--force")


def report_option() -> Any:
    """The field of a request for a report beside the file."""
    return option(
        False,
        "Report",
        "Write what the merge did beside it, as NAME.report.html and NAME.report.json",
        flag="--report-beside",
    )


def card_option() -> Any:
    """The field of a request for the merged LoRA's card."""
    return option(
        True,
        "Card",
        "Fill in NAME.json, which gives the LoRA pane an activation text, a description and notes",
    )


@dataclass(frozen=True)
class MergeRequest:
    """A whole job: the same object for every front end."""

    loras: tuple[LoraInput, ...] = option(
        MISSING, "LoRAs", "At least two, subjects and styles in any number", flag="-"
    )
    output: str = output_option()
    overwrite: bool = overwrite_option()
    settings: MergeSettings = option(
        MergeSettings, "Settings", "What to compute; absent settings keep their default"
    )
    report: bool = report_option()
    card: bool = card_option()

    def __post_init__(self) -> None:
        if len(self.loras) < 2:
            raise ConfigError("A merge needs at least two LoRAs. Choose another one.")
        if self.settings.needs.both_roles and len({lora.role for lora in self.loras}) == 1:
            raise ConfigError(
                f"The method {self.settings.method} needs a subject and a style. Choose one of each, or another method."
            )

    @classmethod
    def pair(
        cls,
        subject: LoraInput,
        style: LoraInput,
        output: str,
        overwrite: bool = False,
        settings: MergeSettings | None = None,
    ) -> MergeRequest:
        """The merge of one subject (the paper's content) and one style, whatever their ``role`` says."""
        loras = dataclasses.replace(subject, role="subject"), dataclasses.replace(style, role="style")
        return cls(loras, output, overwrite, settings or MergeSettings())

    @property
    def labels(self) -> tuple[str, ...]:
        """What each LoRA is called: ``subject``, ``style``; numbered, ``subject 2``, where a role has several."""
        return labels([lora.role for lora in self.loras])

    @property
    def wants_text(self) -> tuple[bool, ...]:
        """Of each LoRA, whether its text encoder layers go into the file."""
        return tuple(lora.role in self.settings.text_roles for lora in self.loras)


def labels(roles: Sequence[Role]) -> tuple[str, ...]:
    """The roles in words, numbered from 1 where one occurs several times."""
    numbers = {role: itertools.count(1) for role in ROLES}
    return tuple(f"{role} {next(numbers[role])}" if roles.count(role) > 1 else role for role in roles)
