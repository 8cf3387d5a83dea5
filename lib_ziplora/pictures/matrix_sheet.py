"""Sheet of a matrix, a picture of every merge: a row for each subject, a column for each style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, HostError, Interrupted, ZipLoraError
from ..hosts import Drawn, Draws, Host, Pen, Picture, Progress, Sampler
from ..library.merge_prompts import prompts_of, together
from ..pipeline.matrix import Cell
from ..progress import Meter
from ..report.saved import read_saved, saved_path
from ..training.memory import memory_in_words
from .compare import draw_counted
from .grid import Label, labelled_grid

if TYPE_CHECKING:
    from PIL.Image import Image

NO_SHEET = "A sheet can't be drawn here: this host does not draw."
NO_MERGE = "No merge is there to draw."
INTERRUPTED = "The sheet was interrupted before its first picture was drawn."
DRAWABLE = ("done", "exists")
"""States of the pairs whose merges are there."""


@dataclass(frozen=True)
class Sheet:
    """The sheet of a matrix.

    Attributes:
        image: RGB; ``info["parameters"]`` is its infotext.
        pictures: how many are on it.
        file: where the host has saved it; None where it saves none.
        remarks: why pictures are missing, as sentences.
    """

    image: Image
    pictures: int
    file: Path | None = None
    remarks: tuple[str, ...] = ()


def draw_sheet(
    cells: Sequence[Cell],
    host: Host,
    sampler: Sampler | None = None,
    seed: int = 0,
    on_event: Callable[[Progress], None] | None = None,
) -> Sheet:
    """Draw every merge of a matrix that is there, each with the prompt for both of its LoRAs.

    Args:
        cells: of the matrix.
        host: one that draws (``hosts.Draws``). Its lock is the caller's business, as in ``run``.
        sampler: how to draw; as the host does by itself when None.
        seed: of all pictures.
        on_event: told of every step.

    Returns:
        The sheet. What the user interrupts, or what fails, leaves the pictures that are finished by then.

    Raises:
        ZipLoraError: before the first picture was finished, or no merge is there.
    """
    there = [cell for cell in cells if cell.state in DRAWABLE]
    if not there:
        raise ConfigError(NO_MERGE)
    if not isinstance(host, Draws):
        raise HostError(NO_SHEET)
    how = sampler or host.default_sampler()
    meter = Meter(host, on_event, len(there) * how.steps, INTERRUPTED)
    meter.enter("drawing", "Preparing to draw the sheet")
    drawn: dict[str, Drawn] = {}
    remarks: list[str] = []
    with memory_in_words(), host.drawing(how, len(there)) as pen:
        for cell in there:
            try:
                drawn[cell.request.output] = _draw(cell, host, pen, seed, meter, how.steps)
            except ZipLoraError as error:
                if isinstance(error, Interrupted) and not drawn:
                    raise
                remarks.append(f"{cell.request.output} was not drawn: {error}")
                if isinstance(error, Interrupted):
                    break
        if not drawn:
            raise HostError(remarks[0])
        sheet = _arranged(cells, drawn, pen, remarks)
    meter.finish("Drew the sheet")
    return sheet


def _draw(cell: Cell, host: Host, pen: Pen, seed: int, meter: Meter, steps: int) -> Drawn:
    name = cell.name
    saved = read_saved(saved_path(name, host))
    prompt = together(saved, prompts_of(saved, host))
    return draw_counted(pen, Picture(prompt, ((name, 1.0),), seed), meter, steps, name)


def _arranged(cells: Sequence[Cell], drawn: dict[str, Drawn], pen: Pen, remarks: list[str]) -> Sheet:
    subjects = list(dict.fromkeys(cell.subject for cell in cells))
    styles = list(dict.fromkeys(cell.style for cell in cells))
    images = {
        (subjects.index(cell.subject), styles.index(cell.style), 0): drawn[cell.request.output].image
        for cell in cells
        if cell.request.output in drawn
    }
    rows, groups = [Label(name) for name in subjects], [Label(name) for name in styles]
    image = labelled_grid(rows, groups, [""], images, pen.font)
    infotext = next(reversed(drawn.values())).infotext
    image.info["parameters"] = infotext
    try:
        file = pen.keep(image, infotext)
    except ZipLoraError as error:
        file, remarks = None, [*remarks, str(error)]
    return Sheet(image, len(drawn), file, tuple(remarks))
