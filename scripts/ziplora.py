"""The WebUI's entry point: registers the tab, the settings' defaults and the API of ``lib_ziplora``.

The package and all its parts are imported here, at load time: the WebUI takes the
extension's folder off ``sys.path`` once its scripts have run.
"""

from __future__ import annotations

from modules import script_callbacks, shared

from lib_ziplora import api
from lib_ziplora.errors import HostError
from lib_ziplora.hosts import detect
from lib_ziplora.jobs.service import Service
from lib_ziplora.ui import defaults, tab

services: list[Service] = []


def service() -> Service:
    """The one that the tab and the API share; HostError where there is no host for it."""
    if not services:
        services.append(Service(detect()))
    return services[0]


def on_ui_settings() -> None:
    defaults.register(shared.opts, shared.OptionInfo)


def on_ui_tabs() -> list[tuple[object, str, str]]:
    try:
        page = tab.build(service(), defaults.chosen(shared.opts), defaults.merges_folder(shared.opts))
    except HostError as error:
        page = tab.refusal(str(error))
    return [(page, "ZipLoRA", "ziplora")]


def on_app_started(_page: object, app: object) -> None:
    try:
        api.add_webui_routes(app, service())
    except HostError:
        return  # the tab says why


def on_script_unloaded() -> None:
    for running in services:
        running.stop()


script_callbacks.on_ui_settings(on_ui_settings)
script_callbacks.on_ui_tabs(on_ui_tabs)
script_callbacks.on_app_started(on_app_started)
script_callbacks.on_script_unloaded(on_script_unloaded)
