"""The WebUI's way in: registers the tab, the settings' defaults and the API. Everything else is in ``lib_ziplora``.

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
from lib_ziplora.ui.handlers import Desk

desks: list[Desk] = []
services: list[Service] = []


def on_ui_settings() -> None:
    defaults.register(shared.opts, shared.OptionInfo)


def on_ui_tabs() -> list[tuple[object, str, str]]:
    try:
        host = detect()
    except HostError as error:
        return [(tab.refusal(str(error)), "ZipLoRA", "ziplora")]
    desk = Desk(host)
    desks.append(desk)
    return [(tab.build(host, desk, defaults.chosen(shared.opts)), "ZipLoRA", "ziplora")]


def on_app_started(_page: object, app: object) -> None:
    try:
        service = Service(detect())
    except HostError:
        return  # the tab says why
    services.append(service)
    api.add_webui_routes(app, service)


def on_script_unloaded() -> None:
    for desk in desks:
        desk.interrupt_running()
    for service in services:
        service.stop()


script_callbacks.on_ui_settings(on_ui_settings)
script_callbacks.on_ui_tabs(on_ui_tabs)
script_callbacks.on_app_started(on_app_started)
script_callbacks.on_script_unloaded(on_script_unloaded)
