"""The WebUI as host: its LoRAs and names, what it refuses, its queue, its progress."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lib_ziplora.errors import HostError, LoraFileError, OutputError
from lib_ziplora.hosts import Progress, detect
from lib_ziplora.hosts._webui import loras as loras_module
from lib_ziplora.hosts.a1111 import A1111Host
from lib_ziplora.lora.io.embeddings import save_embeddings

from . import a1111_webui as webui

pytestmark = webui.marks
SUBJECT = "minixl_subject_rocket"


@pytest.fixture
def host() -> A1111Host:
    webui.boot()
    return A1111Host()


@pytest.fixture(params=["extension on", "extension off"])
def listing(request: pytest.FixtureRequest, host: A1111Host, monkeypatch: pytest.MonkeyPatch) -> A1111Host:
    if request.param == "extension off":
        monkeypatch.setattr(loras_module, "extension", lambda: None)
    return host


@pytest.fixture
def folder(host: A1111Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A LoRA folder with sub/Turtle, b and a card for b."""
    source = Path(webui.boot().cmd_opts.lora_dir) / f"{SUBJECT}.safetensors"
    monkeypatch.setattr(webui.boot().cmd_opts, "lora_dir", str(tmp_path))
    (tmp_path / "sub").mkdir()
    for name in ("sub/Turtle", "b"):
        (tmp_path / f"{name}.safetensors").symlink_to(source)
    (tmp_path / "b.json").write_text(json.dumps({"activation text": "sks", "preferred weight": 0.7}))
    (tmp_path / "notes.txt").write_text("no LoRA")
    yield tmp_path
    monkeypatch.undo()
    webui.module("networks").list_available_networks()


def test_the_host_is_detected(host: A1111Host) -> None:
    assert isinstance(detect(), A1111Host) and detect().name == "a1111"


def test_loras_are_listed_afresh_with_their_cards(listing: A1111Host, folder: Path) -> None:
    assert [(lora.name, lora.path.name) for lora in listing.loras()] == [
        ("b", "b.safetensors"),
        ("Turtle", "Turtle.safetensors"),
    ]
    assert listing.loras()[0].user_metadata["activation text"] == "sks"
    assert listing.loras()[1].user_metadata == {}
    (folder / "a.safetensors").symlink_to(folder / "b.safetensors")
    (folder / "b.json").write_text("{")
    assert [lora.name for lora in listing.loras()] == ["a", "b", "Turtle"]
    assert listing.loras()[1].user_metadata == {}


def test_only_names_are_resolved(listing: A1111Host, folder: Path) -> None:
    assert listing.resolve("Turtle") == folder / "sub" / "Turtle.safetensors"
    (folder / "late.safetensors").symlink_to(folder / "b.safetensors")
    assert listing.resolve("late") == folder / "late.safetensors"
    for path in (str(folder / "b.safetensors"), "sub/Turtle", "../b", "b.safetensors", ""):
        with pytest.raises(LoraFileError, match="no LoRA named"):
            listing.resolve(path)
    with pytest.raises(LoraFileError, match="Did you mean Turtle"):
        listing.resolve("Turtles")


def test_output_goes_into_the_lora_folder(listing: A1111Host, folder: Path) -> None:
    assert listing.output_path("my merge 2") == folder / "my merge 2.safetensors"
    assert listing.output_path("b") == folder / "b.safetensors"  # check_output asks about overwriting


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../b",
        "merges/b",
        "merges\\b",
        "none",
        "None",
        "Addams",
        "con",
        "a:b",
        "x=y",
        "a>b",
        "Turtle",
        "TURTLE",
        "B",
    ],
)
def test_names_that_mean_something_else_are_refused(listing: A1111Host, folder: Path, name: str) -> None:
    with pytest.raises(OutputError):
        listing.output_path(name)


def test_checkpoint(host: A1111Host) -> None:
    info = host.checkpoint()
    file = Path(webui.boot().sd_model.sd_checkpoint_info.filename)
    assert info.name == file.stem
    assert info.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_check_is_quick_and_needs_no_lock(host: A1111Host) -> None:
    with webui.module("modules.call_queue").queue_lock:
        started = time.monotonic()
        host.check()
        assert time.monotonic() - started < 0.5


