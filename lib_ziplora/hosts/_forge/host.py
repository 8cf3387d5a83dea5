"""The part of ``Host`` that is the same in all Forges; ``Backend`` is what their versions name differently."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...denoiser import Conditioning, PredictionType, TextDeltas
from ...errors import HostError
from .. import Pen, Sampler
from .._webui import drawing, loras
from .._webui.encoding import encode_images, encode_prompts
from .._webui.guard import instance_forwards_aside
from .._webui.host import SDXL_SIZE, WebuiHost, resolution
from .._webui.kind import LATENT_CHANNELS, NEED, check_base
from ..frozen import frozen
from ..text_deltas import applied, weight_of
from .unet import ForgeDenoiser, any_inference, attributes, check_layers, normal_tensors, out_of_place

ZERO_SNR = "Zero Terminal SNR"
"""The noise schedule setting that ends in pure noise."""
OURS = "ziplora"
"""What the model's LoRA hash says after a session: no picture's, so the next one puts its LoRAs on anew."""


class Backend(Protocol):
    """Models and memory of one Forge. A patcher wraps a model together with the LoRAs that are to be on it."""

    def loaded(self) -> Any | None:
        """The model in memory, or None; never starts to load one."""
        ...

    def load_selected(self) -> Any:
        """The chosen checkpoint's model, loaded where the next picture would load it."""
        ...

    def entry(self) -> Any | None:
        """The checkpoint that a merge would use, as the WebUI lists it."""
        ...

    def check(self, model: Any) -> None:
        """Raise HostError for what only this Forge can run into."""
        ...

    def is_loaded(self, patcher: Any) -> bool:
        """Whether a patcher's model is where it computes, with this patcher's LoRAs on it."""
        ...

    def load(self, patcher: Any) -> None:
        """Bring a patcher's model where it computes, with its LoRAs put on and nobody else's."""
        ...

    def take_off(self, patcher: Any) -> None:
        """Take off the LoRAs that clones of a patcher have put on the model that they share."""
        ...

    def unload_all_but(self, patcher: Any) -> None:
        """Take all other models off the GPU; each comes back when it is used."""
        ...

    def schedule(self, model: Any) -> tuple[Tensor, PredictionType]:
        """Noise schedule, and what the UNet predicts."""
        ...

    def dtype(self, model: Any) -> torch.dtype:
        """What the UNet computes in."""
        ...

    def plain_attention(self) -> tuple[Any, str, Any]:
        """(module, name, function): where the UNet looks for its attention, and PyTorch's own."""
        ...


@dataclass(frozen=True)
class ForgeSession:
    """``Session`` over a Forge's model, clean and frozen."""

    denoiser: ForgeDenoiser
    model: Any
    entry: Any
    backend: Backend

    @property
    def native_size(self) -> int:
        """As the checkpoint's metadata say, else SDXL's."""
        return resolution(self.entry) or SDXL_SIZE

    def encode_prompts(
        self, prompts: Sequence[str], *, width: int, height: int, negative: bool, deltas: TextDeltas
    ) -> Conditioning:
        """See ``Session.encode_prompts``; IncompatibleError for a delta that fits no layer."""
        from modules import shared

        clip, size = self.model.forge_objects_original.clip, {"width": width, "height": height}
        with torch.inference_mode(False), torch.no_grad():
            self.backend.load(clip.patcher)  # before the deltas: a parameter that stands aside is not moved
            if hasattr(self.model, "set_clip_skip"):
                self.model.set_clip_skip(int(shared.opts.CLIP_stop_at_last_layers))
            with applied(deltas, text_modules(clip.cond_stage_model)):
                return encode_prompts(self.model, prompts, negative=negative, **size)

    def text_weight(self, name: str) -> Tensor | None:
        """See ``Session.text_weight``."""
        return weight_of(name, text_modules(self.model.forge_objects_original.clip.cond_stage_model))

    def encode_images(self, images: Tensor, *, seed: int) -> Tensor:
        """See ``Session.encode_images``; one image at a time, with the VAE that is loaded."""
        return encode_images(self.model, images, seed)

    def unet_alone(self) -> AbstractContextManager[None]:
        """See ``Session.unet_alone``; by the WebUI's own memory manager, which brings back what is used again."""
        if self.denoiser.device.type != "cpu":
            self.denoiser.ready()
            self.backend.unload_all_but(self.model.forge_objects_original.unet)
        return nullcontext()

    def check_alive(self) -> None:
        """Raise HostError when the WebUI has swapped or unloaded the model meanwhile."""
        if self.backend.loaded() is not self.model or self.model.sd_checkpoint_info is not self.entry:
            raise HostError(
                f"The WebUI loaded another checkpoint while {self.entry.name_for_extra} was in use. "
                "Nothing was written; start again."
            )


