"""The host without a WebUI: diffusers, a folder or file as checkpoint, folders of LoRAs."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Conditioning, Denoiser, TextDeltas
from ..errors import HostError, LoraFileError, OutputError
from ..names import validate_output
from . import CheckpointInfo, InstalledLora, Pen, Progress, Sampler, Session, checkpoint_files
from ._diffusers import draw, folders, model, text
from ._diffusers.folders import SUFFIX as SUFFIX
from .frozen import frozen
from .offload import parked
from .text_deltas import applied, weight_of

DISTILLED_STEPS = 8
"""Of a picture with a Lightning, Hyper, Turbo, LCM or DMD2 checkpoint."""
MODEL_SUFFIXES = (SUFFIX, ".ckpt", ".pt", ".pth", ".bin")


@dataclass
class DiffusersSession:
    """``Session`` over a diffusers pipeline whose parameters are frozen."""

    pipeline: Any
    denoiser: Denoiser

    @property
    def native_size(self) -> int:
        """See ``Session.native_size``; from the UNet's configuration."""
        return int(self.pipeline.unet.config.sample_size) * int(self.pipeline.vae_scale_factor)

    def encode_prompts(
        self, prompts: Sequence[str], *, width: int, height: int, negative: bool, deltas: TextDeltas
    ) -> Conditioning:
        """See ``Session.encode_prompts``; IncompatibleError for a delta that fits no layer."""
        modules = text.text_modules([self.pipeline.text_encoder, self.pipeline.text_encoder_2])
        with applied(deltas, modules):
            return text.encode(self.pipeline, prompts, width=width, height=height, negative=negative)

    def text_weight(self, name: str) -> Tensor | None:
        """See ``Session.text_weight``."""
        return weight_of(name, text.text_modules([self.pipeline.text_encoder, self.pipeline.text_encoder_2]))

    @torch.no_grad()
    def encode_images(self, images: Tensor, *, seed: int) -> Tensor:
        """See ``Session.encode_images``; one image at a time, in fp32."""
        vae = self.pipeline.vae
        generator = torch.Generator("cpu").manual_seed(seed)
        latents = []
        for image in images.split(1):
            pixels = image.to(vae.device, torch.float32) * 2 - 1
            latents.append(vae.encode(pixels).latent_dist.sample(generator) * vae.config.scaling_factor)
        return torch.cat(latents).to(self.denoiser.device, torch.float32)

    def unet_alone(self) -> AbstractContextManager[None]:
        """See ``Session.unet_alone``."""
        return parked([part for part in _parts(self.pipeline) if part is not self.pipeline.unet])

    def check_alive(self) -> None:
        """Nothing else can touch the model here."""


