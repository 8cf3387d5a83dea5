"""The WebUI draws: the contract, that it is the txt2img tab's picture, and what stays as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from lib_ziplora.errors import HostError, Interrupted
from lib_ziplora.hosts import Picture, Sampler
from lib_ziplora.hosts.a1111 import A1111Host

from . import a1111_webui as webui
from .contract_draws import PLAIN, DrawsContract, nothing, pixels, quick

pytestmark = webui.marks

NAMES = ("drawn one", "drawn two")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    opts = webui.boot().opts
    wanted = {"samples_save": True, "grid_save": True, "samples_format": "png", "grid_format": "png"}
    wanted |= {
        "outdir_samples": str(tmp_path / "s"),
        "outdir_grids": str(tmp_path / "g"),
        "save_to_dirs": False,
    }
    for name, value in wanted.items():
        monkeypatch.setitem(opts.data, name, value)
    return tmp_path


@pytest.fixture
def host(folder: Path) -> Iterator[A1111Host]:
    loras = Path(webui.boot().cmd_opts.lora_dir)
    for seed, name in enumerate(NAMES):
        if not (loras / f"{name}.safetensors").is_file():
            webui.write_lora(name, seed)
    with webui.cleaned():
        yield A1111Host()


class TestA1111Draws(DrawsContract):
    @pytest.fixture
    def host(self, host: A1111Host) -> A1111Host:
        return host

    @pytest.fixture
    def parts(self, host: A1111Host) -> list[nn.Module]:
        webui.use_loras()
        model = webui.boot().sd_model
        return [model.model.diffusion_model, model.first_stage_model, model.conditioner]

    @pytest.fixture
    def names(self, host: A1111Host) -> Sequence[str]:
        return NAMES

    @pytest.fixture
    def folder(self, folder: Path) -> Path:
        return folder


def drawn(host: A1111Host, picture: Picture, sampler: Sampler) -> Any:
    with host.exclusive(), host.drawing(sampler, 1) as pen:
        return pen.draw(picture, nothing)


def test_it_is_the_picture_that_the_tag_draws_in_the_txt2img_tab(host: A1111Host) -> None:
    like = Sampler("Euler", 3, 3.5, 128, 128)
    found = drawn(host, Picture("a cat", ((NAMES[0], 0.5),), 1), like)
    expected = webui.picture(f"a cat <lora:{NAMES[0]}:0.5>")
    assert np.array_equal(pixels(found), expected.astype(np.int16))


def test_everything_around_the_model_is_what_it_was(host: A1111Host) -> None:
    webui.picture(f"a cat <lora:{NAMES[1]}:1>")
    before = webui.surroundings()
    drawn(host, Picture("a dog", ((NAMES[0], 1.0),), 1), quick())
    after = webui.surroundings()
    assert [name for name in before if before[name] != after[name]] == ["state"]  # it had a job since


def test_a_users_picture_is_the_same_before_and_after(host: A1111Host) -> None:
    prompt = f"a cat <lora:{NAMES[1]}:1>"
    before = webui.picture(prompt)
    drawn(host, Picture("a dog", ((NAMES[0], 1.0),), 1), quick())
    assert np.array_equal(webui.picture(prompt, keep_caches=True), before)


def test_the_default_network_takes_no_part(host: A1111Host, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pixels(drawn(host, PLAIN, quick()))
    monkeypatch.setitem(webui.boot().opts.data, "sd_lora", NAMES[0])
    found = drawn(host, PLAIN, quick())
    assert np.array_equal(pixels(found), plain) and webui.boot().opts.sd_lora == NAMES[0]


def test_the_prompt_history_stays(host: A1111Host, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(webui.module("modules.paths").data_path) / "params.txt"
    kept = file.read_bytes() if file.is_file() else None
    monkeypatch.setattr(webui.boot().cmd_opts, "no_prompt_history", False)
    try:
        for before in (b"the user's last prompt", None):
            file.unlink(missing_ok=True) if before is None else file.write_bytes(before)
            drawn(host, PLAIN, quick())
            assert (file.read_bytes() if file.is_file() else None) == before
    finally:
        file.unlink(missing_ok=True) if kept is None else file.write_bytes(kept)


def test_interrupt_ends_it_and_no_half_picture_is_given(host: A1111Host) -> None:
    def stop_if_asked() -> None:
        if host.interrupted():
            raise Interrupted("enough")

    with pytest.raises(Interrupted), host.exclusive(), host.drawing(quick(), 2) as pen:
        host.interrupt()
        pen.draw(PLAIN, stop_if_asked)


def test_the_webuis_bar_counts_the_pictures(host: A1111Host, monkeypatch: pytest.MonkeyPatch) -> None:
    processing, state = webui.module("modules.processing"), webui.boot().state
    original, seen = processing.process_images, []

    def watched(p: Any) -> Any:
        seen.append((state.job_no, state.job_count))
        return original(p)

    monkeypatch.setattr(processing, "process_images", watched)
    with host.exclusive(), host.drawing(quick(), 3) as pen:
        for _ in range(2):
            pen.draw(PLAIN, nothing)
    assert seen == [(0, 3), (1, 3)]


def test_a_lora_that_the_webui_can_not_load_is_named(host: A1111Host) -> None:
    broken = Path(webui.boot().cmd_opts.lora_dir) / "broken one.safetensors"
    broken.write_bytes(b"nothing")
    webui.module("networks").list_available_networks()
    try:
        with pytest.raises(HostError, match="could not load the LoRA broken one"):
            drawn(host, Picture("a cat", (("broken one", 1.0),), 1), quick())
    finally:
        broken.unlink()
        webui.module("networks").list_available_networks()


def test_settings_that_save_nothing_are_kept(host: A1111Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("samples_save", "grid_save"):
        monkeypatch.setitem(webui.boot().opts.data, name, False)
    with host.exclusive(), host.drawing(quick(), 1) as pen:
        found = pen.draw(PLAIN, nothing)
        assert found.file is None and pen.keep(found.image, "x") is None
        assert pen.font is not None and pen.font.is_file()


def test_the_defaults_are_what_the_user_has_saved_for_the_txt2img_tab(
    host: A1111Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "ui-config.json"
    monkeypatch.setattr(webui.boot().cmd_opts, "ui_config_file", str(file))
    assert host.default_sampler() == Sampler()
    size = {"txt2img/Width/value": 512, "txt2img/Height/value": 512}
    name = "customscript/sampler.py/txt2img/Sampling method/value"
    file.write_text(json.dumps({**size, "txt2img/CFG Scale/value": 5, name: "no such"}))
    assert host.default_sampler() == Sampler(guidance_scale=5.0)
    size["txt2img/Width/value"] = 832
    file.write_text(json.dumps({**size, name: host.samplers()[-1]}))
    assert host.default_sampler() == Sampler(host.samplers()[-1], width=832, height=512)
    file.write_text("damaged")
    assert host.default_sampler() == Sampler()
