"""The panel that merges several subjects with several styles, and draws one sheet of them all."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from ..config import LoraInput, Role, setting_fields, settings_from
from ..errors import Interrupted, ZipLoraError
from ..hosts import Draws
from ..library.card import with_card
from ..pictures.matrix_sheet import DRAWABLE, Sheet, draw_sheet
from ..pipeline.matrix import NAMES, Cell, MatrixRequest, prepare_matrix, require_ready, run_matrix
from ..plots import counted
from . import text
from .compat import quiet, unsaved
from .handlers import Desk
from .pickers import Controls
from .tasks import Follow, Outcome

MATRIX_VALUES = (
    "matrix_subjects",
    "matrix_styles",
    "matrix_names",
    "matrix_overwrite",
    "matrix_sheet",
    "report",
    "subject_weight",
    "style_weight",
    *setting_fields(),
)
"""The values that the panel sends, those of the form among them."""
PROMPT_SIGN = "|"
IF_INTERRUPTED = "Stopping, the merges that are finished stay"
WORDS = {
    "ready": "can be merged",
    "exists": "exists, left out",
    "refused": "can't be merged",
    "done": "done",
    "failed": "failed",
    "interrupted": "interrupted",
    "left": "not begun",
}
BAD = ("refused", "failed")
SHEET_WIDTH, QUALITY = 1600, 85


def matrix_panel(desk: Desk) -> Controls:
    """Lists of subjects and styles, the names of the merges, and the buttons."""
    made: Controls = {}
    with gr.Accordion("Matrix", open=False, elem_id="ziplora_matrix"):
        gr.HTML(
            '<div class="ziplora-facts">Merges every subject with every style, one after the other, with the '
            "settings and weights of the form. One that fails doesn't stop the others.</div>"
        )
        for role in ("subject", "style"):
            made |= _list(role)
        made["matrix_names"] = unsaved(
            gr.Textbox(
                NAMES,
                label="Names of the merges",
                info="{subject} and {style} stand for the names of the LoRAs",
                max_lines=1,
                elem_id="ziplora_matrix_names",
            )
        )
        made["matrix_overwrite"] = unsaved(
            gr.Checkbox(
                False,
                label="Replace merges that exist; otherwise they are left out",
                elem_id="ziplora_matrix_overwrite",
            )
        )
        made["matrix_sheet"] = unsaved(
            gr.Checkbox(
                False,
                label="Draw a sheet with a picture of every merge",
                elem_id="ziplora_matrix_sheet",
                visible=isinstance(desk.host, Draws),
            )
        )
        with gr.Row(elem_classes=["ziplora-buttons"]):
            made["matrix_run"] = unsaved(
                gr.Button("Merge all pairs", variant="primary", elem_id="ziplora_matrix_run")
            )
            made["matrix_check"] = unsaved(gr.Button("Check the pairs", elem_id="ziplora_matrix_check"))
        made["matrix_plan"] = gr.HTML("", elem_id="ziplora_matrix_plan")
    return made


def _list(role: str) -> Controls:
    names = unsaved(
        gr.Textbox(
            label=f"Matrix: {role}s",
            info="One LoRA in a line; its prompt may follow behind a |, else its activation text is taken",
            lines=3,
            max_lines=12,
            elem_id=f"ziplora_matrix_{role}s",
        )
    )
    add = unsaved(gr.Button(f"Add the {role} picked above", size="sm", elem_id=f"ziplora_matrix_add_{role}"))
    return {f"matrix_{role}s": names, f"matrix_add_{role}": add}


def matrix_events(desk: Desk, controls: Controls) -> None:
    """Picked LoRAs are added to the lists; the pairs are looked at before they are merged."""
    for role in ("subject", "style"):
        names = controls[f"matrix_{role}s"]
        picked = [controls[role], controls[f"{role}_prompt"]]
        controls[f"matrix_add_{role}"].click(added, [names, *picked], names, **quiet())
    values = [controls[name] for name in MATRIX_VALUES]
    controls["matrix_check"].click(
        lambda *given: looked_at(desk, given), values, controls["matrix_plan"], **quiet()
    )


def added(lines: str | None, name: str | None, prompt: str | None) -> str:
    """The lines of a list with one more LoRA; one that is there already gets the new prompt."""
    rows = [row for row in (lines or "").splitlines() if row.strip()]
    if not name:
        return "\n".join(rows)
    kept = [row for row in rows if row.partition(PROMPT_SIGN)[0].strip() != name]
    words = " ".join((prompt or "").split())
    return "\n".join([*kept, f"{name} {PROMPT_SIGN} {words}" if words else name])


def matrix_from(values: Sequence[Any]) -> MatrixRequest:
    """The matrix that the panel's values, in the order of ``MATRIX_VALUES``, ask for.

    The form's prompt for both together belongs to the pair that is picked there and is left out.

    Raises:
        ConfigError: no subject or style, or a value outside its range.
    """
    given = dict(zip(MATRIX_VALUES, values, strict=True))
    settings = {name: given[name] for name in setting_fields() if given[name] is not None}
    return MatrixRequest(
        subjects=_loras(given["matrix_subjects"], "subject", given["subject_weight"]),
        styles=_loras(given["matrix_styles"], "style", given["style_weight"]),
        names=str(given["matrix_names"] or "").strip() or NAMES,
        overwrite=bool(given["matrix_overwrite"]),
        settings=dataclasses.replace(settings_from(settings), combined_prompt=""),
        report=bool(given["report"]),
    )


def _loras(lines: str | None, role: Role, weight: float | None) -> tuple[LoraInput, ...]:
    found = []
    for line in (lines or "").splitlines():
        name, _, prompt = line.partition(PROMPT_SIGN)
        if name.strip():
            strength = 1.0 if weight is None else float(weight)
            found.append(LoraInput(name.strip(), prompt.strip(), strength, role=role))
    return tuple(found)


def looked_at(desk: Desk, values: Sequence[Any]) -> str:
    """A box with every pair and what speaks against it."""
    try:
        cells = prepare_matrix(matrix_from(values), desk.host).cells
    except ZipLoraError as error:
        return text.error(str(error))
    ready = sum(cell.state == "ready" for cell in cells)
    return (
        f'<div class="ziplora-box" role="status" data-matrix="plan"><p>{ready} of {len(cells)} pairs can be '
        f"merged.</p>{table(cells)}</div>"
    )


def admit_matrix(desk: Desk, values: Sequence[Any]) -> tuple[str, str]:
    """``admit`` the matrix that the panel's values ask for."""
    return desk.admit(lambda: require_ready(prepare_matrix(matrix_from(values), desk.host)), IF_INTERRUPTED)


