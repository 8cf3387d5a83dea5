"""Checkpoints of the wild without the WebUI: which are refused by name, which need few steps, what fits them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.errors import HostError, IncompatibleError
from lib_ziplora.hosts._diffusers.model import denoiser_of
from lib_ziplora.hosts._webui.host import WebuiHost
from lib_ziplora.hosts.checkpoint_files import VELOCITY, prediction_of
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.lora.formats.speedups import distilled_model, speed_up_lora
from lib_ziplora.pipeline import merge as pipeline
from lib_ziplora.pipeline.preflight import preflight
from lib_ziplora.pipeline.prepare import prepare

from ..lora.sdxl_names import unet_modules
from ..support import minixl

pytest.importorskip("diffusers")

PARTS = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
EDM = {"sigma_max": 80.0, "sigma_min": 0.002, "sigma_data": 0.5, "num_train_timesteps": 1000}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000}
PREFIX = "model.diffusion_model."
SDXL_FILE = (
    f"{PREFIX}label_emb.0.0.weight",
    "conditioner.embedders.0.transformer.x",
    "conditioner.embedders.1.model.x",
)


def folder(tmp_path: Path, **changes: dict[str, Any]) -> Path:
    """MiniXL's configuration, changed by part (a ``scheduler`` is replaced); the weights are empty files."""
    made = tmp_path / "changed"
    for part in PARTS:
        name = part.partition("/")[0].removesuffix(".json")
        own = json.loads((minixl.MODEL / part).read_text())
        given = changes.get(name, {})
        (made / part).parent.mkdir(parents=True, exist_ok=True)
        (made / part).write_text(json.dumps(given if name == "scheduler" and given else own | given))
    (made / "unet" / "diffusion_pytorch_model.safetensors").touch()
    return made


