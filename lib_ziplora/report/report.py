"""The report of a finished merge: for people, for the file's header, as JSON."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import MergeSettings
from ..errors import ZipLoraError
from ..training.learnt import PLAIN_SUM, Learnt

log = logging.getLogger(__name__)

SUMMARY = ("steps", "mean_travel", "similarity_start", "similarity_end")
"""The figures of the learning that are about the coefficients alone, whatever is made of them."""
LOSSES = ("loss_start", "loss_end", "heldout_loss_start", "heldout_loss_end")


@dataclass(frozen=True)
class MergeReport:
    """What was written, and how the merge went.

    Attributes:
        output: the file that was written.
        name: its stem, as in ``<lora:name:1>``.
        method: as in ``MergeSettings``.
        settings: as they were used.
        common_layers: layers that at least two LoRAs have.
        single_layers: for each LoRA (``subject``, ``style``; ``subject 2`` of several), the number of
            layers that it alone has.
        rank: the largest rank in the file.
        learnt: the figures of the learning.
        rank_error: relative error of all layers together that a lower rank than ``exact`` has cost.
        checkpoint: what it was merged against; "" for a direct merge.
        model_hash: sha256 of the written file's tensors, its ``sshs_model_hash``, by which the WebUI knows it.
        sidecar: the name of the file beside it that holds the coefficients.
        split: the names of the files with each LoRA's part, when asked for.
        report_files: the names of the page and the JSON file about it, when asked for.
        unknown: tensors of the inputs that belong to no layer we know, by file.
        warnings: sentences for people.
        seconds: from start to end.
    """

    output: str
    name: str
    method: str
    settings: MergeSettings
    common_layers: int
    single_layers: Mapping[str, int]
    rank: int
    learnt: Learnt = PLAIN_SUM
    rank_error: float = 0.0
    checkpoint: str = ""
    model_hash: str = ""
    sidecar: str = ""
    split: tuple[str, ...] = ()
    report_files: tuple[str, ...] = ()
    unknown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def tag(self) -> str:
        """What goes into a prompt."""
        return f"<lora:{self.name}:1>"

    def warned(self, sentence: str) -> MergeReport:
        """The report with one more warning."""
        return dataclasses.replace(self, warnings=(*self.warnings, sentence))

    def to_json(self) -> dict[str, Any]:
        """Plain data, the learning's figures among the others; JSON has no NaN and infinity, they become None."""
        figures = dataclasses.asdict(self)
        figures |= figures.pop("learnt")
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in figures.items()
        }


def failure(step: Callable[[], object]) -> str:
    """Why a step after the merge failed, which stays in either case; "" where it did not."""
    try:
        step()
    except ZipLoraError as error:
        return str(error)
    except Exception as problem:
        log.exception("A step after the merge failed")
        return f"{type(problem).__name__}, the log has the details."
    return ""
