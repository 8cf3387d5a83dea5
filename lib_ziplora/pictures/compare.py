"""Comparison sheet: each LoRA alone, the plain sum and the merge, drawn with the same prompts and seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import labels
from ..errors import ConfigError, HostError, Interrupted, ZipLoraError
from ..hosts import Drawn, Draws, Host, Pen, Picture, Progress
from ..library.merge_prompts import prompts_of, together
from ..lora.io.atomic import atomic_write
from ..plots import counted
from ..progress import Meter
from ..report.saved import SavedMerge, find_sources, merged_file, read_saved, saved_path
from ..training.images import save_png
from ..training.memory import memory_in_words
from .comparison import CompareRequest, Comparison, Place, Plan, Row, untagged
from .grid import Label, labelled_grid

if TYPE_CHECKING:
    from PIL.Image import Image

INTERRUPTED = "The comparison was interrupted"
NO_MEMORY = (
    "The device ran out of memory while it drew; the model is unchanged. Choose a smaller picture width and "
    "height, or close other programs that use the memory."
)


def merge_prompts(host: Host, merged: str) -> tuple[str, ...]:
    """The prompts that a merge should be compared with: each LoRA's own, and one for all together.

    Raises:
        LoraFileError: there is no such merge, or its coefficients are missing or damaged.
    """
    saved = read_saved(saved_path(merged, host))
    return tuple(label.detail for label in _own_prompts(saved, host))


@dataclass(frozen=True)
class PreparedComparison:
    """Everything that is known of a comparison before a picture is drawn."""

    request: CompareRequest
    plan: Plan


def prepare_compare(request: CompareRequest, host: Host) -> PreparedComparison:
    """Find out what a comparison draws; refuse what can't be drawn.

    Raises:
        HostError: the host can't draw, or has no such sampler.
        LoraFileError: the merge is not there, or a LoRA that it was made of has changed or is gone.
        ConfigError: no prompt is known.
    """
    drawing = _drawing_host(host)
    drawing.check_drawing()
    path = saved_path(request.source, host)
    saved = read_saved(path)
    name = _as_installed(merged_file(path), host)
    sources = [_as_installed(file, host) for file in find_sources(saved, path, host)]
    given = tuple(untagged(prompt) for prompt in request.prompts)
    own = _own_prompts(saved, host)
    known = {label.detail: label.title for label in own}
    prompts = [Label(known.get(prompt, f"prompt {number}"), prompt) for number, prompt in enumerate(given, 1)]
    if not (prompts or own):
        raise ConfigError(f"No prompt of {path.stem} is known. Write the prompts to compare with.")
    seeds = tuple(range(request.seed, request.seed + request.seeds))
    if request.sampler.name and request.sampler.name not in drawing.samplers():
        names = ", ".join(drawing.samplers())
        raise HostError(f"There is no sampler {request.sampler.name!r}; choose one of {names}.")
    rows = _rows(saved, sources, name)
    if request.brief:
        rows, own = rows[-2:], own[-1:]
    plan = Plan(path.stem, rows, tuple(prompts or own), seeds)
    return PreparedComparison(request, plan)


def compare(
    comparison: PreparedComparison | CompareRequest,
    host: Host,
    on_event: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Draw each LoRA alone, the plain sum and the merge, with the same prompts and seeds.

    Args:
        comparison: which merge, and how to draw; a request is prepared first.
        host: one that draws (``hosts.Draws``). Its lock is the caller's business, as in ``run``.
        on_event: told of every picture, and of every step where the host's own bar does not show it.

    Returns:
        The pictures. When the user interrupts it, or something fails, those that are finished by then.

    Raises:
        ZipLoraError: before the first picture was finished.
    """
    started = time.monotonic()
    if isinstance(comparison, CompareRequest):
        comparison = prepare_compare(comparison, host)
    plan, sampler = comparison.plan, comparison.request.sampler
    meter = Meter(
        host, on_event, plan.count * sampler.steps, f"{INTERRUPTED} before its first picture was drawn."
    )
    meter.enter("drawing", "Preparing to draw")
    pictures: dict[Place, Drawn] = {}
    stopped = ""
    with memory_in_words(NO_MEMORY), _drawing_host(host).drawing(sampler, plan.count) as pen:
        try:
            for place, picture in plan.places():
                pictures[place] = _draw(pen, picture, meter, plan, len(pictures), sampler.steps)
        except ZipLoraError as error:
            if not pictures:
                raise
            stopped = f"{INTERRUPTED}." if isinstance(error, Interrupted) else str(error)
        finished = _sheet(plan, pictures, pen, stopped)
    seconds = time.monotonic() - started
    meter.finish(f"Drew {counted(len(pictures), 'picture')} in {seconds:.0f} s")
    return Comparison(plan, pictures, *finished, round(seconds, 2))


