"""``matrix``: every subject merged with every style."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ..config import ROLES, LoraInput, setting_defaults, settings_from
from ..errors import ConfigError, OutputError, ZipLoraError
from ..library.card import with_card
from ..library.json_store import data_folder
from ..library.timing import Pace
from ..pictures.matrix_sheet import draw_sheet
from ..pipeline.matrix import NAMES, Cell, Finish, MatrixRequest, check_matrix, plan, run_matrix
from .requests import inputs_of
from .terminal import ProgressBar, ctrl_c_interrupts

DESCRIPTION = """\
Merge every subject with every style, one after the other, with the same settings. One that
fails doesn't stop the others; merges that exist already are left out, unless --force. Ctrl+C
stops; what is finished stays.
"""
EPILOG = """\
example:

  python -m lib_ziplora matrix --checkpoint sd_xl_base_1.0/ --lora-dir loras/ \\
      --subject dog --subject cat --style ink --style clay -o "{subject}_{style}" --sheet pets.png

prompts and weights belong to the subjects and styles in their order; without a prompt the
LoRA's own metadata is asked. without --combined-prompt each pair gets one of its own, made of
its two prompts.

exit codes: 0 done; 1 some pairs could not be merged; 2 wrong command; 130 interrupted.
"""
FAILED, INTERRUPTED = 1, 130


def add_output(one: argparse.ArgumentParser) -> None:
    """What the merges are called, and what is written beside them."""
    one.add_argument(
        "-o",
        "--output",
        default=NAMES,
        metavar="NAMES",
        help="names for the first --lora-dir, or files; {subject} and {style} stand for the LoRAs' names "
        "(default %(default)s)",
    )
    one.add_argument("--force", action="store_true", help="replace merges that exist already")
    one.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw every merge, all on one sheet")
    one.add_argument("--report", type=Path, metavar="FILE.json", help="write how every pair has ended")


def matrix_from(args: argparse.Namespace) -> MatrixRequest:
    """The matrix that the arguments ask for.

    Raises:
        ConfigError: a value outside its range, no subject or no style, or more prompts than LoRAs.
    """
    loras: dict[str, tuple[LoraInput, ...]] = {role: tuple(inputs_of(args, role)) for role in ROLES}
    settings = settings_from({name: getattr(args, name) for name in setting_defaults()})
    if args.sheet and args.sheet.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(f"The sheet {args.sheet} needs a name that ends in .png, .jpg or .webp.")
    return MatrixRequest(
        loras["subject"], loras["style"], args.output, args.force, settings, args.report_beside
    )


def run(args: argparse.Namespace, host: Any) -> int:
    """Merge every pair and print how each has ended."""
    matrix: MatrixRequest = args.request
    bar = ProgressBar()
    try:
        with host.exclusive(), ctrl_c_interrupts(host):
            check_matrix(matrix, host)
            for cell in plan(matrix, host):
                if cell.state == "refused":
                    print(f"warning: {cell.request.output}: {cell.sentence}", file=sys.stderr)
            cells = run_matrix(matrix, host, bar, partial(_note, host), _finish(args.card))
            stopped = host.interrupted()
            if args.sheet and not stopped:
                _draw(args.sheet, cells, host, bar)
    finally:
        bar.close()
    for cell in cells:
        print(_line(cell))
    if args.report:
        _write_report(args.report, cells)
    if stopped:
        return INTERRUPTED
    return FAILED if any(cell.state in ("refused", "failed") for cell in cells) else 0


def _note(host: Any, cell: Cell) -> None:
    """Remember how long a merge took."""
    if cell.report is not None:
        Pace(data_folder(host)).note(cell.request, cell.report)


def _finish(card: bool) -> Finish:
    """What is done with a merge that is written."""
    return with_card if card else lambda report, _host: report


def _line(cell: Cell) -> str:
    told = f"{cell.seconds:.0f} s" if cell.state == "done" else cell.sentence
    warnings = "".join(f"\n  warning: {one}" for one in (cell.report.warnings if cell.report else ()))
    return f"{cell.request.output}: {cell.state}, {told}{warnings}"


def _draw(file: Path, cells: list[Cell], host: Any, bar: ProgressBar) -> None:
    """The sheet as a file; the merges stay, whatever becomes of it."""
    try:
        sheet = draw_sheet(cells, host, on_event=bar)
        if sheet is not None:
            sheet.image.save(file)
            for remark in sheet.remarks:
                print(f"warning: {remark}", file=sys.stderr)
    except (ZipLoraError, OSError, ValueError) as error:
        print(f"warning: The sheet {file} was not drawn: {error}", file=sys.stderr)


def _write_report(file: Path, cells: list[Cell]) -> None:
    try:
        file.write_text(json.dumps([cell.to_json() for cell in cells], indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"The report {file} can't be written ({error.strerror}).") from error
