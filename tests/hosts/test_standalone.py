"""The diffusers host: the contract on MiniXL, which checkpoints it takes, where files come from and go."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.cost import SDXL_UNET
from lib_ziplora.errors import HostError, LoraFileError, OutputError
from lib_ziplora.hosts import KnowsSize
from lib_ziplora.hosts._diffusers.sdxl_config import sdxl_folder
from lib_ziplora.hosts.standalone import StandaloneHost

from ..support import minixl
from .contract import PROMPTS, SIZE, HostContract

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def loaded() -> StandaloneHost:
    host = StandaloneHost(minixl.MODEL, [minixl.LORAS], device="cpu")
    host.pipeline()
    return host


def parts_of(host: StandaloneHost) -> list[nn.Module]:
    pipeline = host.pipeline()
    return [pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2]


class TestStandaloneHost(HostContract):
    @pytest.fixture
    def host(self, loaded: StandaloneHost) -> Iterator[StandaloneHost]:
        yield loaded
        for part in parts_of(loaded):
            part.requires_grad_(True).eval()

    @pytest.fixture
    def parts(self, host: StandaloneHost) -> list[nn.Module]:
        return parts_of(host)


def test_conditioning_is_that_of_diffusers_own_pipeline(loaded: StandaloneHost) -> None:
    pipeline = loaded.pipeline()
    with torch.no_grad():
        rows = [
            pipeline.encode_prompt(
                prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            for prompt in PROMPTS
        ]
    context, pooled = torch.cat([row[0] for row in rows]), torch.cat([row[2] for row in rows])
    with loaded.open() as session:
        ours = session.encode_prompts(PROMPTS, width=192, height=SIZE, negative=False, deltas={})
    assert torch.equal(ours.context, context)
    assert torch.equal(ours.vector[:, :-6], pooled)
    assert ours.vector[0, -6:].tolist() == [SIZE, 192, 0, 0, SIZE, 192]


def test_prediction_is_that_of_diffusers_own_unet(loaded: StandaloneHost) -> None:
    x_t, t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    with loaded.open() as session, torch.no_grad():
        cond = session.encode_prompts(PROMPTS[:1], width=SIZE, height=SIZE, negative=False, deltas={})
        added = {"text_embeds": cond.vector[:, :-6], "time_ids": cond.vector[:, -6:]}
        expected = (
            loaded.pipeline().unet(x_t, t, encoder_hidden_states=cond.context, added_cond_kwargs=added).sample
        )
        assert torch.equal(session.denoiser.predict(x_t, t, cond), expected)


def test_text_layers_are_found_with_and_without_the_outer_level() -> None:
    from lib_ziplora.hosts._diffusers.text import text_modules

    inner = nn.Module()
    inner.encoder = nn.Module()
    inner.encoder.layers = nn.ModuleList([nn.Linear(2, 2)])
    outer = nn.Module()
    outer.text_model = inner
    outer.text_projection = nn.Linear(2, 2)
    layer = inner.encoder.layers[0]
    table = text_modules([inner, outer])
    assert table["lora_te1_text_model_encoder_layers_0"] is layer
    assert table["lora_te2_text_model_encoder_layers_0"] is layer
    assert table["lora_te2_text_projection"] is outer.text_projection
    assert len(table) == 3


def changed_folder(
    tmp_path: Path, *, unet: dict[str, Any] | None = None, index: dict[str, Any] | None = None
) -> Path:
    """MiniXL's configuration files with changes; weights are empty files."""
    folder = tmp_path / "changed"
    for part, changes in (("model_index.json", index), ("unet/config.json", unet)):
        target = folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(json.loads((minixl.MODEL / part).read_text()) | (changes or {})))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").touch()
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"index": {"text_encoder_2": [None, None]}}, "not SDXL"),
        ({"index": {"text_encoder": [None, None]}}, "refiner"),
        ({"unet": {"in_channels": 9}}, "9 input channels"),
        ({"unet": {"addition_embed_type": None}}, "not SDXL"),
    ],
)
def test_other_models_are_refused_before_loading(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HostError, match=says):
        StandaloneHost(changed_folder(tmp_path, **changes), device="cpu").check()


STEM = "model.diffusion_model.input_blocks.0.0.weight"
TE1, TE2 = "conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.x"
SIZE_EMBEDDING = "model.diffusion_model.label_emb.0.0.weight"


