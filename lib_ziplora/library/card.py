"""The card of a merged LoRA in the WebUI's LoRA pane: activation text, description and preview picture.

The WebUI keeps what a user writes on a card in ``<stem>.json`` and shows ``<stem>.png`` or
``<stem>.preview.png``. Whatever there is not from here stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import labels
from ..errors import OutputError
from ..hosts import Drawn, Host, ShowsCards
from ..hosts.cards import user_metadata
from ..lora.io.atomic import atomic_text, atomic_write
from ..lora.io.sidecar import sidecar_path
from ..report.report import MergeReport, failure
from ..report.saved import SavedMerge, merged_file, read_saved, saved_path
from ..training.images import save_png
from .merge_prompts import prompts_of, together

OWN = "ziplora card"
"""Key of the card's file under which those values are kept that were written from here."""
MADE_BY = "ZipLoRA"
"""Text ``Software`` in a preview picture that was written from here."""
PREVIEW_ENDINGS = ("png", "jpg", "jpeg", "webp", "gif", "avif", "jxl")
UNWRITTEN = ("", 0, None)
"""Values of a card that nobody has chosen."""


def with_card(report: MergeReport, host: Host) -> MergeReport:
    """Write the card of a merge that is on the disk; whatever goes wrong, the merge stays.

    Returns:
        The report, with a warning where there is no card.
    """
    problem = failure(lambda: _write(sidecar_path(Path(report.output)), host))
    return report.warned(f"The LoRA is written, but its card is not: {problem}") if problem else report


def card_path(lora: Path) -> Path:
    """The file of a LoRA's card."""
    return lora.with_suffix(".json")


def own_card(file: Path) -> bool:
    """Whether a card was written from here, whoever has written on it since."""
    return OWN in user_metadata(file)


def write_card(merged: str, host: Host) -> Path:
    """Fill in what the user has not written himself on the card of a merge.

    Args:
        merged: the merged LoRA's name.
        host: where it is installed.

    Returns:
        The card's file.

    Raises:
        LoraFileError: there is no such merge.
        OutputError: the card can't be read or written; it is left as it was.
    """
    return _write(saved_path(merged, host), host)


def _write(path: Path, host: Host) -> Path:
    """The card of a merge whose coefficients are in ``path``."""
    file = card_path(merged_file(path))
    current = _read(file)
    card = filled(current, card_of(read_saved(path), host))
    if card != current:
        text = json.dumps(card, indent=4, ensure_ascii=False) + "\n"
        atomic_text(file, text, overwrite=True)
    return file


def card_of(saved: SavedMerge, host: Host) -> dict[str, Any]:
    """What stands on the card of a merge: keys and values as in the WebUI's file."""
    names = [source.name for source in saved.sources]
    roles = labels([lora.role for lora in saved.loras])
    parts = [f"{name} ({role})" for name, role in zip(names, roles, strict=True)]
    prompts = prompts_of(saved, host)
    settings = saved.settings
    notes = [f"Merged with ZipLoRA, method {settings.method}, rank {settings.rank}."]
    notes += [f"Checkpoint: {saved.checkpoint.name}."] if saved.checkpoint.name else []
    notes += [
        f"{name}: weight {lora.weight:g}, prompt: {prompt}" if prompt else f"{name}: weight {lora.weight:g}"
        for name, lora, prompt in zip(names, saved.loras, prompts, strict=True)
    ]
    return {
        "description": f"ZipLoRA merge of {' and '.join(parts)}",
        "sd version": "SDXL",
        "activation text": together(saved, prompts),
        "preferred weight": 1.0,
        "notes": "\n".join(notes),
    }


def filled(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The card with the wanted values where nobody has written others.

    Args:
        current: what is in the file; values under ``OWN`` are those that an earlier merge of this
            name has left, which may go.
        wanted: key -> value.
    """
    own = current.get(OWN)
    left = own if isinstance(own, dict) else {}
    written = {
        key: value
        for key, value in wanted.items()
        if _unchosen(current.get(key)) or (key in left and current.get(key) == left[key])
    }
    return {**current, **written, OWN: written}


def _unchosen(value: Any) -> bool:
    return any(value == empty for empty in UNWRITTEN) and value is not False


def _read(file: Path) -> dict[str, Any]:
    """What is on a card; empty when there is none.

    Raises:
        OutputError: it is no card.
    """
    advice = f"It was left as it is. Correct {file.name} or remove it."
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"The card {file.name} can't be read ({error}). {advice}") from error
    if not isinstance(data, dict):
        raise OutputError(f"The card {file.name} holds no JSON object. {advice}")
    return data


def write_preview(merged: str, host: Host, drawn: Drawn, replace: bool = False) -> Path:
    """Make a picture the preview of a merge's card.

    Args:
        merged: the merged LoRA's name.
        host: where it is installed.
        drawn: the picture.
        replace: also where the user has a picture of his own there.

    Returns:
        The picture's file.

    Raises:
        OutputError: the user has a picture of his own there, or it can't be written.
        LoraFileError: there is no such merge.
    """
    lora = merged_file(saved_path(merged, host))
    target = _preview_target(lora, replace)
    with atomic_write(target, overwrite=True) as temporary:
        save_png(drawn.image, {"parameters": drawn.infotext, "Software": MADE_BY}, temporary)
    if isinstance(host, ShowsCards):
        host.card_changed(target)
    return target


def _preview_target(lora: Path, replace: bool) -> Path:
    """The file that the preview goes into.

    Raises:
        OutputError: a picture of the user's is in the way.
    """
    stem = lora.name.removesuffix(lora.suffix)
    foreign = [file for file in previews(lora) if not own_preview(file)]
    target = lora.with_name(f"{stem}.preview.png")
    if not foreign:
        return target
    if replace and len(foreign) == 1 and foreign[0].suffix == ".png":
        return foreign[0]
    if replace:
        names = ", ".join(file.name for file in foreign)
        raise OutputError(
            f"{stem} has pictures that can't be replaced by a PNG ({names}). Remove them first."
        )
    raise OutputError(
        f"{foreign[0].name} is a picture of your own and was left as it is. Allow it to be replaced, or remove it."
    )


def previews(lora: Path) -> list[Path]:
    """The pictures that the WebUI takes for a LoRA's preview."""
    stem = lora.name.removesuffix(lora.suffix)
    named = (lora.with_name(f"{stem}{part}.{end}") for end in PREVIEW_ENDINGS for part in ("", ".preview"))
    return [file for file in named if file.is_file()]


def own_preview(file: Path) -> bool:
    """Whether a picture was written from here."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return bool(image.info.get("Software") == MADE_BY)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError):
        return False
