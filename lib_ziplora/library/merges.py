"""Installed merges: the LoRAs of each, and the files that belong to it, to be removed or renamed together."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import MergeSettings, Role, labels
from ..errors import LoraFileError, OutputError
from ..hosts import Host
from ..lora.io.atomic import atomic_writes
from ..lora.io.container import header_of
from ..lora.io.metadata import read_recipe, renamed
from ..lora.io.sidecar import sidecar_path
from ..lora.io.write import EXTENSION, check_output, copy_lora, make_folder
from ..report.files import is_report, report_paths
from ..report.saved import SavedMerge, merged_file, read_saved, saved_path
from .card import card_path, own_card, own_preview, previews


@dataclass(frozen=True)
class Steerable:
    """A merge that can be exported again.

    Attributes:
        name: the merged LoRA's.
        loras: the names of those that it was made of.
        roles: what each of them brings.
        settings: as they were used; ``rank`` and ``precision`` are what an export keeps.
        checkpoint: the name of what it was merged against; "" after a plain sum.
    """

    name: str
    loras: tuple[str, ...]
    roles: tuple[Role, ...]
    settings: MergeSettings
    checkpoint: str

    @property
    def labels(self) -> tuple[str, ...]:
        """What each LoRA is called, as in ``MergeRequest.labels``."""
        return labels(self.roles)


def steerables(host: Host) -> list[str]:
    """The names of the installed LoRAs that have coefficients beside them; no file is read."""
    return [lora.name for lora in host.loras() if sidecar_path(lora.path).is_file()]


def steerable(host: Host, name: str) -> Steerable:
    """What there is to steer in a merge.

    Raises:
        LoraFileError: there is no such LoRA, or its coefficients are missing or damaged.
    """
    path = saved_path(name, host)
    saved = read_saved(path)
    return Steerable(
        path.stem,
        tuple(source.name for source in saved.sources),
        tuple(lora.role for lora in saved.loras),
        saved.settings,
        saved.checkpoint.name,
    )


@dataclass(frozen=True)
class MergeFiles:
    """The files of a merge.

    Attributes:
        written: from here: parts, report, preview, card, the LoRA, last its coefficients.
        own: of the user's, which the WebUI shows with it: a card or previews.
    """

    written: tuple[Path, ...]
    own: tuple[Path, ...]

    @property
    def lora(self) -> Path:
        """The merged LoRA."""
        return self.written[-2]


def merge_files(host: Host, name: str) -> MergeFiles:
    """The files of a merge that was made here.

    Raises:
        LoraFileError: there is no such LoRA, or its coefficients, by which a merge is known, are missing or others'.
    """
    sidecar = saved_path(name, host)
    saved, lora = read_saved(sidecar), merged_file(sidecar)
    shown = {card_path(lora): own_card, **dict.fromkeys(previews(lora), own_preview)}
    reports = [path for path in report_paths(lora) if is_report(path)]
    from_here = [path for path, ours in shown.items() if path.is_file() and ours(path)]
    own = (path for path in shown if path.is_file() and path not in from_here)
    return MergeFiles((*_parts(lora, saved), *reports, *from_here, lora, sidecar), tuple(own))


def _parts(lora: Path, saved: SavedMerge) -> list[Path]:
    """The LoRAs that were written with a merge for each of its own: all that its header says, theirs says too."""
    recipe = _recipe(lora)
    roles = labels([one.role for one in saved.loras])
    named = [lora.with_name(f"{lora.stem}_{label.replace(' ', '')}{EXTENSION}") for label in roles]
    return [path for path in named if path.is_file() and recipe and _recipe(path).items() >= recipe.items()]


def _recipe(lora: Path) -> dict[str, object]:
    try:
        found = read_recipe(header_of(lora).metadata)
    except LoraFileError:
        return {}
    return {key: value for key, value in found.items() if key not in ("coefficients", "sources")}


def remove_merge(host: Host, name: str) -> MergeFiles:
    """Delete a merge and whatever was written with it; a card or a picture of the user's stays.

    The host's lock is the caller's business, as in ``run``.

    Raises:
        LoraFileError: it is no merge that was made here.
        OutputError: a file can't be deleted; those after it stay, and it can be tried again.
    """
    files = merge_files(host, name)
    _delete(files.written, host)
    return files


def rename_merge(host: Host, name: str, output: str) -> MergeFiles:
    """Give a merge, and whatever belongs to it, another name; a card and pictures of the user's go with it.

    The host's lock is the caller's business, as in ``run``.

    Args:
        host: where it is installed.
        name: of the merge.
        output: its new output name.

    Returns:
        The files under their new names.

    Raises:
        LoraFileError: it is no merge that was made here.
        OutputError: the name can't be used or is taken; all files are then as they were.
    """
    files, target = merge_files(host, name), host.output_path(output)
    check_output(target)
    make_folder(target)
    stem = files.lora.stem

    def moved(paths: Iterable[Path]) -> tuple[Path, ...]:
        return tuple(target.with_name(target.stem + path.name[len(stem) :]) for path in paths)

    new = MergeFiles(moved(files.written), moved(files.own))
    old = (*files.own, *files.written)
    with atomic_writes((*new.own, *new.written), overwrite=False) as temporaries:
        for path, place, temporary in zip(old, (*new.own, *new.written), temporaries, strict=True):
            if path.suffix == EXTENSION:
                copy_lora(
                    path, temporary, renamed(header_of(path).metadata, place.stem, new.written[-1].name)
                )
            else:
                shutil.copyfile(path, temporary)
    _delete(old, host)
    for path in new.written:
        if path.suffix == EXTENSION:
            host.refresh(path)
    return new


def _delete(paths: Sequence[Path], host: Host) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{path} can't be deleted ({error.strerror or error}).") from error
        if path.suffix == EXTENSION:
            host.refresh(path)