def work_matrix(desk: Desk, ticket: str, values: Sequence[Any]) -> Outcome:
    """``perform`` the matrix that the panel's values ask for, and its sheet."""
    wants_sheet = bool(dict(zip(MATRIX_VALUES, values, strict=True))["matrix_sheet"])

    def note(cell: Cell) -> None:
        if cell.report is not None:
            desk.note(cell.request, cell.report)

    def run(follow: Follow) -> Outcome:
        prepared = prepare_matrix(matrix_from(values), desk.host)
        cells = run_matrix(
            prepared, desk.host, follow, note, lambda _request, report: with_card(report, desk.host)
        )
        desk.shelf.forget()
        sheet, remark = _sheet(desk, cells, follow) if wants_sheet else (None, "")
        return Outcome(result(cells, sheet, remark))

    return desk.perform(ticket, run)


def _sheet(desk: Desk, cells: Sequence[Cell], follow: Follow) -> tuple[Sheet | None, str]:
    """The sheet, or why there is none; what was merged stays in either case."""
    if desk.host.interrupted() or not any(cell.state in DRAWABLE for cell in cells):
        return None, ""

    try:
        return draw_sheet(cells, desk.host, on_event=follow), ""
    except Interrupted as stop:
        return None, str(stop)
    except ZipLoraError as error:
        return None, f"The sheet was not drawn: {error}"


def result(cells: Sequence[Cell], sheet: Sheet | None, remark: str = "") -> str:
    """A box with how every pair has ended, and the sheet."""
    done = sum(cell.state == "done" for cell in cells)
    failed = sum(cell.state in BAD for cell in cells)
    outcome = "done" if done else "error" if failed else "interrupted"
    kind = "ziplora-done" if done and not failed else "ziplora-error" if failed and not done else ""
    seconds = sum(cell.seconds for cell in cells)
    remarks = [*(sheet.remarks if sheet else ()), *([remark] if remark else [])]
    return (
        f'<div class="ziplora-box {kind}" role="status" data-outcome="{outcome}" data-matrix="result">'
        f"<p><b>{done} of {len(cells)} pairs merged</b> in {escape(text.duration(seconds))}.</p>"
        f"{table(cells)}{text.listed(remarks, 'ziplora-warnings')}{_picture(sheet)}</div>"
    )


def table(cells: Sequence[Cell]) -> str:
    """A row for every pair: its LoRAs, its name, its state, and why."""
    rows = "".join(
        f'<tr data-state="{cell.state}"><td>{_name(cell.subject)}</td><td>{_name(cell.style)}</td>'
        f"<td>{_name(cell.request.output)}</td>"
        f"<td{' class=ziplora-bad' if cell.state in BAD else ''}>{_told(cell)}</td></tr>"
        for cell in cells
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("subject", "style", "name", "result"))
    return (
        f'<div class="ziplora-pairs"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _name(name: str) -> str:
    """A name whose lines break between its parts."""
    return escape(name).replace("_", "_<wbr>")


def _told(cell: Cell) -> str:
    words = WORDS[cell.state]
    if cell.state == "done":
        words += f", {text.duration(cell.seconds)}"
    elif cell.sentence and cell.state != "exists":
        words += f": {cell.sentence}"
    warnings = cell.report.warnings if cell.report else ()
    return escape(words) + text.listed(warnings, "ziplora-warnings")


def _picture(sheet: Sheet | None) -> str:
    if sheet is None:
        return ""
    image = sheet.image.copy()
    image.thumbnail((SHEET_WIDTH, 4 * SHEET_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    content = base64.b64encode(buffer.getvalue()).decode()
    path = f'<p class="ziplora-path">{escape(str(sheet.file))}</p>' if sheet.file else ""
    words = f"Pictures of {counted(sheet.pictures, 'merge')}: a row for each subject, a column for each style"
    return f'<img class="ziplora-sheet" src="data:image/jpeg;base64,{content}" alt="{escape(words)}">{path}'
