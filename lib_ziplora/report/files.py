"""The report beside a merged LoRA: ``<name>.report.html`` for people, ``<name>.report.json`` for programs.

``<name>.json`` and ``<name>.html`` are left alone: WebUIs keep a LoRA's card in the first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

from ..errors import OutputError
from ..lora.io.atomic import atomic_text
from .document import GENERATOR, Document, document_of
from .html import page
from .report import MergeReport, failure
from .saved import LORA_ENDING, SavedMerge

INFIX = ".report"
HEAD = 1024
"""Bytes at the beginning of a report within which its generator is named."""


def report_paths(lora: Path) -> tuple[Path, Path]:
    """The page and the JSON file that belong to a LoRA file."""
    return lora.with_name(f"{lora.stem}{INFIX}.html"), lora.with_name(f"{lora.stem}{INFIX}.json")


def reported(report: MergeReport, saved: SavedMerge, lora: Path, wanted: bool) -> MergeReport:
    """Write the report of a merge that is on the disk; whatever goes wrong, the merge stays.

    Args:
        report: how the merge went.
        saved: what it was made with.
        lora: its file.
        wanted: without it, a report that an older merge of this name has left is taken away.

    Returns:
        The same with the names of the files, or with a warning that says why there are none.
    """
    if not wanted:
        _remove(lora)
        return report
    paths = report_paths(lora)
    done = dataclasses.replace(report, report_files=tuple(path.name for path in paths))
    problem = failure(lambda: write_report(document_of(done, saved), lora))
    return report.warned(f"The LoRA is written, but its report is not: {problem}") if problem else done


def write_report(document: Document, lora: Path) -> None:
    """Write both files, each whole or not at all; reports of older merges are replaced.

    Raises:
        OutputError: one can't be written, or the name belongs to something else.
    """
    web, data = report_paths(lora)
    named_like_it = data.with_suffix(LORA_ENDING)
    if named_like_it.exists():
        raise OutputError(
            f"{data.name} would be taken for the card of {named_like_it.name}. Rename that LoRA, or merge under "
            "another name."
        )
    for path in (web, data):
        if os.path.lexists(path) and not is_report(path):
            raise OutputError(f"{path.name} exists already and is no report of ZipLoRA. Move it away.")
    text = json.dumps(document.to_json(), indent=2, allow_nan=False)
    for path, content in ((web, page(document)), (data, f"{text}\n")):
        atomic_text(path, content, overwrite=True)


def is_report(path: Path) -> bool:
    """Whether a file was written by ``write_report``."""
    try:
        with path.open("rb") as stream:
            return GENERATOR.encode() in stream.read(HEAD)
    except OSError:
        return False


def _remove(lora: Path) -> None:
    for path in report_paths(lora):
        if is_report(path):
            with contextlib.suppress(OSError):
                path.unlink()
