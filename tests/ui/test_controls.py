"""What a handler returns reaches every control it names, in every gradio."""

from __future__ import annotations

from typing import Any

import gradio as gr

from lib_ziplora.ui.controls import Controls


def test_an_update_for_two_controls_is_given_to_each_as_its_own() -> None:
    """gradio 4 empties an update as it reads it, so that the second control would get nothing."""
    controls, given = Controls(), []
    shared = gr.update(choices=["a merge"], value="a merge")

    def event(run: Any, *_: Any, **__: Any) -> None:
        given.extend(run())

    with gr.Blocks():
        for name in ("one", "two"):
            controls.add(gr.Dropdown, name)
        controls.on(event, lambda _: {"one": shared, "two": shared}, outputs=("one", "two"))
    given[0].clear()
    assert given[1]["choices"] == ["a merge"] and shared["value"] == "a merge"
