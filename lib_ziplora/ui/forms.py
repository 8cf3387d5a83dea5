"""Requests from the values of the tab's controls.

Every function takes a mapping from a control's name to its value; the tuples name the controls that each needs.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..config import ROLES, LoraInput, MergeRequest, MergeSettings, Role, setting_fields, settings_from
from ..errors import ConfigError
from ..library.merges import Steerable
from ..names import folder_of, free_name, lora_name
from ..options import from_json
from ..pictures.comparison import CompareRequest
from ..pipeline.matrix import MatrixRequest
from ..pipeline.reexport import ReexportRequest
from ..pipeline.scan import ScanRequest

Values = Mapping[str, Any]

STRENGTHS = 6
"""Strength sliders of the panel Adjust strengths; the LoRAs of a merge beyond them stay at 1."""
STRENGTH_VALUES = tuple(f"adjust_strength_{number}" for number in range(1, STRENGTHS + 1))
RANDOM_SEED = -1
"""The seed that stands for a random one, as everywhere in the WebUI."""
PROMPT_SIGN = "|"
"""What separates a LoRA's name from its prompt in the lists of the matrix."""


@dataclass(frozen=True)
class Slot:
    """A place in the tab for one LoRA: its values are called ``name``, ``name_prompt``, ``name_weight``,
    ``name_blocks``.

    An optional one may stay empty, and a value ``name_role`` says what its LoRA brings.
    """

    name: str
    optional: bool = False

    def value_names(self) -> tuple[str, ...]:
        """The names of its values, in their order."""
        endings = ("", "_prompt", "_weight", "_blocks", *(("_role",) if self.optional else ()))
        return tuple(f"{self.name}{ending}" for ending in endings)

    def role(self, given: Values) -> Role:
        """What its LoRA brings; ``LoraInput`` refuses what is no role."""
        return cast(Role, given[f"{self.name}_role"] if self.optional else self.name)

    def lora(self, given: Values) -> LoraInput | None:
        """The LoRA that its values ask for; None when it is optional and empty.

        Raises:
            ConfigError: none is chosen where one is needed, or its weight or role is none.
        """
        name = given[self.name]
        if not name and self.optional:
            return None
        if not name:
            raise ConfigError(f"No {self.name} is chosen. Choose a LoRA as {self.name}.")
        prompt = str(given[f"{self.name}_prompt"] or "")
        weight, blocks = _or_one(given[f"{self.name}_weight"]), str(given[f"{self.name}_blocks"] or "")
        return LoraInput(str(name), prompt, weight, blocks=blocks, role=self.role(given))


PAIR = tuple(Slot(role) for role in ROLES)
"""The two LoRAs that every merge has."""
MORE = (Slot("third", optional=True), Slot("fourth", optional=True))
"""Those that it may have beside them."""
SLOTS = (*PAIR, *MORE)

OUTPUT_VALUES = ("output", "overwrite", "report")
MERGE_VALUES = (
    *(name for slot in SLOTS for name in slot.value_names()),
    *OUTPUT_VALUES,
    *setting_fields(),
)
ADJUST_VALUES = (
    *("adjust_source", *STRENGTH_VALUES, "adjust_rank", "adjust_precision", "adjust_split"),
    *("adjust_output", "adjust_overwrite", "report"),
)
MATRIX_VALUES = (
    *("matrix_subjects", "matrix_styles", "matrix_names", "matrix_overwrite", "matrix_sheet", "report"),
    *("subject_weight", "style_weight", "subject_blocks", "style_blocks"),
    *setting_fields(),
)
COMPARE_VALUES = (
    *("compare_source", "compare_prompts", "compare_seeds", "compare_seed", "compare_preview"),
    *("compare_sampler", "compare_steps", "compare_guidance_scale", "compare_width", "compare_height"),
    "compare_negative_prompt",
)
TWO_PICTURES, NO_PICTURES = "two pictures", "nothing"
AFTER_MERGE = (TWO_PICTURES, "a comparison", NO_PICTURES)
"""What is drawn once a merge is made."""


def merge_request(given: Values) -> MergeRequest:
    """The merge that ``MERGE_VALUES`` ask for.

    Raises:
        ConfigError: no LoRA or no name is chosen, or a setting is outside its range.
    """
    loras = tuple(lora for slot in SLOTS if (lora := slot.lora(given)) is not None)
    output = _name(given["output"], "The merged LoRA has no name. Type one into Output name.")
    return MergeRequest(loras, output, bool(given["overwrite"]), _settings(given), bool(given["report"]))


def both_chosen(given: Values) -> bool:
    """Whether a subject and a style are chosen."""
    return all(given[slot.name] for slot in PAIR)


