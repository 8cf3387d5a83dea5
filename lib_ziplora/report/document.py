"""Contents of a merge's report: everything about a finished merge, for the page and the JSON file beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..config import labels, setting_defaults, setting_fields
from ..hosts import Host
from ..plots import counted, number
from .explain import Explanation, explain, explained
from .recipe import write_recipe
from .report import MergeReport
from .saved import SavedMerge
from .sentences import in_words

GENERATOR = "sd-webui-ziplora"
Row = tuple[str, str]


@dataclass(frozen=True)
class Document:
    """What there is to tell of a merge.

    Attributes:
        explanation: what its coefficients are.
        saved: what it was made with.
        report: how it went, where that is still known: it is kept in no file but this one.
    """

    explanation: Explanation
    saved: SavedMerge
    report: MergeReport | None = None

    @property
    def name(self) -> str:
        """Of the merge."""
        return self.explanation.name

    @property
    def words(self) -> list[str]:
        """What the merge did."""
        return in_words(self.explanation)

    @property
    def recipe(self) -> str:
        """What it was made of and how, as one line to share."""
        named = zip(self.saved.loras, self.saved.sources, strict=True)
        loras = [dataclasses.replace(lora, lora=source.name) for lora, source in named]
        return write_recipe(loras, self.saved.settings)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what went wrong."""
        return self.report.warnings if self.report else ()

    def figures(self) -> list[Row]:
        """The key figures, as (name, value)."""
        saved, found = self.saved, self.explanation
        rows = list(figures(self.report)) if self.report else [("Method", saved.settings.method)]
        if not self.report and found.loras:
            rows += [("Updates", str(len(saved.history)))] if saved.history else []
            rows.append(("Mean travel", number(found.moved)))
            rows += [] if found.similarity is None else [("Similarity", number(found.similarity))]
        checkpoint = saved.checkpoint
        if checkpoint.name:
            rows.append(("Checkpoint", " ".join(filter(None, (checkpoint.name, checkpoint.sha256)))))
        return rows

    def inputs(self) -> list[dict[str, str]]:
        """Each LoRA: role, name, prompt, weight, hash, bytes."""
        roles = labels([lora.role for lora in self.saved.loras])
        return [
            {
                "Role": label,
                "LoRA": source.name,
                "Prompt": lora.prompt,
                "Weight": f"{lora.weight:g}{lora.blocks and f', {lora.blocks}'}",
                "sha256": source.sha256,
                "Bytes": str(source.size),
            }
            for label, lora, source in zip(roles, self.saved.loras, self.saved.sources, strict=True)
        ]

    def settings(self) -> list[tuple[str, str, bool]]:
        """Every setting as (label, value, whether it is the default)."""
        defaults = setting_defaults()
        values = {name: getattr(self.saved.settings, name) for name in defaults}
        return [
            (option.label, _shown(values[name]), values[name] == defaults[name])
            for name, option in setting_fields().items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not finite is None."""
        saved = self.saved
        found: dict[str, Any] = finite(
            {
                "generator": GENERATOR,
                "version": __version__,
                "name": self.name,
                "tag": f"<lora:{self.name}:1>",
                "words": self.words,
                "recipe": self.recipe,
                "report": self.report.to_json() if self.report else None,
                "loras": [
                    {**dataclasses.asdict(lora), "sha256": source.sha256, "bytes": source.size}
                    for lora, source in zip(saved.loras, saved.sources, strict=True)
                ],
                "settings": dataclasses.asdict(saved.settings),
                "checkpoint": dataclasses.asdict(saved.checkpoint),
                "coefficients": self.explanation.to_json(),
                "history": [dict(step) for step in saved.history],
            }
        )
        return found


def document_of(report: MergeReport, saved: SavedMerge) -> Document:
    """About a merge that was just made."""
    return Document(explain(report.name, saved), saved, report)


def document(host: Host, name: str) -> Document:
    """About an installed merge whose coefficients were saved.

    Raises:
        LoraFileError: there is no such LoRA, or its coefficients are missing or damaged.
    """
    return Document(*explained(host, name))


def figures(report: MergeReport) -> Sequence[Row]:
    """The rows of a merge's table, as (name, value); what was not measured has no row."""
    learnt = report.learnt
    single = [f"{count} {label} only" for label, count in report.single_layers.items()]
    rows: list[tuple[str, str | None]] = [
        ("Method", f"{report.method}, {counted(learnt.steps, 'update')}" if learnt.steps else report.method),
        ("Mean travel", number(learnt.mean_travel) if learnt.steps else None),
        ("Similarity", _change(learnt.similarity_start, learnt.similarity_end) if learnt.steps else None),
        ("Loss", _change(learnt.loss_start, learnt.loss_end)),
        ("Held-out loss", _change(learnt.heldout_loss_start, learnt.heldout_loss_end)),
        ("Strengths for both together", " · ".join(map(number, learnt.strengths)) or None),
        ("Rank", str(report.rank)),
        ("Layers", ", ".join([f"{report.common_layers} common", *single])),
        ("Seconds", f"{report.seconds:.1f}"),
    ]
    return [(name, value) for name, value in rows if value is not None]


FIGURE_HELP = {
    "Mean travel": "How far the coefficients have moved from where they began, on average; 0 is not at all",
    "Similarity": "How much the LoRAs use the same columns, before and after; 1 is the plain sum",
    "Loss": "The error that the updates made smaller, over the first and the last ten",
    "Held-out loss": "The error on pictures that nothing was learnt from, of the plain sum and of the merge: 0 is each "
    "LoRA as it is alone, 1 for each is as if it were missing",
    "Strengths for both together": "The weights of the plain sum that shows both in a picture of the combined prompt",
    "Rank": "Size of the file; as large as the two ranks together unless a lower one was asked for",
    "Layers": "How many layers both LoRAs change, and how many only one of them",
}
"""What the figures mean, by their names."""


def _change(start: float | None, end: float | None) -> str | None:
    return None if start is None or end is None else f"{number(start)} → {number(end)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def finite(value: Any) -> Any:
    """Plain data for JSON, which has no NaN and no infinity: None stands for them."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
