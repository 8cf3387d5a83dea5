"""From the command line's arguments to requests."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from ..config import ROLES, LoraInput, MergeRequest, Role, setting_defaults, settings_from
from ..errors import ConfigError
from ..pipeline.reexport import ReexportRequest

TAKE_FILES = ("merge", "check")
"""Commands with a SUBJECT and a STYLE."""


def parsed(top: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; SUBJECT and STYLE may stand anywhere among the options."""
    args, others = top.parse_known_args(argv)
    if others and (args.command not in TAKE_FILES or any(word.startswith("-") for word in others)):
        top.error(f"unrecognized arguments: {' '.join(others)}")
    if others:
        args.files += others
    return args


def request_from(args: argparse.Namespace) -> MergeRequest:
    """The merge that the arguments ask for: its subjects in their order, then its styles.

    Raises:
        ConfigError: a value outside its range, or more prompts, weights or pictures than LoRAs.
    """
    if args.files and len(args.files) != len(ROLES):
        raise ConfigError(
            f"SUBJECT and STYLE are two files, not {len(args.files)}; give more of them as --subject and --style."
        )
    settings = settings_from({name: getattr(args, name) for name in setting_defaults()})
    loras = [lora for role in ROLES for lora in inputs_of(args, role)]
    if len(loras) < len(ROLES):
        raise ConfigError(
            "A merge needs at least two LoRAs: give SUBJECT and STYLE, or --subject and --style."
        )
    return MergeRequest(tuple(loras), args.output, args.force, settings, args.report_beside)


def inputs_of(args: argparse.Namespace, role: Role) -> Iterator[LoraInput]:
    """The LoRAs of a role, each with its prompt, weight and pictures."""
    files: Sequence[str] = getattr(args, "files", ())
    loras = [*files[ROLES.index(role) : ROLES.index(role) + 1], *getattr(args, role)]
    given = {}
    for kind, default in (("prompt", ""), ("weight", 1.0), ("images", ())):
        values = getattr(args, f"{role}_{kind}")
        if len(values) > len(loras):
            raise ConfigError(f"There are {len(values)} --{role}-{kind} for {len(loras)} {role} LoRAs.")
        given[kind] = [*values, *[default] * (len(loras) - len(values))]
    for lora, prompt, weight, images in zip(
        loras, given["prompt"], given["weight"], given["images"], strict=True
    ):
        yield LoraInput(lora, prompt, weight, tuple(images), role)


def reexport_from(args: argparse.Namespace) -> ReexportRequest:
    """The re-export that the arguments ask for.

    Raises:
        ConfigError: a value outside its range.
    """
    return ReexportRequest(
        args.source,
        args.output,
        args.force,
        tuple(args.subject_weight),
        tuple(args.style_weight),
        args.rank,
        args.precision,
        args.split,
        args.report_beside,
    )