def text_modules(encoders: Any) -> dict[str, nn.Module]:
    """Kohya's layer name -> the module with its weight, of both CLIP text models."""
    found: dict[str, nn.Module] = {}
    for number, part in ((1, "clip_l"), (2, "clip_g")):
        transformer = getattr(encoders, part).transformer
        for path, module in transformer.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim == 2 and "embed" not in path:
                found[f"lora_te{number}_{path.replace('.', '_')}"] = module
    return found


def _widths(encoders: Any) -> dict[int, int]:
    """Kohya's number of each text model -> its width."""
    parts = {number: getattr(encoders, part, None) for number, part in ((1, "clip_l"), (2, "clip_g"))}
    return {
        number: int(part.transformer.text_model.final_layer_norm.weight.shape[0])
        for number, part in parts.items()
        if part is not None
    }


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", function))


class ForgeFamilyHost(WebuiHost):
    """A running Forge as ``Host``; a subclass names itself and its backend."""

    name = ""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def chosen(self) -> Any | None:
        """See ``WebuiHost.chosen``."""
        return self.backend.entry()

    def check(self) -> None:
        """Raise HostError when the model can't be used; one that is not loaded yet is judged by ``open``."""
        entry, model = self.backend.entry(), self.backend.loaded()
        if entry is None:
            raise HostError(f"The WebUI has no checkpoint. {NEED}")
        if model is None or model.sd_checkpoint_info.filename != entry.filename:
            return
        name = entry.name_for_extra
        if not getattr(model, "is_sdxl", False):
            raise HostError(f"{name} is not SDXL. {NEED}")
        unet = model.forge_objects_original.unet.model.diffusion_model
        self.check_file()
        check_layers(name, unet)
        check_base(name, unet, _widths(model.forge_objects_original.clip.cond_stage_model))
        self.backend.check(model)

    def facts(self) -> Mapping[str, str]:
        """See ``TellsFacts``."""
        module, name, ours = self.backend.plain_attention()
        attention = f"{_name(getattr(module, name))} ({_name(ours)} for a merge)"
        return {**super().facts(), "attention": attention}

    @contextmanager
    def open(self) -> Iterator[ForgeSession]:
        """The clean, frozen model of the chosen checkpoint; the caller holds the WebUI's lock."""
        model = self.backend.load_selected()
        self.check()
        patcher = model.forge_objects_original.unet
        unet: nn.Module = patcher.model.diffusion_model
        alphas, prediction = self.backend.schedule(model)
        with ExitStack() as stack:
            for step in (
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))),
                attributes(self.backend.plain_attention()),
            ):
                stack.enter_context(step)
            self._clean(model)
            ready = self._ready(patcher, unet)
            ready()
            for step in (instance_forwards_aside(unet), out_of_place(unet), frozen([unet])):
                stack.enter_context(step)
            denoiser = ForgeDenoiser(
                unet,
                alphas.detach().clone().float().cpu(),
                prediction,
                LATENT_CHANNELS,
                torch.device(patcher.load_device),
                self.backend.dtype(model),
                ready,
            )
            session = ForgeSession(denoiser, model, model.sd_checkpoint_info, self.backend)
            try:
                yield session
            except RuntimeError:
                session.check_alive()  # a model that was swapped in mid-forward explains the error better
                raise

    def _ready(self, patcher: Any, unet: nn.Module) -> Callable[[], None]:
        """See ``ForgeDenoiser.ready``."""

        def ready() -> None:
            with torch.inference_mode(False):
                if not self.backend.is_loaded(patcher):
                    self.backend.load(patcher)
                if any_inference(unet):
                    normal_tensors(unet)

        return ready

    def _clean(self, model: Any) -> None:
        """The checkpoint's own weights in UNet and text encoders; the next picture puts on what it names."""
        original = model.forge_objects_original
        model.forge_objects = original.shallow_copy()
        model.forge_objects_after_applying_lora = original.shallow_copy()
        model.current_lora_hash = OURS
        with torch.inference_mode(False), torch.no_grad():
            for patcher in (original.clip.patcher, original.unet):
                self.backend.take_off(patcher)

    def refresh(self, path: Path) -> None:
        """List the LoRAs anew and forget what a replaced file has left behind; under the lock."""
        networks = loras.extension()
        if networks is None:
            return
        getattr(networks.load_lora_state_dict, "cache_clear", lambda: None)()
        model = self.backend.loaded()
        if model is not None:
            self._clean(model)
        loras.listed_again(networks, path)

    def check_drawing(self) -> None:
        """Raise HostError when the WebUI can't draw with LoRAs of SDXL."""
        self.check()
        drawing.check()

    @contextmanager
    def drawing(self, sampler: Sampler, count: int) -> Iterator[Pen]:
        """See ``Draws.drawing``; pictures are drawn as the txt2img tab draws them."""
        model = self.backend.load_selected()
        self.check_drawing()
        with drawing.pen(sampler, count, self.picture_size() or SDXL_SIZE) as pen:
            try:
                yield pen
            finally:
                if self.backend.loaded() is model:
                    self._clean(model)