def save_sheet(comparison: Comparison, file: Path, overwrite: bool = False) -> None:
    """Write the sheet of a comparison as a PNG with its infotext.

    Raises:
        OutputError: there is a file of that name, or it can't be written.
    """
    with atomic_write(file, overwrite) as temporary:
        save_png(comparison.grid, {"parameters": comparison.infotext}, temporary)


def _draw(pen: Pen, picture: Picture, meter: Meter, plan: Plan, done: int, steps: int) -> Drawn:
    place = f"picture {done + 1} of {plan.count}, {_row_of(plan, picture)}, seed {picture.seed}"

    def stop() -> None:
        if meter.finish_requested():
            raise Interrupted(f"{INTERRUPTED} before its first picture was drawn.")

    with memory_in_words(NO_MEMORY):
        return draw_counted(pen, picture, meter, steps, place, stop)


def draw_counted(
    pen: Pen,
    picture: Picture,
    meter: Meter,
    steps: int,
    place: str,
    on_step: Callable[[], None] | None = None,
) -> Drawn:
    """One picture, told step by step; however many of its steps the host tells, all are counted."""
    told = 0

    def follow() -> None:
        nonlocal told
        units = 1 if told < steps else 0
        told += units
        meter.advance(units, f"Drawing {place}")
        if on_step is not None:
            on_step()

    meter.advance(0, f"Drawing {place}")
    drawn = pen.draw(picture, follow)
    meter.advance(steps - told, f"Drew {place}")
    return drawn


def _row_of(plan: Plan, picture: Picture) -> str:
    return next(row.label.title for row in plan.rows if row.loras == picture.loras)


def _sheet(
    plan: Plan, pictures: Mapping[Place, Drawn], pen: Pen, stopped: str
) -> tuple[Image, str, Path | None, str]:
    """The sheet, its infotext, where it was saved, and why something is missing."""
    grid = labelled_grid(
        [row.label for row in plan.rows],
        plan.prompts,
        [f"seed {seed}" for seed in plan.seeds],
        {place: drawn.image for place, drawn in pictures.items()},
        pen.font,
    )
    last = pictures[max(pictures)]
    rows = "; ".join(row.label.title for row in plan.rows)
    seeds = ", ".join(map(str, plan.seeds))
    infotext = f'{last.infotext}, ZipLoRA rows: "{rows}", ZipLoRA seeds: "{seeds}"'
    grid.info["parameters"] = infotext
    try:
        return grid, infotext, pen.keep(grid, infotext), stopped
    except ZipLoraError as error:
        return grid, infotext, None, stopped or str(error)


def _rows(saved: SavedMerge, sources: Sequence[str], merged: str) -> tuple[Row, ...]:
    """Each LoRA alone, all of them as the plain sum, the merge."""
    weighted = [(name, lora.weight) for name, lora in zip(sources, saved.loras, strict=True)]
    names = labels([lora.role for lora in saved.loras])
    alone = [
        Row(Label(f"{label} alone", _named(name, weight)), ((name, weight),))
        for label, (name, weight) in zip(names, weighted, strict=True)
    ]
    total = Row(Label("plain sum", " + ".join(_named(*one) for one in weighted)), tuple(weighted))
    return (*alone, total, Row(Label("merged", Path(merged).stem), ((merged, 1.0),)))


def _named(name: str, weight: float) -> str:
    return Path(name).stem + ("" if weight == 1 else f" × {weight:g}")


def _own_prompts(saved: SavedMerge, host: Host) -> tuple[Label, ...]:
    """The prompts that the merge itself was made with; none twice."""
    prompts = prompts_of(saved, host)
    names = [f"{label} prompt" for label in labels([lora.role for lora in saved.loras])]
    names.append("both together" if len(saved.loras) == 2 else "all together")
    found: dict[str, Label] = {}
    for name, prompt in zip(names, (*prompts, together(saved, prompts)), strict=True):
        words = untagged(prompt)
        if words:
            found.setdefault(words, Label(name, words))
    return tuple(found.values())


def _as_installed(file: Path, host: Host) -> str:
    """The name of an installed LoRA's file; the path of another file."""
    installed = {lora.path.resolve(): lora.name for lora in host.loras()}
    return installed.get(file.resolve(), str(file))


def _drawing_host(host: Host) -> Draws:
    """The host as one that draws; HostError when it can't."""
    if not isinstance(host, Draws):
        raise HostError("Pictures can't be compared here: this host does not draw.")
    return host
