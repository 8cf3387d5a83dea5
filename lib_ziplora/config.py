"""One typed configuration that feeds the tab, the command line, the API and saved metadata.

A front end builds its controls from ``setting_fields()``; so a setting that is added here
appears everywhere, with the same name, range, default and help.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import ConfigError

Method = Literal["ziplora", "instant", "direct"]
Start = Literal["ones", "closed-form"]
Objective = Literal["relative", "paper"]
TextEncoders = Literal["both", "subject", "style", "none"]
Precision = Literal["fp16", "bf16", "fp32"]
Checkpointing = Literal["auto", "on", "off"]
Batching = Literal["auto", "together", "separate"]


PAPER_LAMBDA = 0.01


@dataclass(frozen=True)
class Option:
    """How people see a setting: label, help, range or choices."""

    label: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False


def _option(default: Any, label: str, help: str, **ranges: Any) -> Any:
    return field(default=default, metadata={"option": Option(label, help, **ranges)})


@dataclass(frozen=True)
class MergeSettings:
    """Everything that decides what a merge computes, apart from its inputs."""

    method: Method = _option(
        "ziplora",
        "Method",
        "ziplora learns one coefficient for every column; instant solves each layer by itself, in a moment; "
        "direct is the plain weighted sum",
        choices=("ziplora", "instant", "direct"),
    )
    steps: int = _option(100, "Updates", "Updates of the coefficients", minimum=1, maximum=1000, step=1)
    learning_rate: float = _option(
        0.01, "Learning rate", "Adam's learning rate", minimum=0.0001, maximum=0.5, step=0.0001
    )
    objective: Objective = _option(
        "relative",
        "Objective",
        "relative divides each error by its LoRA's own effect; paper is equation 5 to the letter",
        choices=("relative", "paper"),
        advanced=True,
    )
    start: Start = _option(
        "ones",
        "Start",
        "Where the coefficients start: at the plain sum, or at the closed form of the instant method",
        choices=("ones", "closed-form"),
        advanced=True,
    )
    similarity_lambda: float = _option(
        0.1,
        "Similarity weight",
        "Weight of the term that keeps the columns of both LoRAs apart (the paper's objective: 0.01)",
        minimum=0.0,
        maximum=100.0,
        step=0.01,
    )
    seed: int = _option(0, "Merge seed", "Seed of the samples", minimum=0, maximum=2**32 - 1, step=1)
    width: int = _option(
        0,
        "Sample width",
        "Width of the samples in pixels; 0 is the checkpoint's own size (1024 for SDXL)",
        minimum=0,
        maximum=2048,
        step=64,
    )
    height: int = _option(
        0,
        "Sample height",
        "Height of the samples in pixels; 0 is the checkpoint's own size (1024 for SDXL)",
        minimum=0,
        maximum=2048,
        step=64,
    )
    sampling_steps: int = _option(
        4,
        "Sampling steps per trajectory",
        "Steps of each LoRA's own sampling trajectory; every step gives one sample",
        minimum=2,
        maximum=100,
        step=1,
        advanced=True,
    )
    trajectories: int = _option(
        4,
        "Trajectories per LoRA",
        "Sampling trajectories that each LoRA draws to learn from",
        minimum=1,
        maximum=16,
        step=1,
        advanced=True,
    )
    guidance_scale: float = _option(
        5.0,
        "Guidance scale of the samples",
        "Classifier-free guidance of the trajectories; 1 halves their cost",
        minimum=1.0,
        maximum=20.0,
        step=0.5,
        advanced=True,
    )
    negative_prompt: str = _option(
        "", "Negative prompt of the samples", "Used by the guidance of the trajectories", advanced=True
    )
    text_encoders: TextEncoders = _option(
        "both",
        "Text encoder layers from",
        "Whose text-encoder layers the merged file gets",
        choices=("both", "subject", "style", "none"),
        advanced=True,
    )
    batching: Batching = _option(
        "auto",
        "Subject and style",
        "in one batch (faster) or one after the other (less memory)",
        choices=("auto", "together", "separate"),
        advanced=True,
    )
    checkpointing: Checkpointing = _option(
        "auto",
        "Checkpointing",
        "Recompute activations in the backward pass: less memory, about 1.45 times the time",
        choices=("auto", "on", "off"),
        advanced=True,
    )
    precision: Precision = _option(
        "fp16",
        "Precision of the file",
        "dtype of the tensors in the merged file",
        choices=("fp16", "bf16", "fp32"),
    )
    rank: str = _option(
        "exact",
        "Rank of the file",
        "exact keeps all of both; a number, 64, is the highest rank of a layer; a fraction, 0.995, is the share "
        "of each layer's energy that stays",
        advanced=True,
    )

    split: bool = _option(
        False,
        "Subject and style as files too",
        "Also writes name_subject and name_style, which at 1 and 1 equal the merged file: a prompt can turn either",
        advanced=True,
    )

    @property
    def updates(self) -> int:
        """Updates of the loop: none but for the ziplora method."""
        return self.steps if self.method == "ziplora" else 0

    @property
    def solves(self) -> bool:
        """Whether the closed form is needed."""
        return self.method == "instant" or (self.method == "ziplora" and self.start == "closed-form")

    def remarks(self) -> list[str]:
        """Settings that are allowed but hardly meant, as sentences."""
        if self.updates and self.objective == "paper" and self.similarity_lambda != PAPER_LAMBDA:
            return [
                f"The paper's objective was used with a similarity weight of {self.similarity_lambda:g}; "
                f"the paper's is {PAPER_LAMBDA:g}."
            ]
        return []

    def __post_init__(self) -> None:
        if parse_rank(self.rank) is not None and self.split:
            raise ConfigError(
                "The two files of split hold each part whole: choose the rank exact, or no split."
            )
        for name, option in setting_fields().items():
            _check(name, option, getattr(self, name))


def parse_rank(text: str) -> int | float | None:
    """What ``MergeSettings.rank`` asks for: None for exact, a highest rank, or a share of energy.

    Raises:
        ConfigError: none of these.
    """
    word = text.strip().lower()
    if word == "exact":
        return None
    try:
        number = float(word)
        if 0 < number < 1:
            return number
        if number >= 1 and number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise ConfigError(
        f"rank must be exact, a whole number such as 64, or a fraction below 1 such as 0.995, not {text!r}."
    )


def setting_fields() -> dict[str, Option]:
    """Field name of ``MergeSettings`` -> how it is shown, in order."""
    return {f.name: f.metadata["option"] for f in dataclasses.fields(MergeSettings)}


def setting_defaults() -> dict[str, Any]:
    """Field name of ``MergeSettings`` -> default value."""
    return {f.name: f.default for f in dataclasses.fields(MergeSettings)}


def settings_from(values: Mapping[str, Any]) -> MergeSettings:
    """Settings from loosely typed values (a form, JSON, a header); absent ones keep their default.

    Raises:
        ConfigError: an unknown name, or a value of the wrong type or outside its range.
    """
    defaults = setting_defaults()
    unknown = sorted(set(values) - set(defaults))
    if unknown:
        raise ConfigError(f"Unknown setting {', '.join(unknown)}; there are {', '.join(defaults)}.")
    return MergeSettings(**{name: _coerce(name, defaults[name], value) for name, value in values.items()})


def _coerce(name: str, default: Any, value: Any) -> Any:
    kind = type(default)
    if kind is bool:
        words = {"true": True, "false": False, "1": True, "0": False}
        if str(value).strip().lower() not in words:
            raise ConfigError(f"{name} must be true or false, not {value!r}.")
        return words[str(value).strip().lower()]
    if kind is str and not isinstance(value, str):
        raise ConfigError(f"{name} must be text, not {value!r}.")
    try:
        if kind is int and isinstance(value, (float, str)) and float(value) != int(float(value)):
            raise ValueError(value)
        return kind(float(value)) if kind is int else kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name} must be {kind.__name__}, not {value!r}.") from error


def _check(name: str, option: Option, value: Any) -> None:
    if option.choices and value not in option.choices:
        raise ConfigError(f"{name} must be one of {', '.join(option.choices)}, not {value!r}.")
    low, high = option.minimum, option.maximum
    if low is not None and high is not None and not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name} must lie between {low} and {high}, not {value!r}.")
    if name in ("width", "height") and value % 64:
        raise ConfigError(f"{name} must be a multiple of 64, not {value!r}.")


@dataclass(frozen=True)
class LoraInput:
    """One LoRA of a merge.

    Attributes:
        lora: its installed name, or a file where the front end allows paths.
        prompt: what it is prompted with, trigger words included.
        weight: the strength that ``<lora:name:weight>`` would have.
        images: reference image files; none are needed.
    """

    lora: str
    prompt: str = ""
    weight: float = 1.0
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.lora:
            raise ConfigError("No LoRA is chosen. Choose a subject and a style.")
        if not math.isfinite(self.weight) or self.weight == 0 or abs(self.weight) > 10:
            raise ConfigError(
                f"The weight of {self.lora} must be between -10 and 10 and not 0, not {self.weight!r}."
            )


@dataclass(frozen=True)
class MergeRequest:
    """A whole job: the same object for every front end.

    Attributes:
        subject: the LoRA of the subject (the paper's content).
        style: the LoRA of the style.
        output: name of the merged LoRA, without extension (a path where the host allows it).
        overwrite: replace a file of that name.
        settings: what to compute.
    """

    subject: LoraInput
    style: LoraInput
    output: str
    overwrite: bool = False
    settings: MergeSettings = field(default_factory=MergeSettings)