@pytest.mark.parametrize(
    ("names", "channels", "says"),
    [
        (["cond_stage_model.transformer.x"], 4, "not SDXL"),
        (["conditioner.embedders.0.model.x", SIZE_EMBEDDING], 4, "refiner"),
        ([TE1, TE2, SIZE_EMBEDDING], 9, "9 input channels"),
    ],
)
def test_other_single_files_are_refused_by_their_header(
    tmp_path: Path, names: list[str], channels: int, says: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({STEM: torch.zeros(1, channels, 1, 1)} | {name: torch.zeros(1) for name in names}, path)
    with pytest.raises(HostError, match=says):
        StandaloneHost(path, device="cpu").check()


def test_broken_or_missing_checkpoints_are_refused(tmp_path: Path) -> None:
    broken, pickle = tmp_path / "broken.safetensors", tmp_path / "old.ckpt"
    broken.write_bytes(b"\x10")
    pickle.write_bytes(b"PK")
    for path, says in (
        (tmp_path / "nowhere", "no checkpoint at"),
        (tmp_path, "no model_index.json"),
        (broken, "can't be read"),
        (pickle, "not a .safetensors"),
        (minixl.SUBJECT, "no Stable Diffusion UNet"),
    ):
        with pytest.raises(HostError, match=says):
            StandaloneHost(path, device="cpu").check()
    with pytest.raises(HostError, match="--checkpoint"):
        StandaloneHost(None).check()


def test_single_file_gives_the_folders_predictions(tmp_path: Path) -> None:
    """A folder, exported to SDXL's original key names and read again, is the same model.

    The second text encoder is widened first: diffusers tells the two apart by their widths.
    """
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModelWithProjection

    from benchmarks.minixl.checkpoint import main as export

    torch.manual_seed(0)
    folder, single = tmp_path / "wide", tmp_path / "wide.safetensors"
    pipeline = StableDiffusionXLPipeline.from_pretrained(str(minixl.MODEL), torch_dtype=torch.float32)
    config = pipeline.text_encoder_2.config
    config.hidden_size = config.projection_dim = 96
    config.intermediate_size = 4 * 96
    wide = CLIPTextModelWithProjection(config).eval()
    unet_config = dict(pipeline.unet.config) | {
        "cross_attention_dim": 160,
        "projection_class_embeddings_input_dim": 288,
    }
    unet = type(pipeline.unet).from_config(unet_config).eval()
    pipeline.register_modules(text_encoder_2=wide, unet=unet)
    pipeline.save_pretrained(str(folder))
    for part in ("tokenizer", "tokenizer_2"):  # transformers 5 saves them in another form
        shutil.copytree(minixl.MODEL / part, folder / part, dirs_exist_ok=True)
    export(["--model", str(folder), "--out", str(single)])
    outputs = []
    for host in (StandaloneHost(folder, device="cpu"), StandaloneHost(single, device="cpu", config=folder)):
        host.check()
        with host.open() as session, torch.no_grad():
            cond = session.encode_prompts(PROMPTS[:1], width=SIZE, height=SIZE, negative=False, deltas={})
            x_t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
            outputs.append(session.denoiser.predict(x_t, torch.tensor([500]), cond))
    assert (outputs[0] - outputs[1]).norm() / outputs[0].norm() < 1e-4


def test_a_single_file_is_described_by_sdxls_own_configuration() -> None:
    with sdxl_folder() as folder:
        unet = json.loads((folder / "unet" / "config.json").read_text())
        assert {name: tuple(v) if isinstance(v, list) else v for name, v in unet.items()} == {
            "_class_name": "UNet2DConditionModel",
            **SDXL_UNET,
        }
        for tokenizer in ("tokenizer", "tokenizer_2"):
            for file in ("vocab.json", "merges.txt"):
                expected = (minixl.MODEL / tokenizer / file).read_text(encoding="utf-8")
                found = (folder / tokenizer / file).read_text(encoding="utf-8")
                assert (
                    found == expected if file == "merges.txt" else json.loads(found) == json.loads(expected)
                )
    assert not folder.exists()


def test_a_single_file_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {STEM: torch.zeros(1, 4, 1, 1)} | {name: torch.zeros(1) for name in (TE1, TE2, SIZE_EMBEDDING)}
    save_file(tensors, path)
    with pytest.raises(HostError, match="diffusers can't load model"):
        StandaloneHost(path, device="cpu").pipeline()


def test_checkpoint_info_is_the_unets_hash(loaded: StandaloneHost) -> None:
    import hashlib

    weights = (minixl.MODEL / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert loaded.checkpoint().sha256 == hashlib.sha256(weights).hexdigest()
    assert StandaloneHost(None).checkpoint().sha256 == ""


@pytest.fixture
def lora_dirs(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second" / "deep"
    for folder in (first, second):
        folder.mkdir(parents=True)
    shutil.copy(minixl.SUBJECT, first / "turtle.safetensors")
    shutil.copy(minixl.STYLE, second / "Fluent.v1.5.safetensors")
    shutil.copy(minixl.STYLE, second / "turtle.safetensors")
    (first / ".half-written.safetensors").touch()
    (first / "turtle.json").write_text('{"activation text": "a sks icon"}')
    (second / "Fluent.v1.5.json").write_text("not json")
    return first, second.parent


def test_loras_are_listed_from_all_folders(lora_dirs: tuple[Path, Path]) -> None:
    host = StandaloneHost(None, lora_dirs)
    listed = {entry.name: entry for entry in host.loras()}
    assert list(listed) == ["deep/turtle", "Fluent.v1.5", "turtle"]
    assert (
        host.resolve("deep/turtle")
        == listed["deep/turtle"].path
        == lora_dirs[1] / "deep" / "turtle.safetensors"
    )
    assert listed["turtle"].path == lora_dirs[0] / "turtle.safetensors"
    assert listed["turtle"].user_metadata == {"activation text": "a sks icon"}
    assert listed["Fluent.v1.5"].user_metadata == {}
    assert host.resolve("Fluent.v1.5").name == "Fluent.v1.5.safetensors"
    assert host.resolve("turtle.safetensors") == lora_dirs[0] / "turtle.safetensors"


def test_paths_are_taken_on_the_command_line_and_not_by_the_server(
    lora_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    path = lora_dirs[1] / "deep" / "turtle.safetensors"
    assert StandaloneHost(None, lora_dirs).resolve(str(path)) == path
    strict = StandaloneHost(None, lora_dirs, strict=True)
    with pytest.raises(LoraFileError):
        strict.resolve(str(path))
    assert StandaloneHost(None).output_path(str(tmp_path / "new.safetensors")) == tmp_path / "new.safetensors"
    for name in (str(tmp_path / "new.safetensors"), "../new", "/new", "a\\..\\b"):
        with pytest.raises(OutputError):
            strict.output_path(name)


def test_outputs_that_cannot_be(lora_dirs: tuple[Path, Path], tmp_path: Path) -> None:
    host = StandaloneHost(None, lora_dirs)
    assert host.output_path("turtle") == lora_dirs[0] / "turtle.safetensors"  # replaced only when asked
    for name, says in (
        ("fluent.V1.5", "means another LoRA"),
        (str(tmp_path / "nowhere" / "x.safetensors"), "does not exist"),
        (str(tmp_path / "x.ckpt"), "must end in .safetensors"),
        (str(tmp_path), "must end in .safetensors"),
    ):
        with pytest.raises(OutputError, match=says):
            host.output_path(name)
    with pytest.raises(OutputError, match="no LoRA folder"):
        StandaloneHost(None).output_path("x")


def test_a_misspelt_name_gets_a_hint(lora_dirs: tuple[Path, Path]) -> None:
    with pytest.raises(LoraFileError, match=r"Did you mean turtle\?"):
        StandaloneHost(None, lora_dirs).resolve("turtel")


def test_tasks_run_one_at_a_time(lora_dirs: tuple[Path, Path]) -> None:
    host = StandaloneHost(None, lora_dirs)
    entered, leave, order = threading.Event(), threading.Event(), []

    def slow(label: str) -> None:
        with host.exclusive():
            order.append(f"{label} in")
            entered.set()
            leave.wait(10)
            order.append(f"{label} out")

    threads = [threading.Thread(target=slow, args=(label,)) for label in ("first", "second")]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first in", "first out", "second in", "second out"]


def test_v_prediction_marks_of_a_single_file_are_taken_over(loaded: StandaloneHost, tmp_path: Path) -> None:
    from lib_ziplora.hosts._diffusers import model

    class Fake:
        scheduler = loaded.pipeline().scheduler

    path = tmp_path / "v.safetensors"
    save_file({"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, path)
    fake = Fake()
    model._adopt_schedule_marks(fake, path)
    assert fake.scheduler.config.prediction_type == "v_prediction"
    assert fake.scheduler.config.rescale_betas_zero_snr
    assert Fake.scheduler.config.prediction_type == "epsilon"


def test_both_text_encoders_are_stored_under_names_that_every_transformers_loads() -> None:
    for part in ("text_encoder", "text_encoder_2"):
        names = load_file(minixl.MODEL / part / "model.safetensors")
        assert all(name.startswith(("text_model.", "text_projection.")) for name in names), part


def test_the_size_is_known_before_the_model_is_opened(loaded: StandaloneHost, tmp_path: Path) -> None:
    assert isinstance(loaded, KnowsSize)
    with loaded.open() as session:
        assert loaded.picture_size() == session.native_size
    assert StandaloneHost(None, device="cpu").picture_size() is None
    file = tmp_path / "one.safetensors"
    file.write_bytes(b"")
    assert StandaloneHost(file, device="cpu").picture_size() is None
    assert StandaloneHost(file, device="cpu", config=minixl.MODEL).picture_size() == loaded.picture_size()
