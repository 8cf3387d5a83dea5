"""Options: the fields of settings and requests as people see them, read from JSON and described as a JSON schema.

A field of a dataclass that is made by ``option`` has a label, a help and a range; its type and its default
are the field's own, its choices those of its ``Literal``. The tab's controls, the command line's flags
(``cli.options``), the bodies of the REST API and their schemas are made from these alone.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from functools import lru_cache
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")
Schema = dict[str, Any]
TYPE_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", tuple: "array"}
LONGEST_PROMPT = 5_000
"""Characters, a dozen times what fills the windows of a usual prompt."""


@dataclass(frozen=True)
class Option:
    """How people see a field: label, help, range or choices, and what it is called where they write it.

    Attributes:
        label: of its control.
        help: what it means, as a sentence without its full stop.
        minimum: of a number.
        maximum: of a number.
        step: of a slider.
        choices: the values that it takes; those of its ``Literal``.
        advanced: whether it is seldom needed.
        json: its name in JSON, where that is another; "-" where it is not taken from JSON.
        flag: on the command line, where that is not ``--name``; "-" where it has none, ``name`` without
            dashes for a positional argument.
        required: whether JSON must name it, in spite of a default.
        known: fields of its items that are known without being told.
    """

    label: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False
    json: str = ""
    flag: str = ""
    required: bool = False
    known: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def option(default: Any, label: str, help: str, **more: Any) -> Any:
    """A dataclass field with an ``Option``; MISSING as default makes it required."""
    metadata = {"option": Option(label, help, **more)}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Described:
    """A field of a dataclass with its option.

    Attributes:
        name: of the field.
        kind: ``str``, ``int``, ``float``, ``bool``, ``tuple`` or a dataclass.
        item: of a tuple, the type of its items.
        default: MISSING where there is none.
        option: as people see it.
    """

    name: str
    kind: type
    item: type
    default: Any
    option: Option

    @property
    def json(self) -> str:
        """Its name in JSON."""
        return self.option.json or self.name

    @property
    def inline(self) -> bool:
        """Whether its own fields stand in JSON beside those of the request."""
        return self.option.json == "*"


def described(cls: type) -> tuple[Described, ...]:
    """The fields of a dataclass that have an option, in their order."""
    return _described(cls)


@lru_cache(maxsize=16)
def _described(cls: type) -> tuple[Described, ...]:
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        if "option" not in field.metadata:
            continue
        shown, kind, item = field.metadata["option"], hints[field.name], str
        if typing.get_origin(kind) is typing.Literal:
            shown, kind = dataclasses.replace(shown, choices=typing.get_args(kind)), str
        elif typing.get_origin(kind) is tuple:
            kind, item = tuple, typing.get_args(kind)[0]
        default = field.default if field.default_factory is MISSING else field.default_factory()
        found.append(Described(field.name, kind, item, default, shown))
    return tuple(found)


def from_json(cls: type[T], given: Mapping[str, Any], where: str = "", **known: Any) -> T:
    """A settings or request object from a JSON object; absent fields keep their default.

    Nothing is coerced: no text for a number, no 3.5 for an integer.

    Args:
        cls: the dataclass.
        given: the JSON object.
        where: what it is called in errors, "" for the whole body.
        known: fields that are known without being told; of a nested object whose fields stand beside the
            others, its defaults.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or outside its range.
    """
    given = translated(cls, given)
    fields = [one for one in described(cls) if one.json != "-" and (one.inline or one.name not in known)]
    names = [name for one in fields for name in _names(one)]
    unknown = sorted(set(given) - set(names))
    if unknown:
        place = where or "the request"
        raise ConfigError(f"Unknown field {unknown[0]!r:.60} in {place}; there are {', '.join(names)}.")
    values = dict(known)
    for one in fields:
        if one.inline:
            own = translated(one.kind, {name: given[name] for name in _names(one) if name in given})
            told = {inner.name: inner.json for inner in described(one.kind) if inner.json in own}
            read: Any = from_json(one.kind, own, where)
            changed = {name: getattr(read, name) for name in told}
            values[one.name] = dataclasses.replace(values.get(one.name, one.default), **changed)
        elif one.json in given:
            values[one.name] = _value(one, given[one.json], f"{where}.{one.json}" if where else one.json)
        elif one.default is MISSING or one.option.required:
            raise ConfigError(f"{f'{where}.' if where else ''}{one.json} is missing.")
    return cls(**values)


def translated(cls: type, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was given for a dataclass in today's words, where it has a ``translated`` of its own."""
    own: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = getattr(cls, "translated", None)
    return own(given) if own else given


