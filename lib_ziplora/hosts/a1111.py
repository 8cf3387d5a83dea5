"""The Automatic1111 Stable Diffusion WebUI as host: its model, its LoRAs, its queue and progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..denoiser import Conditioning, TextDeltas
from . import Pen, Sampler
from ._a1111 import guard, loras, model, text
from ._webui import drawing
from ._webui.encoding import encode_images
from ._webui.host import SDXL_SIZE, WebuiHost, resolution
from .offload import parked


@dataclass(frozen=True)
class A1111Session:
    """``Session`` over the WebUI's model, clean and frozen."""

    denoiser: model.SgmDenoiser
    identity: model.Identity

    @property
    def native_size(self) -> int:
        """As the checkpoint's metadata say, else SDXL's: the WebUI knows nothing else about it."""
        return resolution(self.identity.entry) or SDXL_SIZE

    def encode_prompts(
        self, prompts: Sequence[str], *, width: int, height: int, negative: bool, deltas: TextDeltas
    ) -> Conditioning:
        """See ``Session.encode_prompts``; IncompatibleError for a delta that fits no layer."""
        size = {"width": width, "height": height}
        return text.encode(self.identity.model, prompts, **size, negative=negative, deltas=deltas)

    def text_weight(self, name: str) -> Tensor | None:
        """See ``Session.text_weight``."""
        slot = text.slots(self.identity.model).get(name)
        return None if slot is None else slot.weight.detach().cpu()

    def encode_images(self, images: Tensor, *, seed: int) -> Tensor:
        """See ``Session.encode_images``; one image at a time, with the VAE that is loaded."""
        return encode_images(self.identity.model, images, seed)

    def unet_alone(self) -> AbstractContextManager[None]:
        """See ``Session.unet_alone``; under --medvram the WebUI sees to that by itself.

        The WebUI draws no live preview meanwhile: it has no picture on its way, and a decoding that another
        request begins would fail as it does while the WebUI swaps checkpoints, which it passes over.
        """
        loaded = self.identity.model
        return nullcontext() if loaded.lowvram else parked([loaded.conditioner, loaded.first_stage_model])

    def check_alive(self) -> None:
        """Raise HostError when the WebUI has swapped or unloaded the model meanwhile."""
        self.identity.check_alive()


class A1111Host(WebuiHost):
    """The running WebUI as ``Host``."""

    name = "a1111"

    def check(self) -> None:
        """Raise HostError when the WebUI's flags, device or checkpoint can't be used.

        A checkpoint that the next picture would replace anyhow is judged by ``open``, once it
        is replaced.
        """
        model.check_flags()
        loaded = model.require_loaded()
        if not model.swap_pending():
            model.check_kind(loaded)
            self.check_file()
            model.check_weights(loaded)

    def chosen(self) -> Any | None:
        """See ``WebuiHost.chosen``."""
        return model.current_entry()

    @contextmanager
    def open(self) -> Iterator[A1111Session]:
        """The clean, frozen model of the chosen checkpoint; the caller holds the WebUI's lock."""
        model.check_flags()
        model.require_loaded()
        model.load_selected()
        self.check()
        loaded = model.require_loaded()
        with guard.clean(loaded):
            identity = model.Identity.of(loaded)
            identity.check_alive()
            try:
                yield A1111Session(model.denoiser_of(loaded), identity)
            except RuntimeError:
                identity.check_alive()  # a model that was swapped in mid-forward explains the error better
                raise

    def refresh(self, path: Path) -> None:
        """List the LoRAs anew and forget what a replaced file has left behind; under the lock."""
        loras.refresh(path, model.loaded())

    def check_drawing(self) -> None:
        """Raise HostError when the WebUI can't draw with LoRAs of SDXL."""
        model.check_kind(model.require_loaded())
        drawing.check()

    @contextmanager
    def drawing(self, sampler: Sampler, count: int) -> Iterator[Pen]:
        """See ``Draws.drawing``; pictures are drawn as the txt2img tab draws them."""
        model.load_selected()
        self.check_drawing()
        loaded = model.require_loaded()
        with (
            guard.memory_released(loaded),
            guard.remarks_aside(),
            loras.off_afterwards(loaded),
            drawing.pen(sampler, count, self.picture_size() or SDXL_SIZE) as pen,
        ):
            yield pen

    def facts(self) -> Mapping[str, str]:
        """See ``TellsFacts``."""
        from modules import sd_hijack

        attention = getattr(sd_hijack.current_optimizer, "name", "none")
        return {**super().facts(), "attention": f"{attention} (sdp for a merge)"}
