"""What the compare panel does: from its values to a request, through ``job``, to pictures and text.

No gradio: ``compare.py`` lays out the controls and hands their values here.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from ..errors import ConfigError, ZipLoraError
from ..hosts import Draws, Host, Sampler
from ..library.card import write_preview
from ..pictures.compare import compare, merge_prompts, prepare_compare
from ..pictures.comparison import CompareRequest, Comparison
from . import text
from .handlers import Desk
from .tasks import Follow, Outcome

log = logging.getLogger(__name__)

COMPARE_VALUES = (
    "compare_merge",
    "compare_prompts",
    "compare_seeds",
    "compare_seed",
    "compare_sampler",
    "compare_steps",
    "compare_guidance",
    "compare_width",
    "compare_height",
    "compare_negative",
    "compare_preview",
)
"""The values that the panel sends, in their order."""
REMEMBERED = 2
"""Comparisons whose pictures are kept: they are large."""
STOPPING = "Stopping, the pictures that are finished stay"
SHEET = "All pictures"
NO_PICTURES = "There are no pictures to choose from. Press Compare first."

Compare = Callable[[CompareRequest, Host, Follow], Comparison]


def compare_request(values: Sequence[Any]) -> CompareRequest:
    """The request that the panel's values, in the order of ``COMPARE_VALUES``, ask for.

    Raises:
        ConfigError: no merge is chosen, or a value is outside its range.
    """
    given = dict(zip(COMPARE_VALUES, values, strict=True))
    plain = Sampler()
    sampler = Sampler(
        str(given["compare_sampler"] or ""),
        _whole(given["compare_steps"], plain.steps),
        float(plain.guidance_scale if given["compare_guidance"] is None else given["compare_guidance"]),
        _whole(given["compare_width"], 0),
        _whole(given["compare_height"], 0),
        str(given["compare_negative"] or "").strip(),
    )
    lines = str(given["compare_prompts"] or "").splitlines()
    return CompareRequest(
        str(given["compare_merge"] or ""),
        tuple(line.strip() for line in lines if line.strip()),
        _whole(given["compare_seeds"], 1),
        _whole(given["compare_seed"], 0),
        sampler,
    )


def _whole(value: Any, default: int) -> int:
    if value is None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"A whole number is needed, not {value!r}.") from error


class Comparisons:
    """The comparisons of a tab: drawn under the tickets of its desk, the newest of them kept.

    Args:
        desk: gives the tickets.
        compare: draws.
        check: refuses beforehand.
    """

    def __init__(
        self,
        desk: Desk,
        compare: Compare = compare,
        check: Callable[[CompareRequest, Host], object] = prepare_compare,
    ) -> None:
        self._desk, self._compare, self._check = desk, compare, check
        self._kept: OrderedDict[str, Comparison] = OrderedDict()

    def possible(self) -> bool:
        """Whether the host draws at all."""
        return isinstance(self._desk.host, Draws)

    def merges(self) -> list[str]:
        """The installed merges that can be compared with what they were made of."""
        return self._desk.steerables()

    def prompts(self, merge: str | None) -> str:
        """The prompts that a merge is best compared with, one a line; "" where none are known."""
        try:
            return "\n".join(merge_prompts(self._desk.host, merge)) if merge else ""
        except ZipLoraError:
            return ""

    def prepare(self, values: Sequence[Any]) -> tuple[str, str]:
        """``admit`` the comparison that the panel's values ask for."""
        check = lambda: self._check(compare_request(values), self._desk.host)  # noqa: E731
        return self._desk.admit(check, if_interrupted=STOPPING, if_finished=STOPPING)

    def work(self, ticket: str, values: Sequence[Any]) -> Outcome:
        """``perform`` the comparison that the panel's values ask for."""

        def run(follow: Follow) -> Outcome:
            try:
                done = self._compare(compare_request(values), self._desk.host, follow)
            except ZipLoraError:
                raise
            except Exception as problem:
                log.exception("The comparison failed")
                return Outcome(text.error(_unforeseen(problem)))
            self._kept[ticket] = done
            while len(self._kept) > REMEMBERED:
                self._kept.popitem(last=False)
            return Outcome(self._told(done, bool(values[-1])), done.plan.name)

        return self._desk.perform(ticket, run)

    def gallery(self, ticket: str) -> list[tuple[Any, str]]:
        """The sheet and each picture of a comparison with its caption; empty when nobody remembers it."""
        done = self._kept.get(ticket)
        if done is None:
            return []
        return [(done.grid, SHEET), *[(drawn.image, caption) for drawn, caption in done.gallery()]]

    def use_as_preview(self, ticket: str, chosen: int, replace: bool) -> str:
        """Make a picture of a comparison the preview of its merge's card.

        Args:
            ticket: of the comparison.
            chosen: number of the picture in ``gallery``; below 0 the merge's own best one.
            replace: also a picture of the user's.

        Returns:
            A box that says what became of it.
        """
        done = self._kept.get(ticket)
        if done is None or chosen > len(done.pictures):
            return text.error(NO_PICTURES)
        if chosen == 0:
            return text.error("The sheet is too large for a card. Choose one of the pictures after it.")
        drawn = done.best_preview() if chosen < 0 else done.gallery()[chosen - 1][0]
        if drawn is None:
            return text.error("The merge's own picture was not drawn. Choose another one.")
        try:
            file = write_preview(done.plan.name, self._desk.host, drawn, replace)
        except ZipLoraError as error:
            return text.error(str(error))
        return text.notice(f"{file.name} is the preview of {done.plan.name} now.", "preview")

    def _told(self, done: Comparison, preview: bool) -> str:
        """What was drawn, where it is, and why anything is missing."""
        drawn, wanted = len(done.pictures), done.plan.count
        kind, looks = ("interrupted", "") if done.stopped else ("done", " ziplora-done")
        lines = [f"Drew {drawn} of {wanted} pictures of <b>{escape(done.plan.name)}</b>"]
        lines[0] += f" in {escape(text.duration(done.seconds))}."
        problems = [done.stopped] if done.stopped else []
        best = done.best_preview()
        if preview and best is not None:
            try:
                file = write_preview(done.plan.name, self._desk.host, best)
                lines.append(f"The merge's picture is its preview, {escape(file.name)}.")
            except ZipLoraError as error:
                problems.append(str(error))
        saved = f'<p class="ziplora-path">{escape(str(done.file))}</p>' if done.file else ""
        return (
            f'<div class="ziplora-box{looks}" role="status" data-outcome="{kind}">'
            f"<p>{' '.join(lines)}</p>{saved}{text.listed(problems, 'ziplora-warnings')}</div>"
        )


def _unforeseen(problem: Exception) -> str:
    return (
        f"The comparison failed for an unforeseen reason ({type(problem).__name__}). The merge is unchanged. "
        "The console shows the details; please report them."
    )