def _names(one: Described) -> list[str]:
    return [inner.json for inner in described(one.kind)] if one.inline else [one.json]


def _value(one: Described, value: Any, path: str) -> Any:
    if one.kind is not tuple:
        found = typed(value, one.kind, path)
        if one.option.choices:
            check(path, one.option, found)
        return found
    items = enumerate(typed(value, tuple, path))
    return tuple(typed(item, one.item, f"{path}[{index}]", **one.option.known) for index, item in items)


def typed(value: Any, kind: type, path: str, **known: Any) -> Any:
    """A JSON value as that type; an object as a dataclass by ``from_json``.

    Raises:
        ConfigError: it is of another type.
    """
    accepted: Any = {float: (int, float), tuple: list}.get(kind, kind if kind in TYPE_NAMES else dict)
    whole = kind is int and isinstance(value, float) and value.is_integer()
    if not (isinstance(value, accepted) or whole) or (isinstance(value, bool) and kind is not bool):
        wanted = TYPE_NAMES.get(kind, "object")
        raise ConfigError(
            f"{path} must be {'an' if wanted[0] in 'aeiou' else 'a'} {wanted}, not {value!r:.60}."
        )
    if dataclasses.is_dataclass(kind):
        return from_json(kind, value, path, **known)
    try:
        return kind(float(value)) if kind in (int, float) else value
    except OverflowError as error:
        raise ConfigError(f"{path} is too large.") from error


def schema(cls: type, *known: str, **more: Any) -> Schema:
    """JSON schema of what ``from_json`` takes; the fields ``known`` are left out."""
    fields = [one for one in described(cls) if one.json != "-" and one.name not in known]
    properties: dict[str, Schema] = {}
    for one in fields:
        properties |= schema(one.kind)["properties"] if one.inline else {one.json: _property(one)}
    required = [one.json for one in fields if one.default is MISSING or one.option.required]
    found = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**found, **({"required": required} if required else {}), **more}


def _property(one: Described) -> Schema:
    shown, about = one.option, {"title": one.option.label, "description": f"{one.option.help}."}
    if one.kind not in TYPE_NAMES:
        return {**schema(one.kind), **about}
    found: Schema = {**about, "type": TYPE_NAMES[one.kind]}
    if one.kind is tuple:
        plain = one.item in TYPE_NAMES
        found["items"] = {"type": TYPE_NAMES[one.item]} if plain else schema(one.item, *shown.known)
    elif one.default is not MISSING:
        found["default"] = one.default
    if shown.choices:
        found["enum"] = list(shown.choices)
    if shown.minimum is not None:
        place = found["items"] if one.kind is tuple else found
        place |= {"minimum": shown.minimum, "maximum": shown.maximum}
    return found


def coerce(name: str, default: Any, value: Any) -> Any:
    """A loosely typed value (of a form, a file's header) in the type of the setting's default.

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
    if isinstance(value, str):
        check_length(name, value)
    low, high = option.minimum, option.maximum
    if low is not None and high is not None and not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name} must lie between {low} and {high}, not {value!r}.")
    if name in ("width", "height") and option.step and value % option.step:
        raise ConfigError(f"{name} must be a multiple of {option.step:g}, not {value!r}.")


def check_all(settings: Any) -> None:
    """Raise ConfigError for the first field of a dataclass that is no choice or outside its range."""
    for one in described(type(settings)):
        if one.kind is not tuple:
            check(one.name, one.option, getattr(settings, one.name))


def check_length(what: str, text: str) -> None:
    """Raise ConfigError for a prompt that is longer than any that a model would read."""
    if len(text) > LONGEST_PROMPT:
        raise ConfigError(f"{what} has {len(text)} characters; {LONGEST_PROMPT} are the most. Shorten it.")


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
