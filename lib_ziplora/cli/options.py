"""Options of settings and requests as flags of the command line, and the requests that arguments ask for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from typing import Any, TypeVar

from ..config import ROLES, LoraInput, MergeRequest, Role
from ..errors import ConfigError
from ..options import Described, described, translated
from ..pipeline.matrix import MatrixRequest
from ..report.recipe import read_recipe

T = TypeVar("T")


def add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """A flag or positional argument for every option of a request; those of its settings in groups of their own."""
    for one in described(cls):
        if dataclasses.is_dataclass(one.kind):
            groups = [parser.add_argument_group(name) for name in _groups(one)]
            for inner in described(one.kind):
                _add(groups[inner.option.advanced], inner)
        else:
            _add(parser, one)
    if cls in (MergeRequest, MatrixRequest):
        _add_loras(parser)
    if cls is MergeRequest:
        meaning = "LoRAs and settings of a merge, as explain prints them, in place of those given otherwise"
        parser.add_argument("--recipe", metavar="LINE", default="", help=meaning)


def _groups(one: Described) -> tuple[str, str]:
    name = one.option.label.lower()
    return name, f"advanced {name}"


def _add(group: Any, one: Described, **more: Any) -> None:
    shown = one.option
    if shown.flag == "-":
        return
    flags = shown.flag.split() or [f"--{one.name.replace('_', '-')}"]
    text = f"{shown.help[0].lower()}{shown.help[1:]}"
    if flags[0].startswith("-"):
        more |= {"dest": _dest(one), "required": one.default is MISSING}
    if one.kind is bool:
        more["action"] = argparse.BooleanOptionalAction if one.default else "store_true"
        more |= {"default": argparse.SUPPRESS} if one.default else {}
        text += f" (default {one.default})"
    elif one.kind is tuple:
        more |= {"action": "append", "type": one.item, "default": [], "metavar": one.item.__name__.upper()}
    elif flags[0].startswith("-"):
        given = one.default is not MISSING
        allowed = "" if shown.minimum is None else f"{shown.minimum:g} to {shown.maximum:g}, "
        text += f" ({allowed}default {one.default if one.default != '' else 'none'})" if given else ""
        more |= {
            "type": one.kind,
            "choices": shown.choices or None,
            "default": one.default if given else None,
        }
        more["metavar"] = None if shown.choices else one.kind.__name__.upper()
    else:
        more["metavar"] = one.name.upper()
    group.add_argument(*flags, help=text.replace("%", "%%"), **more)


def _dest(one: Described) -> str:
    return one.name if one.option.json == "-" else one.json


def _add_loras(parser: argparse.ArgumentParser) -> None:
    inputs = parser.add_argument_group("subjects and styles")
    for role in ROLES:
        inputs.add_argument(
            f"--{role}",
            action="append",
            default=[],
            metavar="LORA",
            help=f"LoRA of a {role}: a file, or a name in a --lora-dir (may be repeated)",
        )
        for one in _of_each_lora():
            inputs.add_argument(
                f"--{role}-{one.name}",
                action="append",
                nargs="+" if one.kind is tuple else None,
                type=one.item if one.kind is tuple else one.kind,
                default=[],
                metavar=one.name.removesuffix("s").upper(),
                help=f"of the {role}: {one.option.help} (repeated: one for each, in order)",
            )


def _of_each_lora() -> list[Described]:
    return [one for one in described(LoraInput) if one.option.flag != "-"]


def from_arguments(cls: type[T], args: argparse.Namespace, **known: Any) -> T:
    """The settings or request that arguments ask for.

    Raises:
        ConfigError: a value outside its range.
    """
    values = dict(known)
    for one in described(cls):
        if one.name in known:
            continue
        if dataclasses.is_dataclass(one.kind):
            values[one.name] = from_arguments(one.kind, args)
        elif hasattr(args, _dest(one)):
            given = getattr(args, _dest(one))
            values[one.name] = tuple(given) if one.kind is tuple else given
    return cls(**translated(cls, values))


def merge_from(args: argparse.Namespace) -> MergeRequest:
    """The merge that the arguments ask for: its subjects in their order, then its styles.

    Raises:
        ConfigError: a value outside its range, or more prompts, weights or pictures than LoRAs.
    """
    if args.recipe:
        if args.files or args.subject or args.style:
            raise ConfigError("The recipe names the LoRAs; leave out those given besides.")
        merge = read_recipe(args.recipe)
        return from_arguments(MergeRequest, args, loras=merge.loras, settings=merge.settings)
    if args.files and len(args.files) != len(ROLES):
        raise ConfigError(
            f"SUBJECT and STYLE are two files, not {len(args.files)}; give more of them as --subject and --style."
        )
    loras = tuple(lora for role in ROLES for lora in _loras(args, role))
    if len(loras) < len(ROLES):
        raise ConfigError(
            "A merge needs at least two LoRAs: give SUBJECT and STYLE, or --subject and --style."
        )
    return from_arguments(MergeRequest, args, loras=loras)


def matrix_from(args: argparse.Namespace) -> MatrixRequest:
    """The matrix that the arguments ask for.

    Raises:
        ConfigError: a value outside its range, no subject or no style, or more prompts than LoRAs.
    """
    subjects, styles = (tuple(_loras(args, role)) for role in ROLES)
    if args.sheet and args.sheet.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(f"The sheet {args.sheet} needs a name that ends in .png, .jpg or .webp.")
    return from_arguments(MatrixRequest, args, subjects=subjects, styles=styles, sheet=bool(args.sheet))


def _loras(args: argparse.Namespace, role: Role) -> Iterator[LoraInput]:
    """The LoRAs of a role, each with its prompt, weight and pictures."""
    files: Sequence[str] = getattr(args, "files", ())
    loras = [*files[ROLES.index(role) : ROLES.index(role) + 1], *getattr(args, role)]
    given = {}
    for one in _of_each_lora():
        values = getattr(args, f"{role}_{one.name}")
        if len(values) > len(loras):
            raise ConfigError(f"There are {len(values)} --{role}-{one.name} for {len(loras)} {role} LoRAs.")
        given[one.name] = [*values, *[one.default] * (len(loras) - len(values))]
    for lora, *values in zip(loras, *given.values(), strict=True):
        fields = dict(zip(given, values, strict=True))
        yield LoraInput(lora, **{**fields, "images": tuple(fields["images"])}, role=role)
