"""The diffusers host and odd input: configurations, devices, cards, prompts with tags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lib_ziplora.errors import HostError
from lib_ziplora.hosts.standalone import StandaloneHost

from ..support import minixl


@pytest.mark.parametrize("text", ["[1]", "3", "not json", "[" * 100_000])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
def test_a_configuration_that_is_no_json_object_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "unet").mkdir()
    for one in ("model_index.json", "unet/config.json"):
        (tmp_path / one).write_bytes((minixl.MODEL / one).read_bytes())
    (tmp_path / name).write_text(text)
    with pytest.raises(HostError, match=Path(name).name):
        StandaloneHost(tmp_path, device="cpu").check()


def test_a_component_that_is_null_is_missing(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for one in ("model_index.json", "unet/config.json"):
        (tmp_path / one).write_bytes((minixl.MODEL / one).read_bytes())
    index = json.loads((tmp_path / "model_index.json").read_text())
    for gone in (None, [None, None]):
        (tmp_path / "model_index.json").write_text(json.dumps({**index, "text_encoder": gone}))
        with pytest.raises(HostError, match="refiner"):
            StandaloneHost(tmp_path, device="cpu").check()


@pytest.mark.parametrize("device", ["", "gpu", "cuda:999", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_at_once(device: str) -> None:
    with pytest.raises(HostError, match="device"):
        StandaloneHost(None, device=device)


def test_a_card_that_is_malformed_is_no_card(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(minixl.SUBJECT.read_bytes())
    for text in ("[" * 100_000, "[1]", "{"):
        (tmp_path / "a.json").write_text(text)
        (entry,) = StandaloneHost(None, [tmp_path], device="cpu").loras()
        assert entry.user_metadata == {}


def test_tags_of_extra_networks_are_taken_out_of_prompts() -> None:
    pytest.importorskip("diffusers")
    host = StandaloneHost(minixl.MODEL, device="cpu")
    with host.open() as session:
        tagged, plain, other = (
            session.encode_prompts([prompt], width=128, height=128, negative=False, deltas={}).context
            for prompt in ("a cat<lora:dog_v2:0.8> <lyco:x:1:2>", "a cat ", "a cat < b")
        )
    assert torch.equal(tagged, plain)
    assert not torch.equal(other, plain)
