"""The diffusers host draws: the contract on MiniXL, and that its pictures are diffusers' own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from lib_ziplora.errors import HostError, IncompatibleError, OutputError
from lib_ziplora.hosts import Picture
from lib_ziplora.hosts._diffusers import draw
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.lora.formats.keys import canonical_modules, canonical_unet_name
from lib_ziplora.lora.io.read import read_lora

from ..support import minixl
from .contract_draws import PLAIN, PROMPT, DrawsContract, nothing, pixels, quick

pytest.importorskip("diffusers")

LORAS = (minixl.SUBJECT.stem, minixl.STYLE.stem)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn") / "pictures"


@pytest.fixture(scope="module")
def loaded(pictures: Path) -> StandaloneHost:
    host = StandaloneHost(minixl.MODEL, [minixl.LORAS], device="cpu", pictures=pictures)
    host.pipeline()
    return host


class TestStandaloneDraws(DrawsContract):
    @pytest.fixture
    def host(self, loaded: StandaloneHost) -> Iterator[StandaloneHost]:
        yield loaded

    @pytest.fixture
    def parts(self, host: StandaloneHost) -> list[nn.Module]:
        pipeline = host.pipeline()
        return [pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2]

    @pytest.fixture
    def names(self, host: StandaloneHost) -> Sequence[str]:
        return LORAS

    @pytest.fixture
    def folder(self, pictures: Path) -> Path:
        return pictures


def one(host: StandaloneHost, picture: Picture, **changed: Any) -> np.ndarray:
    with host.exclusive(), host.drawing(quick(**changed), 1) as pen:
        return pixels(pen.draw(picture, nothing))


@pytest.mark.parametrize("negative", ["", "a cat"])
def test_without_loras_it_is_diffusers_own_picture(loaded: StandaloneHost, negative: str) -> None:
    pipeline = loaded.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPT,
        negative_prompt=negative or None,
        width=64,
        height=128,
        num_inference_steps=2,
        guidance_scale=3.5,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]
    found = one(loaded, PLAIN, negative_prompt=negative)
    assert np.abs(found - np.asarray(expected, dtype=np.int16)).max() <= 1


def test_zero_as_size_is_the_checkpoints_own(loaded: StandaloneHost) -> None:
    assert one(loaded, PLAIN, width=0, height=0).shape == (64, 64, 3)


def test_a_lora_draws_what_its_weights_added_to_the_model_draw(loaded: StandaloneHost) -> None:
    found = one(loaded, Picture(PROMPT, ((LORAS[0], 0.5),), 3))
    unet = loaded.pipeline().unet
    modules, layers = canonical_modules(unet), read_lora(minixl.SUBJECT).unet_layers()
    before = {name: modules[name].weight.detach().clone() for name in layers}
    with torch.no_grad():
        for name, layer in layers.items():
            modules[name].weight.add_(0.5 * layer.delta().reshape(before[name].shape))
    try:
        expected = one(loaded, PLAIN)
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                modules[name].weight.copy_(weight)
    assert np.abs(found - expected).max() <= 2


def lora_file(folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    file = folder / "made.safetensors"
    save_file({**load_file(minixl.SUBJECT), **tensors}, file)
    return str(file)


def test_norm_differences_and_text_layers_act_and_are_taken_off(
    loaded: StandaloneHost, tmp_path: Path
) -> None:
    pipeline = loaded.pipeline()
    norms = {
        canonical_unet_name(path): module
        for path, module in pipeline.unet.named_modules()
        if isinstance(module, nn.LayerNorm)
    }
    name, norm = next((name, module) for name, module in norms.items() if name)
    width = norm.weight.numel()
    text = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    encoder = dict(pipeline.text_encoder.named_modules())
    size = next(
        m.weight.shape[0] for path, m in encoder.items() if path.endswith("layers.0.self_attn.q_proj")
    )
    made = {
        "norm": {f"{name}.w_norm": torch.full((width,), 3.0), f"{name}.b_norm": torch.full((width,), 3.0)},
        "text": {
            f"{text}.lora_down.weight": torch.randn(2, size, generator=torch.Generator().manual_seed(0)),
            f"{text}.lora_up.weight": torch.randn(size, 2, generator=torch.Generator().manual_seed(1)),
        },
    }
    plain = one(loaded, Picture(PROMPT, ((LORAS[0], 1.0),), 3))
    before = norm.weight.detach().clone()
    for tensors in made.values():
        changed = one(loaded, Picture(PROMPT, ((lora_file(tmp_path, tensors), 1.0),), 3))
        assert not np.array_equal(changed, plain)
    assert torch.equal(norm.weight, before)


def test_a_lora_of_another_model_is_named(loaded: StandaloneHost, tmp_path: Path) -> None:
    name = next(iter(read_lora(minixl.SUBJECT).unet_layers()))
    other = {f"{name}.lora_down.weight": torch.ones(2, 5), f"{name}.lora_up.weight": torch.ones(7, 2)}
    with pytest.raises(IncompatibleError, match=name):
        one(loaded, Picture(PROMPT, ((lora_file(tmp_path, other), 1.0),), 3))


def test_pictures_are_numbered_and_none_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "00041-mine.png").touch()
    (tmp_path / "notes.png").touch()
    assert draw._next_file(tmp_path, "5").name == "00042-5.png"


def test_a_folder_that_can_not_be_written_is_named(loaded: StandaloneHost, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    host = StandaloneHost(minixl.MODEL, [minixl.LORAS], device="cpu", pictures=tmp_path / "file")
    host._pipeline = loaded.pipeline()
    with pytest.raises(OutputError, match="can't be saved"):
        one(host, PLAIN)


def test_without_a_folder_nothing_is_saved(loaded: StandaloneHost) -> None:
    host = StandaloneHost(minixl.MODEL, [minixl.LORAS], device="cpu")
    host._pipeline = loaded.pipeline()
    with host.exclusive(), host.drawing(quick(), 1) as pen:
        assert pen.draw(PLAIN, nothing).file is None
        assert pen.keep(Image.new("RGB", (8, 8)), "x") is None and pen.font is None


def test_without_a_checkpoint_nothing_can_be_drawn() -> None:
    with pytest.raises(HostError, match="no checkpoint to draw with"):
        StandaloneHost(None).check_drawing()


def test_the_pipelines_scheduler_and_bar_are_put_back(loaded: StandaloneHost) -> None:
    pipeline = loaded.pipeline()
    before = pipeline.scheduler, dict(pipeline._progress_bar_config)
    one(loaded, PLAIN, name="DDIM")
    assert pipeline.scheduler is before[0] and pipeline._progress_bar_config == before[1]
