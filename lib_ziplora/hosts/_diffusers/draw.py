"""Drawing with diffusers' pipeline: LoRAs through hooks, the checkpoint's scheduler or another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import HostError, OutputError
from ...lora.algebra import scale
from ...lora.formats.keys import canonical_modules, canonical_unet_name
from ...lora.io.read import read_lora
from ...lora.layer import Lora
from ...ziplora.hooks import adapters, check_fit, lora_hooks
from .. import Drawn, OnStep, Pen, Picture, Sampler
from ..text_deltas import applied, weight_of
from . import text
from .model import SIZE_IDS

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "The checkpoint's own": ("", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DDIM": ("DDIMScheduler", {}),
}
"""Name -> diffusers' class and what is added to the checkpoint's own configuration."""

EXTRA_PARAMETERS = {"w_norm": "weight", "b_norm": "bias", "diff_b": "bias"}
"""Kohya's name of a difference that is no low-rank layer -> the module's parameter."""

Resolve = Callable[[str], Path]


@contextmanager
def drawing(
    pipeline: Any, checkpoint: str, sampler: Sampler, resolve: Resolve, folder: Path | None
) -> Iterator[Pen]:
    """A pen over a pipeline, which is bit for bit what it was afterwards.

    Args:
        pipeline: its parameters are frozen by the caller.
        checkpoint: its name.
        sampler: how to draw.
        resolve: from a LoRA's name to its file.
        folder: where pictures are saved; None saves none.

    Raises:
        HostError: there is no such sampler.
    """
    with scheduler(pipeline, sampler.name), silent(pipeline), ExitStack() as wardrobe:
        yield DiffusersPen(pipeline, checkpoint, sampler, resolve, folder, wardrobe)


@dataclass
class DiffusersPen:
    """``Pen`` over a pipeline; the LoRAs of the picture before stay on while the next has the same."""

    pipeline: Any
    checkpoint: str
    sampler: Sampler
    resolve: Resolve
    folder: Path | None
    wardrobe: ExitStack
    worn: tuple[tuple[str, float], ...] = field(default=(), init=False)

    @property
    def font(self) -> Path | None:
        """diffusers brings no font."""
        return None

    def draw(self, picture: Picture, on_step: OnStep) -> Drawn:
        """See ``Pen.draw``; the noise is drawn on the CPU, so that a seed means the same everywhere."""
        self._wear(picture.loras)
        width, height = self._size()
        pixels = self._decode(self._sample(picture, width, height, on_step))
        if not torch.isfinite(pixels).all():
            raise HostError(
                "The picture holds NaN or infinity. Run the model in bf16 or fp32 instead of fp16."
            )
        image = self.pipeline.image_processor.postprocess(pixels, output_type="pil")[0]
        infotext = self._infotext(picture, width, height)
        image.info["parameters"] = infotext
        return Drawn(image, infotext, self._save(image, infotext, f"{picture.seed}"))

    def keep(self, grid: Any, infotext: str) -> Path | None:
        """See ``Pen.keep``."""
        return self._save(grid, infotext, "grid")

    def _wear(self, loras: tuple[tuple[str, float], ...]) -> None:
        if loras == self.worn:
            return
        self.worn = ()
        self.wardrobe.close()
        for name, weight in loras:
            self.wardrobe.enter_context(worn(self.pipeline, self.resolve(name), weight))
        self.worn = loras

    def _size(self) -> tuple[int, int]:
        native = int(self.pipeline.unet.config.sample_size) * int(self.pipeline.vae_scale_factor)
        return self.sampler.width or native, self.sampler.height or native

    @torch.no_grad()
    def _sample(self, picture: Picture, width: int, height: int, on_step: OnStep) -> Tensor:
        def told(_pipeline: Any, _step: int, _time: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
            on_step()
            return {}

        unet = self.pipeline.unet
        prompts = [picture.prompt, self.sampler.negative_prompt]
        cond = text.encode(self.pipeline, prompts, width=width, height=height, negative=True)
        pooled = cond.vector[:, :-SIZE_IDS].to(unet.dtype)
        latents: Tensor = self.pipeline(
            prompt_embeds=cond.context[:1],
            negative_prompt_embeds=cond.context[1:],
            pooled_prompt_embeds=pooled[:1],
            negative_pooled_prompt_embeds=pooled[1:],
            width=width,
            height=height,
            num_inference_steps=self.sampler.steps,
            guidance_scale=self.sampler.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(picture.seed),
            output_type="latent",
            callback_on_step_end=told,
        ).images
        return latents

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        """(1, 3, height, width) in [-1, 1], in the VAE's own precision."""
        vae = self.pipeline.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor
        means, deviations = (vae.config.get(name) for name in ("latents_mean", "latents_std"))
        if means is not None and deviations is not None:
            mean, deviation = (torch.tensor(v).view(1, -1, 1, 1).to(scaled) for v in (means, deviations))
            scaled = scaled * deviation + mean
        pixels: Tensor = vae.decode(scaled, return_dict=False)[0]
        return pixels

    def _infotext(self, picture: Picture, width: int, height: int) -> str:
        """In the WebUI's form, so that its PNG Info reads it."""
        sampler, scheduler = self.sampler, type(self.pipeline.scheduler).__name__
        about = [
            f"Steps: {sampler.steps}",
            f"Sampler: {_known(sampler.name) if sampler.name else scheduler.removesuffix('Scheduler')}",
            f"CFG scale: {sampler.guidance_scale:g}",
            f"Seed: {picture.seed}",
            f"Size: {width}x{height}",
            f"Model: {self.checkpoint}",
        ]
        negative = [f"Negative prompt: {sampler.negative_prompt}"] if sampler.negative_prompt else []
        return "\n".join([picture.tagged, *negative, ", ".join(about)])

    def _save(self, image: Any, infotext: str, name: str) -> Path | None:
        if self.folder is None:
            return None
        from PIL import PngImagePlugin

        about = PngImagePlugin.PngInfo()
        about.add_text("parameters", infotext)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _next_file(self.folder, name).open("xb") as stream:
                image.save(stream, "png", pnginfo=about)
                return Path(stream.name)
        except OSError as error:
            raise OutputError(
                f"The pictures can't be saved in {self.folder} ({error.strerror or error}). Make room, or choose "
                "another folder for them."
            ) from error


