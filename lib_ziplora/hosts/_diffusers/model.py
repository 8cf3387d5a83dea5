"""Loading an SDXL checkpoint with diffusers, and its UNet as a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...denoiser import Conditioning, PredictionType
from ...errors import HostError
from ...lora.io.container import header_of
from ..checkpoint_files import VELOCITY, check_schedule, prediction_of, variant_of
from .sdxl_config import sdxl_folder

SIZE_IDS = 6
CHECKPOINTED = ("BasicTransformerBlock", "ResnetBlock2D")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class DiffusersDenoiser:
    """A diffusers SDXL UNet as ``Denoiser``; ``vector`` is (pooled text, six size ids)."""

    unet: nn.Module
    alphas_cumprod: Tensor
    prediction_type: PredictionType
    latent_channels: int
    device: torch.device
    dtype: torch.dtype

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The UNet's raw output in fp32; see ``Denoiser.predict``."""
        pooled, size_ids = cond.vector[:, :-SIZE_IDS], cond.vector[:, -SIZE_IDS:]
        output: Tensor = self.unet(
            x_t.to(self.device, self.dtype),
            t.to(self.device),
            encoder_hidden_states=cond.context.to(self.device, self.dtype),
            added_cond_kwargs={"text_embeds": pooled.to(self.dtype), "time_ids": size_ids},
            return_dict=False,
        )[0]
        return output.float()

    def checkpoint_blocks(self) -> Sequence[nn.Module]:
        """The transformer and residual blocks, recognised by the name of their class."""
        return [m for m in self.unet.modules() if type(m).__name__ in CHECKPOINTED]


def denoiser_of(pipeline: Any) -> DiffusersDenoiser:
    """The pipeline's UNet with the noise schedule of its scheduler's configuration.

    Raises:
        HostError: another noise than SDXL's, or something else is predicted than the noise or v.
    """
    from diffusers import DDPMScheduler

    scheduler = pipeline.scheduler
    check_schedule("the checkpoint", scheduler.config, type(scheduler).__name__)
    kind: PredictionType = scheduler.config.get("prediction_type") or "epsilon"
    schedule = DDPMScheduler.from_config(scheduler.config)
    unet = pipeline.unet
    return DiffusersDenoiser(
        unet=unet,
        alphas_cumprod=schedule.alphas_cumprod.float().cpu(),
        prediction_type=kind,
        latent_channels=unet.config.in_channels,
        device=unet.device,
        dtype=unet.dtype,
    )


def pick_device(device: str) -> torch.device:
    """``auto`` is CUDA, then Apple's MPS, then the CPU; HostError for one that isn't there."""
    if device != "auto":
        return _named_device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _named_device(device: str) -> torch.device:
    try:
        named = torch.device(device)
    except RuntimeError as error:
        raise HostError(f"There is no device {device!r}; give auto, cuda, cuda:1, mps or cpu.") from error
    if named.type == "cuda" and not 0 <= (named.index or 0) < torch.cuda.device_count():
        raise HostError(
            f"There is no CUDA device {named} here: this PyTorch sees {torch.cuda.device_count()} of them. "
            "Give auto or cpu, or install a PyTorch that was built for the GPU."
        )
    return named


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is fp16 on CUDA and fp32 elsewhere."""
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise HostError(f"dtype must be auto or one of {', '.join(DTYPES)}, not {dtype!r}.")
    return DTYPES[dtype]


def load_pipeline(path: Path, config: Path | None, device: torch.device, dtype: torch.dtype) -> Any:
    """diffusers' SDXL pipeline, from files on this machine only; the VAE stays in fp32.

    ``config`` is a diffusers folder that describes a single-file checkpoint; without it SDXL's own is taken.

    Raises:
        HostError: diffusers is missing, or the checkpoint can't be loaded.
    """
    try:
        from diffusers import StableDiffusionXLPipeline
    except ImportError as error:
        raise HostError(
            "diffusers and transformers are needed to run without the WebUI: "
            "pip install diffusers transformers accelerate"
        ) from error
    options: dict[str, Any] = {"torch_dtype": dtype, "local_files_only": True, "add_watermarker": False}
    try:
        if path.is_dir():
            variant = variant_of(sorted((path / "unet").glob("*.safetensors")))
            pipeline = StableDiffusionXLPipeline.from_pretrained(
                str(path), use_safetensors=True, variant=variant, **options
            )
        else:
            with nullcontext(config) if config else sdxl_folder() as folder:
                pipeline = StableDiffusionXLPipeline.from_single_file(
                    str(path.resolve()), config=str(folder), **options
                )
            _adopt_schedule_marks(pipeline, path)
        if pipeline.vae.dtype != torch.float32:
            pipeline.vae.to(torch.float32)
        return pipeline.to(device)
    except HostError:
        raise
    except Exception as error:  # diffusers and transformers raise every kind of error here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HostError(f"diffusers can't load {path.name}: {reason}") from error


def _adopt_schedule_marks(pipeline: Any, path: Path) -> None:
    """Single files say v-prediction and zero terminal SNR by tensors called ``v_pred`` and ``ztsnr``, or metadata."""
    header = header_of(path)
    marks: dict[str, Any] = {}
    if "v_pred" in header.tensors or prediction_of(header.metadata) in VELOCITY:
        marks["prediction_type"] = "v_prediction"
    if "ztsnr" in header.tensors:
        marks["rescale_betas_zero_snr"] = True
    if marks:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **marks)