def reexport_request(given: Values, merge: Steerable) -> ReexportRequest:
    """The re-export of a merge that ``ADJUST_VALUES`` ask for; a strength that is None is 1.

    Raises:
        ConfigError: no name, or a value outside its range.
    """
    _name(given["adjust_output"], "The new LoRA has no name. Type one into Name of the new file.")
    strengths: dict[str, list[float]] = {f"{role}_weights": [] for role in ROLES}
    for role, name in zip(merge.roles, STRENGTH_VALUES, strict=False):
        strengths[f"{role}_weights"].append(_or_one(given[name]))
    names = ("source", "rank", "precision", "split", "output", "overwrite")
    asked = _asked("adjust", names, given) | strengths
    return from_json(ReexportRequest, {**asked, "report": bool(given["report"])})


def matrix_request(given: Values) -> MatrixRequest:
    """The matrix that ``MATRIX_VALUES`` ask for.

    The form's combined prompt belongs to the pair that is picked there and is left out.

    Raises:
        ConfigError: no subject or style, or a value outside its range.
    """
    asked = _asked("matrix", ("names", "overwrite", "sheet"), given)
    return from_json(
        MatrixRequest,
        {**asked, "report": bool(given["report"])},
        subjects=_listed(
            given["matrix_subjects"], "subject", given["subject_weight"], given["subject_blocks"]
        ),
        styles=_listed(given["matrix_styles"], "style", given["style_weight"], given["style_blocks"]),
        settings=dataclasses.replace(_settings(given), combined_prompt=""),
    )


def scan_request(given: Values) -> ScanRequest:
    """The scan of the LoRAs in the lists of the matrix; without styles, of all that are installed.

    Raises:
        ConfigError: there is no subject.
    """
    subjects, styles = (_listed(given[f"matrix_{role}s"], role, 1) for role in ROLES)
    return ScanRequest(tuple(lora.lora for lora in subjects), tuple(lora.lora for lora in styles))


def compare_request(given: Values) -> CompareRequest:
    """The comparison that ``COMPARE_VALUES`` ask for.

    Raises:
        ConfigError: no merge is chosen, or a value is outside its range.
    """
    asked = _asked("compare", [name.removeprefix("compare_") for name in COMPARE_VALUES], given)
    lines = str(asked.get("prompts", "")).splitlines()
    asked["prompts"] = [line.strip() for line in lines if line.strip()]
    return from_json(CompareRequest, {"source": "", **asked, "seed": _seed(asked.get("seed", 0))})


def follow_up_request(given: Values) -> CompareRequest:
    """What is drawn of a merge that was just made: two pictures, or all that ``COMPARE_VALUES`` ask for.

    Raises:
        ConfigError: a value is outside its range.
    """
    if given["after_merge"] != TWO_PICTURES:
        return compare_request(given)
    request = compare_request({**given, "compare_prompts": "", "compare_seeds": 1})
    return dataclasses.replace(request, brief=True)


def _asked(panel: str, names: Iterable[str], given: Values) -> dict[str, Any]:
    """The values of a panel's controls that are not empty, as the JSON of its request has them."""
    values = ((name, given[f"{panel}_{name}"]) for name in names)
    stripped = ((name, value.strip() if isinstance(value, str) else value) for name, value in values)
    return {name: value for name, value in stripped if value not in (None, "")}


def _settings(given: Values) -> MergeSettings:
    settings = {name: given[name] for name in setting_fields() if given[name] is not None}
    return settings_from({**settings, "seed": _seed(settings.get("seed", 0))})


def _seed(value: Any) -> Any:
    return random.randrange(2**31) if value == RANDOM_SEED else value


def _name(value: Any, refusal: str) -> str:
    name = str(value or "").strip()
    if not name:
        raise ConfigError(refusal)
    return name


def _listed(
    lines: str | None, role: Role, weight: float | None, blocks: str | None = ""
) -> tuple[LoraInput, ...]:
    rows = [line.partition(PROMPT_SIGN) for line in (lines or "").splitlines() if line.strip()]
    return tuple(
        LoraInput(name.strip(), prompt.strip(), _or_one(weight), blocks=blocks or "", role=role)
        for name, _, prompt in rows
    )


def _or_one(strength: float | None) -> float:
    return 1.0 if strength is None else float(strength)


def suggested_name(subject: str | None, style: str | None, taken: Sequence[str]) -> str:
    """A free name for the merge of two LoRAs: ``<subject>_x_<style>``, numbered if need be."""
    return free_name(f"{subject}_x_{style}", taken) if subject and style else ""


def next_name(output: str, taken: Sequence[str]) -> str:
    """The next free name after one that is taken now, in the same folder."""
    return folder_of(output) + free_name(re.sub(r"_\d+$", "", lora_name(output)), taken)
