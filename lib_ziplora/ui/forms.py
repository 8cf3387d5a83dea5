"""The values of the tab's controls, in their order, and the requests that they ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..config import ROLES, LoraInput, MergeRequest, Role, setting_fields, settings_from
from ..errors import ConfigError
from ..library.merges import Steerable
from ..pipeline.reexport import ReexportRequest

OUTPUT_FIELDS = ("output", "overwrite", "report")
LONGEST_STEM = 160
"""Bytes of a suggested name, so that a number and an extension still fit."""
STRENGTHS = 6
"""Strength sliders of the steering panel; the LoRAs of a merge beyond them stay at 1."""
STEER_VALUES = (
    "steer",
    *(f"steer_strength_{number}" for number in range(1, STRENGTHS + 1)),
    "steer_rank",
    "steer_precision",
    "steer_split",
    "steer_output",
    "steer_overwrite",
    "report",
)
"""The values that the steering panel sends; the report is the form's own."""


@dataclass(frozen=True)
class Slot:
    """A place in the tab for one LoRA: its values are called ``name``, ``name_prompt``, ``name_weight``.

    An optional one may stay empty, and a value ``name_role`` says what its LoRA brings.
    """

    name: str
    optional: bool = False

    def value_names(self) -> tuple[str, ...]:
        """The names of its values, in their order."""
        endings = ("", "_prompt", "_weight", *(("_role",) if self.optional else ()))
        return tuple(f"{self.name}{ending}" for ending in endings)

    def role(self, given: Mapping[str, Any]) -> Role:
        """What its LoRA brings; ``LoraInput`` refuses what is no role."""
        return cast(Role, given[f"{self.name}_role"] if self.optional else self.name)

    def lora(self, given: Mapping[str, Any]) -> LoraInput | None:
        """The LoRA that its values ask for; None when it is optional and empty.

        Raises:
            ConfigError: none is chosen where one is needed, or its weight or role is none.
        """
        name, weight = given[self.name], given[f"{self.name}_weight"]
        if not name and self.optional:
            return None
        if not name:
            raise ConfigError(f"No {self.name} is chosen. Choose a LoRA as {self.name}.")
        prompt = str(given[f"{self.name}_prompt"] or "")
        return LoraInput(str(name), prompt, 1.0 if weight is None else float(weight), role=self.role(given))


PAIR = tuple(Slot(role) for role in ROLES)
"""The two LoRAs that every merge has."""
MORE = (Slot("third", optional=True), Slot("fourth", optional=True))
"""Those that it may have beside them."""
SLOTS = (*PAIR, *MORE)


def value_names(slots: Sequence[Slot] = SLOTS) -> tuple[str, ...]:
    """The names of the values that the tab sends for a merge, in their order."""
    return (
        tuple(name for slot in slots for name in slot.value_names()) + OUTPUT_FIELDS + tuple(setting_fields())
    )


def request_from(values: Sequence[Any], slots: Sequence[Slot] = SLOTS) -> MergeRequest:
    """The request that the tab's values, in the order of ``value_names()``, ask for.

    Raises:
        ConfigError: no LoRA or no name is chosen, or a setting is outside its range.
    """
    given = dict(zip(value_names(slots), values, strict=True))
    settings = {name: given[name] for name in setting_fields() if given[name] is not None}
    loras = tuple(lora for slot in slots if (lora := slot.lora(given)) is not None)
    output = str(given["output"] or "").strip()
    if not output:
        raise ConfigError("The merged LoRA has no name. Type one into Output name.")
    report = bool(given["report"])
    return MergeRequest(loras, output, bool(given["overwrite"]), settings_from(settings), report)


def both_chosen(values: Sequence[Any]) -> bool:
    """Whether the tab's values, in the order of ``value_names()``, have a subject and a style."""
    given = dict(zip(value_names(), values, strict=True))
    return all(given[slot.name] for slot in PAIR)


def reexport_from(values: Sequence[Any], merge: Steerable) -> ReexportRequest:
    """The request that the steering panel's values, in the order of ``STEER_VALUES``, ask for.

    Args:
        values: of its controls; a strength that is None is 1.
        merge: the merge that they steer.

    Raises:
        ConfigError: no name, or a value outside its range.
    """
    given = dict(zip(STEER_VALUES, values, strict=True))
    output = str(given["steer_output"] or "").strip()
    if not output:
        raise ConfigError("The new LoRA has no name. Type one into Name of the new file.")
    strengths = [given[name] for name in STEER_VALUES if name.startswith("steer_strength_")]
    by_role: dict[str, list[float]] = {role: [] for role in ROLES}
    for role, strength in zip(merge.roles, strengths, strict=False):
        by_role[role].append(1.0 if strength is None else float(strength))
    return ReexportRequest(
        str(given["steer"] or ""),
        output,
        bool(given["steer_overwrite"]),
        tuple(by_role["subject"]),
        tuple(by_role["style"]),
        str(given["steer_rank"] or "").strip(),
        str(given["steer_precision"] or ""),
        bool(given["steer_split"]),
        bool(given["report"]),
    )


def suggested_name(subject: str | None, style: str | None, taken: Sequence[str]) -> str:
    """A free name for the merge of two LoRAs: ``<subject>_x_<style>``, numbered if need be."""
    return free_name(f"{subject}_x_{style}", taken) if subject and style else ""


def free_name(wish: str, taken: Sequence[str]) -> str:
    """A name like ``wish`` that no LoRA has yet, numbered if need be.

    Only characters that file systems and ``<lora:name:1>`` pass on unharmed are kept.
    """
    stem = re.sub(r"[^\w .+-]+", "_", wish)
    stem = stem.encode()[:LONGEST_STEM].decode(errors="ignore").strip(" .")
    used = {name.casefold() for name in taken}
    number, name = 2, stem
    while name.casefold() in used:
        number, name = number + 1, f"{stem}_{number}"
    return name
