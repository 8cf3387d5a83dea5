"""Finding, judging and loading an SDXL checkpoint with diffusers, and its UNet as a denoiser."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...denoiser import Conditioning, PredictionType
from ...errors import HostError

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
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
        HostError: the UNet predicts something other than the noise or v.
    """
    from diffusers import DDPMScheduler

    kind = pipeline.scheduler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise HostError(
            f"The checkpoint's scheduler says prediction_type {kind!r}; epsilon or v_prediction is needed."
        )
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
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


def check_checkpoint(path: Path) -> None:
    """Refuse, from its configuration or header alone, what is no SDXL base checkpoint.

    Raises:
        HostError: not there, not safetensors, SD 1.5 or 2, the refiner, an inpainting model.
    """
    if path.is_dir():
        _check_folder(path)
    elif path.is_file():
        _check_file(path)
    else:
        raise HostError(f"There is no checkpoint at {path}; give a diffusers folder or a .safetensors file.")


def _check_folder(path: Path) -> None:
    index = _read_json(path / "model_index.json")
    unet = _read_json(path / "unet" / "config.json")
    has = [index.get(part) not in (None, [None, None]) for part in ("text_encoder", "text_encoder_2")]
    _judge(
        path,
        text_encoders=(has[0], has[1]),
        size_conditioning=unet.get("addition_embed_type") == "text_time",
        channels=unet.get("in_channels", 4),
    )
    unet_files(path)


def _check_file(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise HostError(
            f"{path.name} is not a .safetensors file; convert the checkpoint to safetensors first."
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            names = set(file.keys())
            stem = "model.diffusion_model.input_blocks.0.0.weight"
            channels = file.get_slice(stem).get_shape()[1] if stem in names else None
    except (SafetensorError, OSError, ValueError) as error:
        raise HostError(f"{path.name} can't be read as safetensors ({error}); download it again.") from error
    if channels is None:
        raise HostError(
            f"{path.name} holds no Stable Diffusion UNet; is it a LoRA or a part of a checkpoint?"
        )
    _judge(
        path,
        text_encoders=(
            any(n.startswith("conditioner.embedders.0.transformer.") for n in names),
            any(n.startswith("conditioner.embedders.1.model.") for n in names)
            or any(n.startswith("conditioner.embedders.0.model.") for n in names),
        ),
        size_conditioning="model.diffusion_model.label_emb.0.0.weight" in names,
        channels=channels,
    )


def _judge(path: Path, *, text_encoders: tuple[bool, bool], size_conditioning: bool, channels: int) -> None:
    need = "Choose an SDXL base checkpoint."
    if text_encoders == (False, True):
        raise HostError(f"{path.name} is the SDXL refiner, which LoRAs are not made for. {need}")
    if text_encoders != (True, True) or not size_conditioning:
        raise HostError(f"{path.name} is not SDXL (no second text encoder or no size conditioning). {need}")
    if channels != 4:
        raise HostError(
            f"{path.name} takes {channels} input channels instead of 4: an inpainting or editing model. {need}"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise HostError(
            f"{path.parent} has no {path.name}: it is no diffusers checkpoint. "
            "Give the folder that holds model_index.json, or a .safetensors file."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise HostError(f"{path} can't be read ({error}).") from error
    if not isinstance(data, dict):
        raise HostError(f"{path} is no diffusers configuration: it holds no JSON object.")
    return data


def unet_files(path: Path) -> list[Path]:
    """The checkpoint file itself, or the safetensors files of a folder's UNet (one variant).

    Raises:
        HostError: the folder's UNet is not stored as safetensors.
    """
    if path.is_file():
        return [path]
    files = sorted((path / "unet").glob("*.safetensors"))
    variant = variant_of(files)
    files = [f for f in files if (".fp16." in f.name) == (variant == "fp16")]
    if not files:
        raise HostError(
            f"{path / 'unet'} holds no .safetensors file; only safetensors checkpoints are loaded."
        )
    return files


def variant_of(files: Sequence[Path]) -> str | None:
    """``fp16`` where a folder holds nothing but that variant."""
    return "fp16" if files and all(".fp16." in f.name for f in files) else None


def sha256_of(files: Sequence[Path]) -> str:
    """sha256, lower-case hex, of the files' bytes one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def load_pipeline(path: Path, config: Path | None, device: torch.device, dtype: torch.dtype) -> Any:
    """diffusers' SDXL pipeline, from files on this machine only; the VAE stays in fp32.

    ``config`` is a diffusers folder that describes a single-file checkpoint; without it
    SDXL's own in the Hugging Face cache is taken.

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
            folder = config or _cached_config()
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


def _cached_config() -> str:
    """Folder of SDXL's configuration files in the Hugging Face cache; nothing is downloaded."""
    from huggingface_hub import snapshot_download

    try:
        folder: str = snapshot_download(SDXL, local_files_only=True)
    except Exception as error:
        raise HostError(
            "A single-file checkpoint holds no configuration, and SDXL's is not on this machine. Give a diffusers "
            "folder of any SDXL model as the checkpoint's configuration (--checkpoint-config DIR), or fetch it once: "
            f'huggingface-cli download {SDXL} --include "*.json" "*.txt"'
        ) from error
    return folder


def _adopt_schedule_marks(pipeline: Any, path: Path) -> None:
    """Single files say v-prediction and zero terminal SNR by tensors called ``v_pred`` and ``ztsnr``."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
    marks: dict[str, Any] = {}
    if "v_pred" in names:
        marks["prediction_type"] = "v_prediction"
    if "ztsnr" in names:
        marks["rescale_betas_zero_snr"] = True
    if marks:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **marks)
