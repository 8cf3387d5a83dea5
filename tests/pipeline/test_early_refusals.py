"""What can be known before the long part is refused before it."""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.errors import ConfigError, HostError, IncompatibleError, OutputError
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.prepare import prepare
from lib_ziplora.report.report import MergeReport
from lib_ziplora.training.images import check_images, load_images
from lib_ziplora.training.learnt import Learnt

from ..support.pico_host import PicoHost, module_names, write_kohya

SETTINGS = MergeSettings(steps=3, width=64, height=64, sampling_steps=2, trajectories=1)
REQUEST = MergeRequest.pair(
    LoraInput("dog", "a dog"), LoraInput("ink", "ink style"), "both", settings=SETTINGS
)


@pytest.fixture()
def host(tmp_path):
    write_kohya(tmp_path / "dog.safetensors", module_names(), seed=1)
    write_kohya(tmp_path / "ink.safetensors", module_names(), seed=2)
    return PicoHost(tmp_path)


def test_a_style_image_that_is_no_image_is_refused_before_the_subject_is_drawn(host):
    (host.folder / "broken.png").write_bytes(b"no picture")
    style = dataclasses.replace(REQUEST.loras[1], images=(str(host.folder / "broken.png"),))
    for attempt in (prepare, run):
        with pytest.raises(ConfigError, match=r"broken\.png"):
            attempt(dataclasses.replace(REQUEST, loras=(REQUEST.loras[0], style)), host)
    assert host.forwards == 0


def test_damaged_images_are_refused_in_words(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (80, 80), "red").save(path)
    whole = path.read_bytes()
    check_images([str(path)])
    assert load_images([str(path)], 64, 64).shape == (1, 3, 64, 64)
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        for reader in (lambda: check_images([str(path)]), lambda: load_images([str(path)], 64, 64)):
            try:
                reader()
            except ConfigError as error:
                assert "photo.png" in str(error)
                refused += 1
    assert refused > len(whole) / 2


def test_a_disk_without_room_is_noticed_before_the_model_is_touched(host, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(OutputError, match="Make room"):
        run(REQUEST, host)
    assert host.forwards == 0 and not (host.folder / "both.safetensors").exists()


def test_a_lora_of_zeros_is_refused(host):
    tensors = load_file(host.folder / "ink.safetensors")
    zeros = {key: value * (0 if "lora_up" in key else 1) for key, value in tensors.items()}
    save_file(zeros, host.folder / "zeros.safetensors")
    with pytest.raises(IncompatibleError, match="layers of zeros are zero"):
        run(MergeRequest.pair(REQUEST.loras[0], LoraInput("zeros", "x"), "both", settings=SETTINGS), host)
    assert host.forwards == 0 and not (host.folder / "both.safetensors").exists()


def test_a_model_that_predicts_nan_is_refused(host):
    host.unet.out[2].bias.data.fill_(float("nan"))
    with pytest.raises(HostError, match="NaN"):
        run(REQUEST, host)
    assert not (host.folder / "both.safetensors").exists()


def test_the_global_random_state_is_left_alone(host):
    before = torch.get_rng_state()
    run(REQUEST, host)
    assert torch.equal(before, torch.get_rng_state())


def test_a_report_is_valid_json_also_where_a_figure_is_not_finite():
    report = MergeReport("o", "n", "ziplora", SETTINGS, 1, {}, 4, Learnt(steps=3, loss_end=float("inf")))
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["loss_end"] is None
