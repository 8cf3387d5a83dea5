"""Whole merges in the WebUI: the written file works there, an interrupt and a swapped checkpoint leave no trace."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings, Role
from lib_ziplora.errors import HostError, Interrupted
from lib_ziplora.hosts import Progress
from lib_ziplora.hosts.a1111 import A1111Host
from lib_ziplora.jobs.service import Service
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.reexport import ReexportRequest

from . import a1111_webui as webui
from .test_a1111_model import predict

pytestmark = webui.marks
SUBJECT, STYLE = "minixl_subject_rocket", "minixl_style_streamline-cyber-color"


def request(output: str, subject: str = SUBJECT, style: str = STYLE, **settings: Any) -> MergeRequest:
    small = {"steps": 3, "sampling_steps": 3, "width": 64, "height": 64, **settings}
    inputs = LoraInput(subject, "a sks icon"), LoraInput(style, "a szn icon")
    return MergeRequest.pair(*inputs, output, settings=MergeSettings(**small))


@pytest.fixture
def host() -> Iterator[A1111Host]:
    webui.boot()
    with webui.cleaned():
        yield A1111Host()


@pytest.mark.parametrize("method", ["ziplora", "direct"])
def test_a_merge_can_be_drawn_at_once(host: A1111Host, method: str, caplog: pytest.LogCaptureFixture) -> None:
    webui.write_lora("with text a", 11)
    webui.write_lora("with text b", 12)
    prompt = "a sks icon in szn style"
    drawn = {n: webui.picture(f"{prompt} <lora:{n}:1>") for n in ("with text a", "with text b")}
    name = f"merged {method}"
    with host.exclusive():
        report = run(request(name, "with text a", "with text b", method=method), host)
    assert Path(report.output).parent == Path(webui.boot().cmd_opts.lora_dir)
    entry = webui.module("networks").available_networks[name]
    assert entry.sd_version.name == "SDXL" and entry.alias == name
    with safe_open(report.output, "pt") as file:
        layers = {key.split(".")[0] for key in file.keys()}  # noqa: SIM118
    webui.use_loras((name, 1.0, 1.0))
    with caplog.at_level(logging.DEBUG):
        matched = webui.module("networks").load_network(name, entry)
    assert len(matched.modules) == len(layers) and "didn't match" not in caplog.text
    webui.use_loras()
    merged = webui.picture(f"{prompt} <lora:{name}:1>")
    assert webui.module("networks").extra_network_lora.errors == {}
    assert all((merged != other).any() for other in drawn.values())


def test_a_renamed_merge_is_drawn_by_its_new_name_and_a_deleted_one_is_off_the_list(host: A1111Host) -> None:
    webui.write_lora("to rename a", 31)
    webui.write_lora("to rename b", 32)
    networks, folder = webui.module("networks"), Path(webui.boot().cmd_opts.lora_dir)
    service = Service(host)
    job = service.submit(
        request("merges/old name", "to rename a", "to rename b", method="direct"), background=False
    )
    with host.exclusive():
        service.run(job)
    others = set(networks.available_networks) - {"old name"}
    prompt = "a sks icon in szn style"
    drawn = webui.picture(f"{prompt} <lora:old name:1>")
    service.rename("old name", "merges/new name")
    assert set(networks.available_networks) == others | {"new name"}
    entry = networks.available_networks["new name"]
    assert (
        networks.available_network_aliases["new name"] is entry
        and "old name" not in networks.available_network_aliases
    )
    assert networks.available_network_hash_lookup[entry.shorthash] is entry and entry.alias == "new name"
    assert (webui.picture(f"{prompt} <lora:new name:1>") == drawn).all()
    service.remove("new name")
    assert set(networks.available_networks) == others and not list((folder / "merges").iterdir())
    assert entry not in networks.available_network_hash_lookup.values()
    assert (webui.picture(prompt) != drawn).any()


@pytest.mark.parametrize("method", ["ziplora", "direct"])
def test_three_loras_and_their_export_act_as_their_parts(host: A1111Host, method: str) -> None:
    """By the WebUI's own arithmetic, which has ranks, strengths and names from the files alone."""
    roles: tuple[Role, ...] = ("subject", "subject", "style")
    for index in range(3):
        webui.write_lora(f"of three {index}", 21 + index, text=False)
    loras = tuple(LoraInput(f"of three {i}", f"a thing {i}", 0.9, role=role) for i, role in enumerate(roles))
    small = MergeSettings(
        method=method, steps=3, sampling_steps=3, width=64, height=64, precision="fp32", split=True
    )
    name, again = f"three {method}", f"three {method} again"
    with host.exclusive():
        report = run(MergeRequest(loras, name, settings=small), host)
        other = ReexportRequest(name, again, subject_weights=(0.5, -1.5), style_weights=(1.2,))
        run(other, host)
    assert len(report.split) == 3
    merged = {name: (1.0, 1.0, 1.0), again: (0.5, -1.5, 1.2)}
    base, drawn = webui.webui_prediction(), []
    for file, strengths in merged.items():
        drawn.append(webui.webui_prediction((file, 0.0, 1.0)))
        parts = zip(report.split, strengths, strict=True)
        together = webui.webui_prediction(*((part, 0.0, strength) for part, strength in parts))
        assert webui.relative(drawn[-1], together) < 1e-4
        assert webui.relative(drawn[-1], base) > 0.01
    assert webui.relative(*drawn) > 0.01