def refusals() -> dict[str, tuple[Any, str]]:
    """What is wrong: (patch(model, put), part of the sentence)."""

    def weight(put: Any, owner: Any, *shape: int, device: str = "cpu") -> None:
        put(owner._parameters, "weight", nn.Parameter(torch.zeros(shape, device=device)))

    def first(model: Any, ending: str) -> Any:
        return next(m for n, m in model.model.diffusion_model.named_modules() if n.endswith(ending))

    return {
        "lowvram": (lambda m, put: put(webui.boot().cmd_opts, "lowvram", True), "--medvram"),
        "manual cast": (
            lambda m, put: put(devices(), "autocast", lambda: devices().manual_cast(torch.float16)),
            "--no-half --precision full",
        ),
        "nothing loaded": (lambda m, put: put(data(), "sd_model", None), "No checkpoint is loaded"),
        "loading": (
            lambda m, put: (put(data(), "sd_model", None), put(data(), "was_loaded_at_least_once", False)),
            "draw a picture first",
        ),
        "SD 1.5": (lambda m, put: put(m, "is_sdxl", False), "not SDXL. Choose an SDXL base checkpoint"),
        "SSD-1B": (lambda m, put: put(m, "is_ssd", True), "SSD-1B"),
        "refiner": (
            lambda m, put: put(
                m.conditioner._modules, "embedders", nn.ModuleList(list(m.conditioner.embedders)[1:])
            ),
            "refiner",
        ),
        "inpainting": (
            lambda m, put: weight(put, m.model.diffusion_model.input_blocks[0][0], 32, 9, 3, 3),
            "9 input channels",
        ),
        "another width": (lambda m, put: weight(put, first(m, "attn2.to_k"), 64, 77), "attends to 77"),
        "on meta": (
            lambda m, put: weight(put, first(m, "attn2.to_k"), 64, 128, device="meta"),
            "unloaded from memory. Load it with Settings",
        ),
        "unloaded": (
            lambda m, put: (put(m, "lowvram", False), put(devices(), "device", torch.device("cuda"))),
            "unloaded to cpu. Load it with",
        ),
    }


def devices() -> Any:
    return webui.module("modules.devices")


def data() -> Any:
    return webui.module("modules.sd_models").model_data


@pytest.mark.parametrize("wrong", sorted(refusals()))
def test_what_it_cannot_do_is_refused(host: A1111Host, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    patch, sentence = refusals()[wrong]
    model = webui.boot().sd_model
    host.check()
    with monkeypatch.context() as patched:

        def put(owner: Any, name: str, value: Any) -> None:
            (patched.setitem if isinstance(owner, dict) else patched.setattr)(owner, name, value)

        patch(model, put)
        with pytest.raises(HostError, match=sentence):
            host.check()
        with pytest.raises(HostError, match=sentence), host.open():
            pytest.fail("the session began")
    host.check()


def test_progress_and_stop_flags(host: A1111Host) -> None:
    state = webui.boot().state
    with host.exclusive():
        assert not host.interrupted() and not host.finish_requested() and state.job == "ziplora"
        host.report(Progress("optimising", 7, 20, 3.0, "Update 3\nof 16", {"loss": 1.0}))
        assert (state.job_count, state.job_no, state.sampling_step, state.sampling_steps) == (1, 0, 7, 20)
        assert state.textinfo == "Update 3 of 16"
        host.finish_now()
        assert host.finish_requested() and not host.interrupted()
        host.interrupt()
        assert host.interrupted()
        state.interrupted = False
        state.stop_generating()
        assert host.interrupted()
    assert not host.interrupted() and not host.finish_requested() and state.job == "" and state.job_count == 0


def test_exclusive_is_the_webuis_queue_and_ends_on_errors(host: A1111Host) -> None:
    lock = webui.module("modules.call_queue").queue_lock
    waited = threading.Event()
    with pytest.raises(ValueError, match="inside"), host.exclusive():
        host.interrupt()
        thread = threading.Thread(target=lambda: (lock.acquire(), waited.set(), lock.release()))
        thread.start()
        assert not waited.wait(0.1)
        raise ValueError("inside")
    assert waited.wait(5) and not host.interrupted()
    thread.join()


def test_an_embedding_that_was_saved_from_a_lora_is_one_to_the_webui(
    host: A1111Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in its folder by the WebUI's own listing, with the word, the vectors and the width of both parts."""
    monkeypatch.setattr(webui.boot().cmd_opts, "embeddings_dir", str(tmp_path / "embeddings"))
    vectors = {"clip_l": torch.rand(2, 768), "clip_g": torch.rand(2, 1280)}
    lora = tmp_path / "cat.safetensors"
    save_file({f"bundle_emb.<sks>.{part}": tensor for part, tensor in vectors.items()}, lora)
    assert (
        len(
            list(
                save_embeddings(
                    lora, [f"bundle_emb.<sks>.{part}" for part in vectors], host.embeddings_folder()
                )
            )
        )
        == 1
    )
    module = webui.module("modules.textual_inversion.textual_inversion")
    database = module.EmbeddingDatabase()
    directory = module.DirWithTextualInversionEmbeddings(str(tmp_path / "embeddings"))
    database.load_from_dir(directory)
    (found,) = (*database.word_embeddings.values(), *database.skipped_embeddings.values())
    assert (found.name, found.vectors, found.shape) == ("sks", 2, 2048)
    assert all(torch.equal(found.vec[part].cpu(), tensor) for part, tensor in vectors.items())


def test_of_two_files_of_one_name_the_plain_name_is_the_one_that_the_webui_draws(
    listing: A1111Host, folder: Path
) -> None:
    (folder / "a").mkdir()
    save_file({"x": torch.ones(1)}, folder / "a" / "Turtle.safetensors")
    networks = webui.module("networks")
    networks.list_available_networks()
    drawn = Path(networks.available_networks["Turtle"].filename)
    found = {lora.name: lora.path for lora in listing.loras()}
    assert found["Turtle"] == drawn == listing.resolve("Turtle") == folder / "sub" / "Turtle.safetensors"
    assert found["a/Turtle"] == listing.resolve("a/Turtle") == folder / "a" / "Turtle.safetensors"