def _next_file(folder: Path, name: str) -> Path:
    """``00012-name.png``, numbered on from what is there."""
    numbers = [int(path.name[:5]) for path in folder.glob("*.png") if path.name[:5].isdigit()]
    return folder / f"{max(numbers, default=0) + 1:05}-{name}.png"


def _known(name: str) -> str:
    """The name of a sampler; HostError when there is none of that name."""
    if name not in SAMPLERS:
        raise HostError(f"There is no sampler {name!r}; choose one of {', '.join(SAMPLERS)}.")
    return name


@contextmanager
def scheduler(pipeline: Any, name: str) -> Iterator[None]:
    """A fresh scheduler inside the block, of the checkpoint's noise schedule; the pipeline's own after it.

    Raises:
        HostError: there is no such sampler.
    """
    import diffusers

    kind, changes = SAMPLERS[_known(name or next(iter(SAMPLERS)))]
    before = pipeline.scheduler
    made = getattr(diffusers, kind) if kind else type(before)
    pipeline.scheduler = made.from_config(before.config, **changes)
    try:
        yield
    finally:
        pipeline.scheduler = before


@contextmanager
def silent(pipeline: Any) -> Iterator[None]:
    """No bar of diffusers' own in the terminal."""
    before = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)


@contextmanager
def worn(pipeline: Any, file: Path, weight: float) -> Iterator[None]:
    """A LoRA on the UNet (through hooks) and in the text encoders, taken off again bit for bit.

    Raises:
        ZipLoraError: the file can't be read, or does not fit the checkpoint.
    """
    modules = canonical_modules(pipeline.unet)
    encoders = text.text_modules([pipeline.text_encoder, pipeline.text_encoder_2])
    lora = read_lora(file, lambda name: weight_of(name, encoders if name.startswith("lora_te") else modules))
    layers = {name: scale(layer, weight) for name, layer in lora.unet_layers().items()}
    check_fit(modules, layers, lora.name)
    device, dtype = pipeline.unet.device, pipeline.unet.dtype
    branches = adapters(layers, device, dtype)
    deltas = {name: scale(layer, weight).delta for name, layer in lora.text_layers().items()}
    with (
        lora_hooks(modules, branches),
        applied(deltas, encoders),
        extras_on(pipeline.unet, lora, weight),
    ):
        yield


@contextmanager
def extras_on(unet: nn.Module, lora: Lora, weight: float) -> Iterator[None]:
    """A LoRA's differences of the UNet's norms and biases inside the block."""
    places: Sequence[tuple[nn.Parameter, Tensor]] = list(_places(unet, lora)) if lora.extras else ()
    before = [parameter.detach().clone() for parameter, _ in places]
    try:
        with torch.no_grad():
            for parameter, difference in places:
                parameter.add_(weight * difference.to(parameter))
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), value in zip(places, before, strict=True):
                parameter.copy_(value)


def _places(unet: nn.Module, lora: Lora) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """The UNet's parameters that the extras belong to; one without a place is left out."""
    modules = {canonical_unet_name(path): module for path, module in unet.named_modules()}
    for key, difference in lora.extras.items():
        name, _, part = key.rpartition(".")
        parameter = getattr(modules.get(name), EXTRA_PARAMETERS.get(part, ""), None)
        if isinstance(parameter, nn.Parameter) and parameter.shape == difference.shape:
            yield parameter, difference
