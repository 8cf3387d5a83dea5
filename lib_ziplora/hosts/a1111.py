"""The Automatic1111 Stable Diffusion WebUI as host: its model, its LoRAs, its queue and progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Conditioning, TextDeltas
from ..errors import HostError
from . import ApiAccess, CheckpointInfo, InstalledLora, Pen, Progress, Sampler
from ._a1111 import api, drawing, guard, loras, model, text
from .offload import parked

SDXL_SIZE = 1024
SMALLEST_SIZE, LARGEST_SIZE = 64, 2048


def _resolution(entry: Any | None) -> int | None:
    """The edge of the square pictures that a checkpoint's metadata (ModelSpec) name; None without any."""
    given = (getattr(entry, "metadata", None) or {}).get("modelspec.resolution")
    width, mark, height = str(given or "").lower().partition("x")
    if not width.isdecimal() or (mark and height != width):
        return None
    size = int(width)
    return size if SMALLEST_SIZE <= size <= LARGEST_SIZE and size % SMALLEST_SIZE == 0 else None


@dataclass(frozen=True)
class A1111Session:
    """``Session`` over the WebUI's model, clean and frozen."""

    denoiser: model.SgmDenoiser
    identity: model.Identity

    @property
    def native_size(self) -> int:
        """As the checkpoint's metadata say, else SDXL's: the WebUI knows nothing else about it."""
        return _resolution(self.identity.entry) or SDXL_SIZE

    def encode_prompts(
        self, prompts: Sequence[str], *, width: int, height: int, negative: bool, deltas: TextDeltas
    ) -> Conditioning:
        """See ``Session.encode_prompts``; IncompatibleError for a delta that fits no layer."""
        size = {"width": width, "height": height}
        return text.encode(self.identity.model, prompts, **size, negative=negative, deltas=deltas)

    def encode_images(self, images: Tensor, *, seed: int) -> Tensor:
        """See ``Session.encode_images``; one image at a time, with the VAE that is loaded."""
        from modules import sd_samplers_common

        latents = []
        gpus = list(range(torch.cuda.device_count()))
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=gpus):
            torch.manual_seed(seed)
            for image in images.split(1):
                latent = sd_samplers_common.images_tensor_to_samples(image, 0, self.identity.model)
                latents.append(latent.to(self.denoiser.device, torch.float32))
        encoded = torch.cat(latents)
        if not torch.isfinite(encoded).all():
            raise HostError(
                "The VAE made NaNs of the reference images. Start the WebUI with --no-half-vae, or choose another VAE."
            )
        return encoded

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


class A1111Host:
    """The running WebUI as ``Host``. LoRAs are named, never given by a path."""

    name = "a1111"

    def loras(self) -> Sequence[InstalledLora]:
        """What the WebUI's LoRA pane lists, freshly listed, sorted by name."""
        return loras.installed()

    def resolve(self, lora: str) -> Path:
        """The file of an installed LoRA's name; LoraFileError when there is none."""
        return loras.resolve(lora)

    def output_path(self, name: str) -> Path:
        """In the WebUI's LoRA folder; OutputError for a path or a name that is taken elsewhere."""
        return loras.output_path(name)

    def checkpoint(self) -> CheckpointInfo:
        """The chosen checkpoint; its sha256 as the WebUI knows it (``""`` under --no-hashing)."""
        entry = model.current_entry()
        return (
            CheckpointInfo("", "")
            if entry is None
            else CheckpointInfo(entry.name_for_extra, entry.sha256 or "")
        )

    def check(self) -> None:
        """Raise HostError when the WebUI's flags, device or checkpoint can't be used.

        A checkpoint that the next picture would replace anyhow is judged by ``open``, once it
        is replaced.
        """
        model.check_flags()
        loaded = model.require_loaded()
        if not model.swap_pending():
            model.check_kind(loaded)
            model.check_weights(loaded)

    def picture_size(self) -> int | None:
        """See ``KnowsSize``; from the checkpoint's metadata."""
        return _resolution(model.current_entry())

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

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The WebUI's queue, as a job of its own."""
        from modules import call_queue, shared

        with call_queue.queue_lock:
            shared.state.begin(job="ziplora")
            try:
                yield
            finally:
                shared.state.end()
                shared.state.skipped = shared.state.interrupted = shared.state.stopping_generation = False

    def report(self, progress: Progress) -> None:
        """Show progress in the WebUI's own bar."""
        from modules import shared

        state = shared.state
        state.job_count, state.job_no = 1, 0
        state.sampling_steps, state.sampling_step = progress.total, progress.step
        state.textinfo = " ".join(progress.text.split())

    def interrupted(self) -> bool:
        """Whether Interrupt was pressed, in our tab or (after this picture) in the txt2img tab."""
        from modules import shared

        return bool(shared.state.interrupted or shared.state.stopping_generation)

    def finish_requested(self) -> bool:
        """Whether Finish now (the WebUI's Skip) was pressed."""
        from modules import shared

        return bool(shared.state.skipped)

    def interrupt(self) -> None:
        """Ask the running job to stop."""
        from modules import shared

        shared.state.interrupt()

    def finish_now(self) -> None:
        """Ask the running job to stop optimising and to write."""
        from modules import shared

        shared.state.skip()

    def refresh(self, path: Path) -> None:
        """List the LoRAs anew and forget what a replaced file has left behind; under the lock."""
        loras.refresh(path, model.loaded())

    def card_changed(self, path: Path) -> None:
        """See ``ShowsCards``; the LoRA pane knows of no file that is newer than itself."""
        loras.card_changed(path)

    def data_folder(self) -> Path | None:
        """Beside the WebUI's own caches."""
        from modules import cache, paths

        folder = getattr(cache, "cache_dir", None)
        return (Path(folder) if folder else Path(paths.data_path) / "cache") / "ziplora"

    def samplers(self) -> Sequence[str]:
        """The samplers that the txt2img tab offers."""
        return drawing.samplers()

    def default_sampler(self) -> Sampler:
        """What the txt2img tab begins with."""
        return drawing.default_sampler()

    def check_drawing(self) -> None:
        """Raise HostError when the WebUI can't draw with LoRAs of SDXL."""
        drawing.check()

    def drawing(self, sampler: Sampler, count: int) -> AbstractContextManager[Pen]:
        """See ``Draws.drawing``; pictures are drawn as the txt2img tab draws them."""
        return drawing.drawing(sampler, count, self.picture_size() or SDXL_SIZE)

    def api_access(self) -> ApiAccess | None:
        """Those who may use the WebUI's own API; None without --api."""
        return api.access()
