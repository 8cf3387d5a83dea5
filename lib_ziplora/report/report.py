"""What a merge tells afterwards: to people, to the file's header, to a JSON file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import MergeSettings

SUMMARY = ("steps", "mean_travel", "similarity_start", "similarity_end")
"""The figures that are about the coefficients alone, whatever is made of them."""


@dataclass(frozen=True)
class MergeReport:
    """The figures of a finished merge.

    Attributes:
        output: the file that was written.
        name: its stem, as in ``<lora:name:1>``.
        method: ``ziplora``, ``instant`` or ``direct``.
        steps: updates that were made.
        mean_travel: mean distance of the coefficients from where they began (1, or the balanced strength), at
            the end.
        similarity_start: mean |m_a * m_b| over the pairs of LoRAs before the first update (1: the
            plain sum).
        similarity_end: the same after the last.
        loss_start: all errors' sum under the chosen objective, mean over the first ten updates.
        loss_end: the same over the last ten.
        heldout_loss_start: the relative errors' sum of the plain sum, on samples that are not
            trained on; 0 is perfect, 1 for each LoRA is what no LoRA at all would give.
        heldout_loss_end: the same with the learnt coefficients.
        common_layers: layers that at least two LoRAs have.
        single_layers: for each LoRA (``subject``, ``style``; ``subject 2`` of several), the number of
            layers that it alone has.
        strengths: each LoRA's strength in the plain sum that the combined prompt's term, or the method
            balanced, holds to; empty where neither is used.
        subject_share: the subject's share in that sum's pictures, 1 for what the subject's LoRA draws by
            itself and 0 for the style's; None where it was not measured.
        rank: the largest rank in the file.
        split: the names of the files with each LoRA's part, when asked for.
        sidecar: the name of the file beside it that holds the coefficients.
        report_files: the names of the page and the JSON file about it, when asked for.
        rank_error: relative error of all layers together that a lower rank than ``exact`` has cost.
        skipped_steps: updates left out because a gradient was not finite.
        stopped_early: fewer updates than asked for.
        plan: how the updates were made, by the memory that was free; "" where there were none.
        unknown: tensors of the inputs that belong to no layer we know, by file.
        seconds: from start to end.
        warnings: sentences for people.
        model_hash: sha256 of the written file's tensors, its ``sshs_model_hash``, by which the WebUI knows it.
        checkpoint: what it was merged against; "" for a direct merge.
        settings: as they were used.
    """

    output: str
    name: str
    method: str
    steps: int
    common_layers: int
    single_layers: Mapping[str, int]
    rank: int
    model_hash: str
    settings: MergeSettings
    checkpoint: str = ""
    mean_travel: float = 0.0
    similarity_start: float = 1.0
    similarity_end: float = 1.0
    loss_start: float | None = None
    loss_end: float | None = None
    heldout_loss_start: float | None = None
    heldout_loss_end: float | None = None
    strengths: tuple[float, ...] = ()
    subject_share: float | None = None
    rank_error: float = 0.0
    split: tuple[str, ...] = ()
    sidecar: str = ""
    report_files: tuple[str, ...] = ()
    skipped_steps: int = 0
    stopped_early: bool = False
    plan: str = ""
    unknown: dict[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def tag(self) -> str:
        """What goes into a prompt."""
        return f"<lora:{self.name}:1>"

    def to_json(self) -> dict[str, Any]:
        """Plain data, in the order of the fields; JSON has no NaN and infinity, they become None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in dataclasses.asdict(self).items()
        }