class StandaloneHost:
    """A diffusers checkpoint and folders of LoRAs as ``Host``.

    Args:
        checkpoint: a diffusers folder or a ``.safetensors`` file; None serves what needs no
            model (listing, direct merges).
        lora_dirs: folders whose ``.safetensors`` files are listed, subfolders included; merged
            files given by name go into the first.
        device: ``auto``, ``cuda``, ``mps``, ``cpu``, ``cuda:1``, ...
        dtype: ``auto`` (fp16 on CUDA, else fp32), ``fp16``, ``bf16`` or ``fp32``.
        config: a diffusers folder whose configuration files describe a single-file checkpoint.
        strict: take names only, no paths, for LoRAs and for the output.
        pictures: a folder for the pictures that are drawn; None saves none.
    """

    name = "standalone"

    def __init__(
        self,
        checkpoint: Path | None,
        lora_dirs: Sequence[Path] = (),
        device: str = "auto",
        dtype: str = "auto",
        *,
        config: Path | None = None,
        strict: bool = False,
        pictures: Path | None = None,
    ) -> None:
        self.device = model.pick_device(device)
        self.dtype = model.pick_dtype(dtype, self.device)
        self.progress: Progress | None = None
        self._checkpoint = checkpoint
        self._lora_dirs = tuple(lora_dirs)
        self._config = config
        self._strict = strict
        self._pictures = pictures
        self._lock = threading.Lock()
        self._interrupt = threading.Event()
        self._finish = threading.Event()
        self._pipeline: Any = None
        self._info: CheckpointInfo | None = None

    def loras(self) -> Sequence[InstalledLora]:
        """The ``.safetensors`` files below the LoRA folders; of one name several: ``sub/name``."""
        return folders.installed(self._lora_dirs)

    def resolve(self, lora: str) -> Path:
        """An existing file, or an installed LoRA's name (names only when strict).

        Raises:
            LoraFileError: neither, or a name that several have.
        """
        stem = lora[: -len(SUFFIX)] if lora.lower().endswith(SUFFIX) else lora
        looks_like_path = any(mark in lora for mark in "/\\") or Path(lora).suffix.lower() in MODEL_SUFFIXES
        if looks_like_path and not self._strict and folders.there(Path(lora).is_file):
            return Path(lora)
        installed = {entry.name: entry for entry in self.loras()}
        found = installed.get(lora) or installed.get(stem)
        if found is not None:
            if found.problem:
                raise LoraFileError(found.problem)
            return found.path
        same = [name for name, entry in installed.items() if entry.path.stem == stem]
        if same:
            raise LoraFileError(f"{len(same)} LoRAs are named {lora}. Choose one of them: {', '.join(same)}.")
        if looks_like_path and not self._strict and Path(lora).name != lora:
            raise LoraFileError(f"There is no file {lora}; check the path.")
        near = difflib.get_close_matches(lora, installed, n=3)
        advice = f"Did you mean {', '.join(near)}?" if near else self._where()
        raise LoraFileError(f"There is no LoRA named {lora}. {advice}")

    def output_path(self, name: str) -> Path:
        """A name goes below the first LoRA folder; a path (unless strict) is taken as it is.

        Raises:
            OutputError: a name that can't be used or that another folder's LoRA has, a folder
                that doesn't exist.
        """
        is_path = name.endswith(SUFFIX) or name.startswith(".") or Path(name).is_absolute()
        if is_path and not self._strict:
            return _path_from(name)
        path = validate_output(name)
        if not self._lora_dirs:
            raise OutputError(
                f"There is no LoRA folder to put {name} into; give a path that ends in {SUFFIX}."
            )
        target = self._lora_dirs[0] / f"{path}{SUFFIX}"
        same = [entry.path for entry in self.loras() if entry.path.stem.casefold() == path.name.casefold()]
        if same and target not in same:
            raise OutputError(f"The name {name} means another LoRA, {same[0]}; choose another name.")
        return target

    def checkpoint(self) -> CheckpointInfo:
        """Name and sha256 of the checkpoint file, or of the safetensors of a folder's UNet."""
        if self._checkpoint is None:
            return CheckpointInfo("", "")
        if self._info is None:
            checkpoint_files.check_checkpoint(self._checkpoint, self._config)
            path = self._checkpoint.resolve()
            name = path.name if path.is_dir() else path.stem
            self._info = CheckpointInfo(name, checkpoint_files.sha256_of(checkpoint_files.unet_files(path)))
        return self._info

    def check(self) -> None:
        """Raise HostError when there is no checkpoint or it is no SDXL base model."""
        self._require_checkpoint()

    def _require_checkpoint(self) -> Path:
        if self._checkpoint is None:
            raise HostError(
                "There is no checkpoint to learn against; give an SDXL one (--checkpoint DIR_OR_FILE) "
                "or use the method direct, which needs none."
            )
        if self._pipeline is None:
            checkpoint_files.check_checkpoint(self._checkpoint, self._config)
        return self._checkpoint

    def pipeline(self) -> Any:
        """diffusers' pipeline, loaded on first use and kept."""
        path = self._require_checkpoint()
        if self._pipeline is None:
            self._pipeline = model.load_pipeline(path, self._config, self.device, self.dtype)
        return self._pipeline

    def picture_size(self) -> int | None:
        """See ``KnowsSize``; from the configuration files of a diffusers folder."""
        folder = self._config or self._checkpoint
        if folder is None:
            return None
        try:
            files = [folder / part / "config.json" for part in ("unet", "vae")]
            unet, vae = (json.loads(file.read_text(encoding="utf-8")) for file in files)
            return int(unet["sample_size"]) << (len(vae["block_out_channels"]) - 1)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def layer_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See ``KnowsLayers``; from the headers of the checkpoint's files."""
        return checkpoint_files.layer_shapes(self._checkpoint)

    def distilled(self) -> str:
        """See ``KnowsLayers``; by the checkpoint's names, metadata and scheduler."""
        return checkpoint_files.distillation(self._checkpoint)

    @contextmanager
    def open(self) -> Iterator[Session]:
        """The pipeline's models frozen and in evaluation mode; flags restored afterwards."""
        pipeline = self.pipeline()
        with frozen(_parts(pipeline)):
            yield DiffusersSession(pipeline, model.denoiser_of(pipeline))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One job at a time; a new job starts with the interrupt flags down."""
        with self._lock:
            self._interrupt.clear()
            self._finish.clear()
            yield

    def report(self, progress: Progress) -> None:
        """Keep the newest progress in ``self.progress``."""
        self.progress = progress

    def interrupted(self) -> bool:
        """Whether ``interrupt`` was called since the job began."""
        return self._interrupt.is_set()

    def finish_requested(self) -> bool:
        """Whether ``finish_now`` was called since the job began."""
        return self._finish.is_set()

    def interrupt(self) -> None:
        """Ask the running job to stop."""
        self._interrupt.set()

    def finish_now(self) -> None:
        """Ask the running job to write what there is."""
        self._finish.set()

    def refresh(self, path: Path) -> None:
        """Nothing to do: ``loras`` reads the folders afresh."""

    def samplers(self) -> Sequence[str]:
        """See ``Draws.samplers``."""
        return list(draw.SAMPLERS)

    def default_sampler(self) -> Sampler:
        """See ``Draws.default_sampler``; few steps and no guidance for a distilled checkpoint."""
        return Sampler(steps=DISTILLED_STEPS, guidance_scale=1.0) if self.distilled() else Sampler()

    def check_drawing(self) -> None:
        """Raise HostError when there is no checkpoint or it is no SDXL base model."""
        if self._checkpoint is None:
            raise HostError(
                "There is no checkpoint to draw with; give an SDXL one (--checkpoint DIR_OR_FILE)."
            )
        self._require_checkpoint()

    @contextmanager
    def drawing(self, sampler: Sampler, count: int) -> Iterator[Pen]:
        """See ``Draws.drawing``; LoRAs act through hooks, so the weights stay what they are."""
        self.check_drawing()
        plain, own = Sampler(), self.default_sampler()
        if (sampler.steps, sampler.guidance_scale) == (plain.steps, plain.guidance_scale):  # nobody's choice
            sampler = dataclasses.replace(sampler, steps=own.steps, guidance_scale=own.guidance_scale)
        pipeline, name = self.pipeline(), self._checkpoint.stem if self._checkpoint else ""
        with (
            frozen(_parts(pipeline)),
            draw.drawing(pipeline, name, sampler, self.resolve, self._pictures) as pen,
        ):
            yield pen

    def data_folder(self) -> Path | None:
        """Where this system's programs keep what they can do without; None for a user without a home."""
        own = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
        try:
            return (Path(own) if own else Path.home() / ".cache") / "ziplora"
        except RuntimeError:
            return None

    def facts(self) -> Mapping[str, str]:
        """See ``TellsFacts``."""
        import diffusers
        import transformers

        return {"diffusers": diffusers.__version__, "transformers": transformers.__version__}

    def _where(self) -> str:
        where = ", ".join(str(folder) for folder in self._lora_dirs)
        return f"Installed LoRAs are looked for in {where}." if where else "Give the path of its file."


def _parts(pipeline: Any) -> list[nn.Module]:
    return [pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2]


def _path_from(name: str) -> Path:
    path = Path(name)
    if path.suffix != SUFFIX:
        raise OutputError(f"The output {name} must end in {SUFFIX}.")
    if not folders.there(path.parent.is_dir):
        raise OutputError(f"The folder {path.parent} of the output does not exist; create it first.")
    if folders.there(path.is_dir):
        raise OutputError(f"The output {name} is a folder; give a file name that ends in {SUFFIX}.")
    return path
