"""Figures of finished training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ziplora.coefficients import MergerCoefficients
from ..ziplora.objective import similarity
from ..ziplora.train import TrainingResult, Update
from .strengths import Strengths

MOVED = 0.01
ENDS = 10
"""Updates over which the first and the last loss are averaged."""


@dataclass(frozen=True)
class Learnt:
    """The figures of the learning; those of a plain sum by default.

    Attributes:
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
        heldout_errors: each LoRA's part of ``heldout_loss_end``.
        skipped_steps: updates left out because a gradient was not finite.
        stopped_early: fewer updates than asked for.
        strengths: each LoRA's strength in the plain sum that the combined prompt's term, or the method
            balanced, holds to; empty where neither is used.
        subject_share: the subject's share in that sum's pictures, 1 for what the subject's LoRA draws by
            itself and 0 for the style's; None where it was not measured.
        plan: how the updates were made, by the memory that was free; "" where there were none.
    """

    steps: int = 0
    mean_travel: float = 0.0
    similarity_start: float = 1.0
    similarity_end: float = 1.0
    loss_start: float | None = None
    loss_end: float | None = None
    heldout_loss_start: float | None = None
    heldout_loss_end: float | None = None
    heldout_errors: tuple[float, ...] = ()
    skipped_steps: int = 0
    stopped_early: bool = False
    strengths: tuple[float, ...] = ()
    subject_share: float | None = None
    plan: str = ""

    @classmethod
    def of(
        cls,
        result: TrainingResult,
        coefficients: MergerCoefficients,
        strengths: Strengths,
        errors_start: Sequence[float],
        errors_end: Sequence[float],
    ) -> Learnt:
        """The figures of a result and of the coefficients that it left.

        Args:
            result: of the updates.
            coefficients: at the end.
            strengths: where they began.
            errors_start: each LoRA's held-out relative error in the plain sum.
            errors_end: the same with the coefficients.
        """
        shared = any(coefficients.shared())
        return cls(
            steps=len(result.updates),
            mean_travel=coefficients.mean_change().item(),
            similarity_start=1.0 if shared else 0.0,
            similarity_end=similarity(coefficients).item(),
            loss_start=_mean_loss(result.updates[:ENDS]),
            loss_end=_mean_loss(result.updates[-ENDS:]),
            heldout_loss_start=sum(errors_start),
            heldout_loss_end=sum(errors_end),
            heldout_errors=tuple(errors_end),
            skipped_steps=result.skipped,
            stopped_early=result.stopped_early,
            strengths=strengths.values,
            subject_share=strengths.subject_share,
            plan=result.plan.description if result.plan else "",
        )

    def warnings(self) -> list[str]:
        """Honest sentences where the run did not do what it is for."""
        sentences = []
        if self.steps and self.mean_travel < MOVED:
            sentences.append(
                f"The coefficients have hardly moved (mean distance from the start: {self.mean_travel:.4f}): the "
                "result is nearly the plain sum. Raise the learning rate or the number of updates."
            )
        start, end = self.heldout_loss_start, self.heldout_loss_end
        if start is not None and end is not None and end > start:
            sentences.append(
                "On samples that were not trained on, the merge is further from the LoRAs than their plain "
                f"sum ({end:.2f} against {start:.2f}). "
                "Give it more trajectories, or use the direct method."
            )
        if self.skipped_steps:
            sentences.append(f"{self.skipped_steps} updates were left out because a gradient was not finite.")
        return sentences


def _mean_loss(updates: Sequence[Update]) -> float | None:
    return sum(sum(update.errors) for update in updates) / len(updates) if updates else None


PLAIN_SUM = Learnt()
"""The figures where nothing was learnt."""
