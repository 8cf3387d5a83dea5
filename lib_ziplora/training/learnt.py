"""Figures of a finished optimisation."""

from __future__ import annotations

from dataclasses import dataclass

MOVED = 0.01


@dataclass(frozen=True)
class Learnt:
    """What the optimisation contributes to a report (see ``report.MergeReport``)."""

    steps: int
    mean_travel: float
    similarity_start: float
    similarity_end: float
    loss_start: float | None
    loss_end: float | None
    heldout_loss_start: float
    heldout_loss_end: float
    skipped_steps: int
    stopped_early: bool
    strengths: tuple[float, ...] = ()
    subject_share: float | None = None
    plan: str = ""

    def warnings(self) -> list[str]:
        """Honest sentences where the run did not do what it is for."""
        found = []
        if self.steps and self.mean_travel < MOVED:
            found.append(
                f"The coefficients have hardly moved (mean distance from the start: {self.mean_travel:.4f}): the "
                "result is nearly the plain sum. Raise the learning rate or the number of updates."
            )
        if self.heldout_loss_end > self.heldout_loss_start:
            found.append(
                "On samples that were not trained on, the merge is further from the LoRAs than their plain "
                f"sum ({self.heldout_loss_end:.2f} against {self.heldout_loss_start:.2f}). "
                "Give it more trajectories, or use the direct method."
            )
        if self.skipped_steps:
            found.append(f"{self.skipped_steps} updates were left out because a gradient was not finite.")
        return found
