"""The model that the WebUI holds: whether it can be used, which one it is, its UNet as a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...denoiser import Conditioning, PredictionType
from ...errors import HostError
from .._webui.kind import LATENT_CHANNELS, NEED, check_base

LOAD_BUTTON = (
    "Load it with Settings > Actions > Load the SD checkpoint, or choose it again at the top of the page."
)


def loaded() -> Any | None:
    """The model in memory, or None; never starts to load one."""
    from modules import sd_models

    return sd_models.model_data.sd_model


def selected() -> Any | None:
    """The WebUI's entry of the checkpoint that is chosen at the top of its page, if it is known."""
    from modules import sd_models, shared

    return sd_models.checkpoint_aliases.get(shared.opts.sd_model_checkpoint)


def swap_pending() -> bool:
    """Whether the next picture would first load another checkpoint (after a refiner's turn)."""
    model, chosen = loaded(), selected()
    return model is not None and chosen is not None and chosen.filename != model.sd_checkpoint_info.filename


def load_selected() -> None:
    """Load the chosen checkpoint where an earlier picture left another, as the next picture would."""
    from modules import sd_models

    if swap_pending():
        sd_models.reload_model_weights()


def current_entry() -> Any | None:
    """The WebUI's entry of the checkpoint that a merge would use."""
    model = loaded()
    return selected() if model is None or swap_pending() else model.sd_checkpoint_info


def check_flags() -> None:
    """Refuse ways of running under which gradients can't pass through the model.

    Raises:
        HostError: --lowvram, or a device on which the WebUI casts weights while it computes.
    """
    from modules import devices, shared

    if shared.cmd_opts.lowvram:
        raise HostError(
            "The WebUI runs with --lowvram, which takes the model's blocks off the GPU before they can be "
            "differentiated. Start it with --medvram, or with neither."
        )
    if isinstance(devices.autocast(), (torch.autocast, nullcontext)):
        return
    mend = (
        "Turn off FP8 weight in Settings > Optimizations"
        if devices.fp8
        else "Start the WebUI with --no-half --precision full"
    )
    raise HostError(
        f"On this device the WebUI casts the model's weights back and forth while it computes, "
        f"which can't be differentiated. {mend}."
    )


def require_loaded() -> Any:
    """The model in memory.

    Raises:
        HostError: there is none.
    """
    from modules import sd_models

    model = loaded()
    if model is not None:
        return model
    if sd_models.model_data.was_loaded_at_least_once:
        raise HostError(
            "No checkpoint is loaded: the last one could not be loaded, or another is on its way. " + NEED
        )
    raise HostError("No checkpoint is loaded yet. Wait until it is, or draw a picture first, which loads it.")


def check_kind(model: Any) -> None:
    """Refuse what is no SDXL base model, judged by its parts.

    Raises:
        HostError: SD 1.5, 2 or 3, the refiner, SSD-1B, an inpainting or editing model.
    """
    name = model.sd_checkpoint_info.name_for_extra
    if getattr(model, "is_ssd", False):
        raise HostError(f"{name} is SSD-1B, which lacks a part of SDXL's layers. {NEED}")
    if not getattr(model, "is_sdxl", False) or not hasattr(model, "conditioner"):
        raise HostError(f"{name} is not SDXL. {NEED}")
    widths = {
        number: int(
            (encoder.text_model.final_layer_norm if number == 1 else encoder.ln_final).weight.shape[0]
        )
        for number, encoder in text_encoders(model).items()
    }
    check_base(name, model.model.diffusion_model, widths)


def text_encoders(model: Any) -> dict[int, Any]:
    """The CLIP text models by kohya's number: 1 is transformers' CLIPTextModel, 2 is open_clip's."""
    found: dict[int, Any] = {}
    for embedder in model.conditioner.embedders:
        wrapped = getattr(embedder, "wrapped", embedder)
        if hasattr(getattr(wrapped, "transformer", None), "text_model"):
            found[1] = wrapped.transformer
        elif hasattr(getattr(wrapped, "model", None), "ln_final"):
            found[2] = wrapped.model
    return found


def check_weights(model: Any) -> None:
    """Refuse a model whose weights are not where it computes.

    Raises:
        HostError: unloaded to the CPU or thrown away.
    """
    from modules import devices, sd_unet

    name = model.sd_checkpoint_info.name_for_extra
    if any(parameter.is_meta for parameter in model.parameters()):
        raise HostError(f"{name} has been unloaded from memory. {LOAD_BUTTON}")
    if model.lowvram or sd_unet.current_unet is not None:
        return
    where = next(model.model.diffusion_model.parameters()).device.type
    if where != devices.device.type:
        raise HostError(f"{name} has been unloaded to {where}. {LOAD_BUTTON}")


@dataclass(frozen=True)
class Identity:
    """Which weights a session works on: the object alone may be reused for another checkpoint."""

    model: Any
    entry: Any
    digest: str | None

    @staticmethod
    def of(model: Any) -> Identity:
        return Identity(model, model.sd_checkpoint_info, model.sd_model_hash)

    def check_alive(self) -> None:
        """Raise HostError when the WebUI holds another model now, or this one was unloaded."""
        if loaded() is not self.model or Identity.of(self.model) != self:
            raise HostError(
                f"The WebUI loaded another checkpoint while {self.entry.name_for_extra} was in use. "
                "Nothing was written; start again."
            )
        check_weights(self.model)


@dataclass(frozen=True)
class SgmDenoiser:
    """The WebUI's SDXL UNet as ``Denoiser``; ``vector`` is pooled text and embedded sizes."""

    model: Any
    unet: nn.Module
    alphas_cumprod: Tensor
    prediction_type: PredictionType
    latent_channels: int
    device: torch.device
    dtype: torch.dtype

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The UNet's raw output in fp32; see ``Denoiser.predict``.

        ``apply_model`` casts the inputs, opens the WebUI's autocast and, under --medvram,
        brings the UNet onto the GPU.
        """
        inputs = {"crossattn": cond.context.to(self.device), "vector": cond.vector.to(self.device)}
        output: Tensor = self.model.apply_model(x_t.to(self.device), t.to(self.device).float(), inputs)
        return output.float()

    def checkpoint_blocks(self) -> Sequence[nn.Module]:
        """sgm's transformer and residual blocks."""
        from sgm.modules.attention import BasicTransformerBlock  # type: ignore[import-not-found]
        from sgm.modules.diffusionmodules.openaimodel import ResBlock  # type: ignore[import-not-found]

        return [m for m in self.unet.modules() if isinstance(m, (BasicTransformerBlock, ResBlock))]


def denoiser_of(model: Any) -> SgmDenoiser:
    """The model's UNet with the noise schedule that the WebUI's settings ask for."""
    from modules import devices

    return SgmDenoiser(
        model=model,
        unet=model.model.diffusion_model,
        alphas_cumprod=model.alphas_cumprod.float().cpu(),
        prediction_type="v_prediction" if model.parameterization == "v" else "epsilon",
        latent_channels=LATENT_CHANNELS,
        device=devices.device,
        dtype=devices.dtype_unet,
    )