def betas(**fields: Any) -> dict[str, Any]:
    own = json.loads((minixl.MODEL / PARTS[2]).read_text())
    return own | fields


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scheduler": FLOW}, "flow matching"),
        ({"scheduler": betas(_class_name="UniPCMultistepScheduler", use_flow_sigmas=True)}, "flow matching"),
        ({"scheduler": betas(prediction_type="flow_prediction")}, "flow matching"),
        ({"scheduler": {"_class_name": "EDMDPMSolverMultistepScheduler", **EDM}}, "EDM"),
        (
            {"scheduler": {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", **EDM}},
            "EDM",
        ),
        ({"scheduler": betas(prediction_type="sample")}, "'sample'"),
        ({"scheduler": {"_class_name": "CMStochasticIterativeScheduler", "sigma_min": 0.002}}, "no betas"),
        ({"unet": {"mid_block_type": None}}, "SSD-1B"),
        ({"unet": {"reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1]}}, "SSD-1B"),
        (
            {"unet": {"block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 1, 2]}},
            "Vega",
        ),
        ({"unet": {"time_cond_proj_dim": 256}}, "LCM"),
        ({"unet": {"in_channels": 9}}, "inpainting"),
    ],
)
def test_folders_of_another_kind_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = folder(tmp_path, **changes)
    for asked in (StandaloneHost(path, device="cpu").check, StandaloneHost(path, device="cpu").checkpoint):
        with pytest.raises(HostError, match=says) as refused:
            asked()
        assert "changed" in str(refused.value)


def test_sdxls_own_depths_are_no_shortened_model(tmp_path: Path) -> None:
    full = {"block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10]}
    StandaloneHost(folder(tmp_path, unet=full), device="cpu").check()


def test_a_merge_against_flow_matching_ends_before_anything_is_read_or_written(tmp_path: Path) -> None:
    host = StandaloneHost(folder(tmp_path, scheduler=FLOW), device="cpu")
    out = tmp_path / "out.safetensors"
    loras = (LoraInput(str(minixl.SUBJECT), "a"), LoraInput(str(minixl.STYLE), "b", role="style"))
    request = MergeRequest(loras, str(out), settings=MergeSettings(method="instant"))
    with pytest.raises(HostError, match="flow matching"):
        pipeline.run(request, host)
    assert any("flow matching" in problem for problem in preflight(request, host).problems)
    assert not out.exists() and host._pipeline is None


def single(path: Path, *names: str, metadata: dict[str, str] | None = None, **shapes: torch.Tensor) -> Path:
    first = {f"{PREFIX}input_blocks.0.0.weight": torch.zeros(1, 4, 1, 1)}
    save_file(first | shapes | {name: torch.zeros(1) for name in (*SDXL_FILE, *names)}, path, metadata)
    return path


@pytest.mark.parametrize(
    ("name", "tensors", "metadata", "says"),
    [
        ("a", ["edm_vpred.sigma_max", "edm_vpred.sigma_min"], {}, "CosXL"),
        ("a", ["edm_mean", "edm_std"], {}, "Playground"),
        ("a", [], {"modelspec.prediction_type": "flow"}, "'flow'"),
        ("a", [], {"modelspec.predict_key": "edm"}, "'edm'"),
        ("a", [], {"modelspec.title": "My Rectified-Flow XL"}, "flow matching"),
        ("bigASP_v25", [], {}, "flow matching"),
        ("cosxl_edit", [], {}, "CosXL"),
        ("a", [f"{PREFIX}middle_block.0.x", f"{PREFIX}middle_block.2.x"], {}, "SSD-1B"),
    ],
)
def test_single_files_of_another_kind_are_refused_by_name(
    tmp_path: Path, name: str, tensors: list[str], metadata: dict[str, str], says: str
) -> None:
    path = single(tmp_path / f"{name}.safetensors", *tensors, metadata=metadata)
    for check in (StandaloneHost(path, device="cpu").check, webui_with(path).check_file):
        with pytest.raises(HostError, match=says) as refused:
            check()
        assert path.name in str(refused.value)


def webui_with(path: Path) -> WebuiHost:
    """What the WebUIs' adapters share, with a checkpoint chosen."""

    class Host(WebuiHost):
        def chosen(self) -> Any:
            return SimpleNamespace(filename=str(path))

    return Host()


def test_ordinary_single_files_are_taken_and_a_configuration_of_another_kind_is_not(tmp_path: Path) -> None:
    for name in ("sd_xl_base", "overflowXL", "rectifiedXL"):
        path = single(tmp_path / f"{name}.SAFETENSORS", metadata={"modelspec.prediction_type": "epsilon"})
        StandaloneHost(path, device="cpu").check()
        webui_with(path).check_file()
    webui_with(tmp_path / "old.ckpt").check_file()
    with pytest.raises(HostError, match="flow matching"):
        StandaloneHost(path, device="cpu", config=folder(tmp_path, scheduler=FLOW)).check()


@pytest.mark.parametrize(
    ("word", "velocity"),
    [
        ("v", True),
        ("V-Prediction", True),
        ("v_pred", True),
        ("velocity", True),
        ("EPS", False),
        ("epsilon", False),
    ],
)
def test_what_a_single_file_predicts_is_taken_in_any_usual_words(
    tmp_path: Path, word: str, velocity: bool
) -> None:
    path = single(tmp_path / "a.safetensors", metadata={"modelspec.prediction_type": word})
    StandaloneHost(path, device="cpu").check()
    assert (prediction_of({"modelspec.predict_key": word}) in VELOCITY) == velocity


@pytest.mark.parametrize(
    "gone", ["", "middle_block.1.transformer_blocks.9.", "output_blocks.4.1.transformer_blocks.1."]
)
def test_a_shortened_model_of_full_width_is_told_by_its_missing_layers(tmp_path: Path, gone: str) -> None:
    """Of SDXL's own layer names, which are compared with diffusers' UNet elsewhere, those of a block are missing."""
    layers = [module.sgm for module in unet_modules() if not gone or not module.sgm.startswith(gone)]
    path = tmp_path / "full.safetensors"
    save_file(
        {f"{PREFIX}{layer}.weight": torch.zeros(1) for layer in layers}
        | {f"{PREFIX}input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)}
        | {name: torch.zeros(1) for name in SDXL_FILE},
        path,
    )
    for check in (StandaloneHost(path, device="cpu").check, webui_with(path).check_file):
        if not gone:
            check()
        else:
            with pytest.raises(HostError, match="SSD-1B, Vega"):
                check()


@pytest.mark.parametrize("zero_snr", [False, True])
def test_v_prediction_has_the_schedule_of_its_papers(zero_snr: bool) -> None:
    """alpha_bar by numpy; zero terminal SNR as in algorithm 1 of Lin et al. (2023)."""
    from diffusers import EulerDiscreteScheduler

    config = betas(prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr)
    unet = SimpleNamespace(config=SimpleNamespace(in_channels=4), device="cpu", dtype=torch.float32)
    found = denoiser_of(SimpleNamespace(scheduler=EulerDiscreteScheduler.from_config(config), unet=unet))
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2)
    if zero_snr:
        root = np.sqrt(alphas)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        alphas = root**2
    assert found.prediction_type == "v_prediction"
    assert np.allclose(found.alphas_cumprod.numpy(), alphas, atol=1e-5)
    assert (found.alphas_cumprod[-1] < 1e-7) == zero_snr


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("juggernautXL_v9Rdphoto2Lightning", "Lightning"),
        ("sd_xl_turbo_1.0_fp16", "Turbo"),
        ("dreamshaperXL_turboDPMSDE", "Turbo"),
        ("Hyper-SDXL-1step-Unet", "Hyper"),
        ("leosamsHelloworldXL_hyper", "Hyper"),
        ("animaPencilXL_v500LCM", "LCM"),
        ("bigLust_v16DMD2", "DMD2"),
        ("sd_xl_base_1.0", ""),
        ("hyperRealXL", ""),
        ("Hyper_Realistic_v2", ""),
        ("calcmXL", ""),
    ],
)
def test_distilled_checkpoints_are_told_by_name(tmp_path: Path, name: str, kind: str) -> None:
    assert distilled_model(name) == kind
    host = StandaloneHost(single(tmp_path / f"{name}.safetensors"), device="cpu")
    assert host.distilled() == kind
    how = host.default_sampler()
    assert (how.guidance_scale == 1) == bool(kind) and (how.steps < 20) == bool(kind)


def test_distilled_checkpoints_are_told_by_scheduler_and_origin(tmp_path: Path) -> None:
    lcm = folder(tmp_path, scheduler=betas(_class_name="LCMScheduler"))
    assert StandaloneHost(lcm, device="cpu").distilled() == "LCM"
    turbo = folder(tmp_path, model_index={"_name_or_path": "stabilityai/sdxl-turbo"})
    assert StandaloneHost(turbo, device="cpu").distilled() == "Turbo"
    titled = single(tmp_path / "a.safetensors", metadata={"modelspec.title": "Some XL Lightning"})
    assert StandaloneHost(titled, device="cpu").distilled() == "Lightning"
    assert StandaloneHost(folder(tmp_path), device="cpu").distilled() == ""


def test_against_a_distilled_checkpoint_samples_are_drawn_without_guidance(tmp_path: Path) -> None:
    """The same file as one that was asked for guidance 1 and few steps against the ordinary one."""
    fast = tmp_path / "MiniXL_Lightning"
    shutil.copytree(minixl.MODEL, fast, copy_function=lambda a, b: Path(b).symlink_to(a))
    loras = (
        LoraInput(str(minixl.SUBJECT), "a sks icon"),
        LoraInput(str(minixl.STYLE), "a bell icon in szn style", role="style"),
    )
    settings = MergeSettings(method="instant", trajectories=1, sampling_steps=6, combined_weight=0.0)
    request = MergeRequest(loras, str(tmp_path / "fast.safetensors"), settings=settings)
    report = pipeline.run(request, StandaloneHost(fast, device="cpu"))
    assert any("Lightning" in warning and "guidance" in warning for warning in report.warnings)
    assert (report.settings.guidance_scale, report.settings.sampling_steps) == (1.0, 4)
    told = preflight(dataclasses.replace(request, overwrite=True), StandaloneHost(fast, device="cpu"))
    assert any("Lightning" in remark for remark in told.remarks)
    settings = dataclasses.replace(settings, guidance_scale=1.0, sampling_steps=4)
    plain = MergeRequest(loras, str(tmp_path / "plain.safetensors"), settings=settings)
    pipeline.run(plain, StandaloneHost(minixl.MODEL, device="cpu"))
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("fast", "plain"))
    assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "metadata", "kind"),
    [
        ("lcm-lora-sdxl", {}, "LCM"),
        ("sdxl_lightning_4step_lora", {}, "Lightning"),
        ("Hyper-SDXL-8steps-CFG-lora", {}, "Hyper"),
        ("dmd2_sdxl_4step_lora_fp16", {}, "DMD2"),
        ("sdxl-DPO-lora", {}, "DPO"),
        ("sd_xl_turbo_lora_v1", {}, "Turbo"),
        ("speed", {"ss_output_name": "pcm_sdxl_normalcfg"}, "PCM"),
        ("LCMs/lcm-sdxl/pytorch_lora_weights", {}, "LCM"),
        ("lightning_bolts", {}, ""),
        ("lightning_sdxl", {"ss_tag_frequency": '{"10_bolt": {"bolt": 12}}'}, ""),
        ("hyper_detailed", {}, ""),
        ("ink_style", {}, ""),
    ],
)
def test_speed_up_loras_are_told_by_name(name: str, metadata: dict[str, str], kind: str) -> None:
    assert speed_up_lora(Path(f"{name}.safetensors"), metadata) == kind


def test_a_speed_up_lora_is_warned_of_before_and_after(tmp_path: Path) -> None:
    fast = tmp_path / "lcm-lora-sdxl.safetensors"
    shutil.copy(minixl.STYLE, fast)
    loras = (LoraInput(str(minixl.SUBJECT)), LoraInput(str(fast), role="style"))
    request = MergeRequest(loras, str(tmp_path / "out.safetensors"), settings=MergeSettings(method="direct"))
    host = StandaloneHost(None, device="cpu")
    (before,) = [remark for remark in preflight(request, host).remarks if "few steps" in remark]
    assert "lcm-lora-sdxl is a LoRA of LCM" in before
    assert before in pipeline.run(request, host).warnings


ELSEWHERE = "lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_q"
"""A layer of SDXL that MiniXL, two blocks deep there, does not have."""


@pytest.mark.parametrize("method", ["direct", "instant"])
@pytest.mark.parametrize(
    ("layer", "columns", "says"),
    [
        (ELSEWHERE, 128, "does not have"),
        ("lora_unet_input_blocks_8_1_transformer_blocks_0_attn1_to_q", 1280, r"shape \(128, 1280\)"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", 768, "lora_te1.* shape"),
        ("lora_te2_text_model_encoder_layers_31_mlp_fc1", 64, "does not have"),
    ],
)
def test_a_layer_that_does_not_fit_the_checkpoint_is_named_and_not_written(
    tmp_path: Path, method: Any, layer: str, columns: int, says: str
) -> None:
    other = tmp_path / "other.safetensors"
    pair = {
        f"{layer}.lora_down.weight": torch.ones(2, columns),
        f"{layer}.lora_up.weight": torch.ones(128, 2),
    }
    save_file({**load_file(minixl.STYLE), **pair}, other)
    loras = (LoraInput(str(minixl.SUBJECT), "a"), LoraInput(str(other), "b", role="style"))
    out = tmp_path / "out.safetensors"
    request = MergeRequest(loras, str(out), settings=MergeSettings(method=method))
    host = StandaloneHost(minixl.MODEL, device="cpu")
    with pytest.raises(IncompatibleError, match=says) as refused:
        pipeline.run(request, host)
    assert layer in str(refused.value) and "other" in str(refused.value)
    assert str(refused.value) in preflight(request, host).problems
    assert not out.exists()
    without = dataclasses.replace(request, settings=MergeSettings(method="direct", text_encoders="none"))
    if layer.startswith("lora_te"):
        prepare(without, host)
    prepare(without, StandaloneHost(None, device="cpu"))
