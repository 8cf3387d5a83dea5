"""Settings as people see them, and which values they take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError


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


def coerce(name: str, default: Any, value: Any) -> Any:
    """A loosely typed value (of a form, JSON, a header) in the type of the setting's default.

    Raises:
        ConfigError: it can't be that type.
    """
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


def check(name: str, option: Option, value: Any) -> None:
    """Raise ConfigError for a value that is no choice or outside the range."""
    if option.choices and value not in option.choices:
        raise ConfigError(f"{name} must be one of {', '.join(option.choices)}, not {value!r}.")
    low, high = option.minimum, option.maximum
    if low is not None and high is not None and not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name} must lie between {low} and {high}, not {value!r}.")
    if name in ("width", "height") and value % 64:
        raise ConfigError(f"{name} must be a multiple of 64, not {value!r}.")


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