@pytest.mark.parametrize("moment", ["encoding", "sampling", "optimising"])
def test_an_interrupt_leaves_no_trace(host: A1111Host, moment: str) -> None:
    webui.webui_prediction()
    pristine = webui.weights()
    before_pictures = [webui.picture(p) for p in ("a cat", f"a cat <lora:{STYLE}:1>")]
    before = webui.surroundings()
    stages: list[str] = []

    def on_event(progress: Progress) -> None:
        stages.append(progress.stage)
        if progress.stage == moment:
            host.interrupt()

    with pytest.raises(Interrupted), host.exclusive():
        run(request("interrupted"), host, on_event)
    assert stages[-1] == moment
    assert not host.output_path("interrupted").exists()
    assert webui.same_weights(pristine)
    after = webui.surroundings()
    assert {k: v for k, v in after.items() if k != "state"} == {
        k: v for k, v in before.items() if k != "state"
    }
    after_pictures = [webui.picture(p) for p in ("a cat", f"a cat <lora:{STYLE}:1>")]
    assert all(np.array_equal(a, b) for a, b in zip(before_pictures, after_pictures, strict=True))


@pytest.mark.parametrize("pressed", ["finish", "interrupt of another picture"])
def test_finish_now_and_an_interrupt_from_elsewhere_write_what_there_is(
    host: A1111Host, pressed: str
) -> None:
    press = host.finish_now if pressed == "finish" else webui.module("modules.shared").state.interrupt

    def on_event(progress: Progress) -> None:
        if progress.stage == "optimising" and progress.metrics:
            press()

    with host.exclusive():
        report = run(request(f"finished early by {pressed}", steps=40), host, on_event)
    assert ("pressed elsewhere" in " ".join(report.warnings)) == (pressed != "finish")
    assert report.learnt.stopped_early and 1 <= report.learnt.steps < 40 and Path(report.output).is_file()


@pytest.fixture
def other(host: A1111Host, tmp_path: Path) -> Iterator[Any]:
    """A second checkpoint of the same architecture, with other weights; the first is loaded again in the end."""
    sd_models, opts = webui.module("modules.sd_models"), webui.boot().opts
    first = webui.boot().sd_model.sd_checkpoint_info
    state = sd_models.read_state_dict(first.filename)
    key = "model.diffusion_model.out.2.weight"
    state[key] = state[key] * 2
    file = tmp_path / "second.safetensors"
    webui.save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(file))
    file.with_suffix(".yaml").symlink_to(Path(first.filename).with_suffix(".yaml"))
    info = sd_models.CheckpointInfo(str(file))
    info.register()
    chosen = opts.data["sd_model_checkpoint"]
    yield info
    opts.data["sd_model_checkpoint"] = chosen
    sd_models.reload_model_weights(info=first)


def test_the_chosen_checkpoint_is_used_where_a_picture_left_another(host: A1111Host, other: Any) -> None:
    """As after a refiner's turn: the WebUI loads the chosen checkpoint before its next picture."""
    with host.open() as session:
        base = predict(session)
    first = host.checkpoint()
    webui.module("modules.sd_models").reload_model_weights(info=other)
    webui.boot().opts.data["sd_model_checkpoint"] = first.name
    assert webui.boot().sd_model.sd_checkpoint_info.name_for_extra == "second"
    assert host.checkpoint() == first
    host.check()
    with host.open() as session:
        assert (predict(session) == base).all()
    assert webui.boot().sd_model.sd_checkpoint_info.name_for_extra == first.name


@pytest.mark.parametrize("reused", [True, False], ids=["same object, other weights", "new object"])
def test_a_checkpoint_that_is_swapped_while_merging_is_noticed(
    host: A1111Host, other: Any, monkeypatch: pytest.MonkeyPatch, reused: bool
) -> None:
    sd_models, model = webui.module("modules.sd_models"), webui.boot().sd_model
    first = model.sd_checkpoint_info
    if reused:
        config = model.used_config
        monkeypatch.setattr(sd_models.sd_models_config, "find_checkpoint_config", lambda *args: config)
    webui.webui_prediction()
    pristine, before = webui.weights(), webui.surroundings()

    def on_event(progress: Progress) -> None:
        if progress.stage == "optimising" and webui.boot().sd_model.sd_checkpoint_info is first:
            sd_models.reload_model_weights(info=other)

    with pytest.raises(HostError, match="another checkpoint"), host.exclusive():
        run(request("swapped"), host, on_event)
    assert (webui.boot().sd_model is model) is reused
    assert not host.output_path("swapped").exists() and not webui.same_weights(pristine)
    sd_models.reload_model_weights(info=first)
    assert webui.same_weights(pristine)
    after = webui.surroundings()
    assert not any(m.training for m in webui.boot().sd_model.model.modules())
    names = ("flags", "hooks", "overrides", "optimizer", "ldm", "sgm", "padding", "merging")
    assert {n: after[n] for n in names} == {n: before[n] for n in names}


def test_an_error_of_a_model_that_vanished_in_mid_forward_is_explained(host: A1111Host) -> None:
    data = webui.module("modules.sd_models").model_data
    model = data.sd_model
    try:
        with pytest.raises(HostError, match="another checkpoint"), host.open():
            data.sd_model = None
            raise RuntimeError("Tensor on device meta is not on the expected device")
    finally:
        data.sd_model = model
    with pytest.raises(RuntimeError, match="out of shape"), host.open():
        raise RuntimeError("out of shape")


def test_an_unloaded_checkpoint_is_refused(host: A1111Host) -> None:
    """Thrown away, as when another one is loaded without room for both."""
    data = webui.module("modules.sd_models").model_data
    model = data.sd_model
    out = model.model.diffusion_model.out[2]
    weight = out._parameters["weight"]
    with pytest.raises(HostError, match="unloaded from memory"), host.open() as session:
        out._parameters["weight"] = weight.to("meta")
        try:
            session.check_alive()
        finally:
            out._parameters["weight"] = weight
    host.check()
