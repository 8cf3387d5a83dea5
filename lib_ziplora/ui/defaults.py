"""The settings' defaults on the WebUI's own settings page.

The page is the only place for them: the tab's controls stay out of ``ui-config.json``, whose stored
values would win over it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from ..config import setting_defaults, setting_fields, settings_from
from ..errors import ConfigError, OutputError
from ..names import validate_output
from .controls import control_of
from .forms import RANDOM_SEED

log = logging.getLogger(__name__)

SECTION = ("ziplora", "ZipLoRA")
FOLDER = "merges_folder"
NOTE = "What the ZipLoRA tab begins with. Changes take effect after Reload UI."


def option_key(name: str) -> str:
    """The key of a setting's default in the WebUI's ``config.json``."""
    return f"ziplora_{name}"


def register(options: Any, option_info: Callable[..., Any]) -> None:
    """Put every setting's default on the settings page.

    Args:
        options: the WebUI's ``shared.opts``.
        option_info: its ``shared.OptionInfo``.
    """
    defaults = setting_defaults()
    html = partial(gr.HTML, elem_classes=["settings-info"])  # arguments must be those of an update too
    note = option_info(NOTE, "", html, section=SECTION)
    note.do_not_save = True
    options.add_option(option_key("note"), note)
    folder = option_info("", "Folder for merges", gr.Textbox, {}, section=SECTION)
    options.add_option(
        option_key(FOLDER), folder.info("A subfolder of the LoRA folder that suggested names begin with")
    )
    for name, option in setting_fields().items():
        component, arguments = control_of(name, option)
        info = option_info(defaults[name], option.label, component, arguments, section=SECTION)
        options.add_option(option_key(name), info.info(option.help))


def merges_folder(options: Any) -> str:
    """The folder that suggested names begin with; "" for none, or one that can't be used."""
    folder = str(getattr(options, option_key(FOLDER), "") or "").strip().strip("/\\")
    try:
        validate_output(f"{folder}/name" if folder else "name")
    except OutputError as error:
        log.warning("The folder for merges on the settings page is not used: %s", error)
        return ""
    return folder


def chosen(options: Any) -> dict[str, Any]:
    """Field name of ``MergeSettings`` -> the user's default; ours where there is none, or an impossible one.

    Args:
        options: the WebUI's ``shared.opts``, whose values are attributes.
    """
    found = setting_defaults()
    for name, default in setting_defaults().items():
        value = getattr(options, option_key(name), default)
        if name == "seed" and value == RANDOM_SEED:
            found[name] = RANDOM_SEED
            continue
        try:
            found[name] = getattr(settings_from({name: value}), name)
        except ConfigError as error:
            log.warning("The default on the settings page is not used: %s", error)
    found["auto_balance"] &= found["balance"] > 0  # a default of 0 stems from before there was a switch
    return found
