"""Forge and Forge Neo as host, told apart by nothing: what differs is asked by feature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..denoiser import PredictionType
from ..errors import HostError
from ._forge.host import ZERO_SNR, ForgeFamilyHost
from ._webui.kind import NEED


class ForgeBackend:
    """Forge's ``backend`` package and its ``sd_models``; see ``Backend``."""

    def loaded(self) -> Any | None:
        """Forge has a stand-in until the first picture, and None after a checkpoint that failed to load."""
        from modules import sd_models

        model = sd_models.model_data.sd_model
        return model if getattr(model, "forge_objects_original", None) is not None else None

    def load_selected(self) -> Any:
        """What the next picture would load; nothing, if it is loaded already."""
        from modules import sd_models
        from modules_forge import main_entry  # type: ignore[import-not-found]

        if not sd_models.model_data.forge_loading_parameters:
            main_entry.refresh_model_loading_parameters()
        try:
            sd_models.forge_model_reload()
        except Exception as error:  # whatever a checkpoint can be wrong in
            raise HostError(f"Forge can't load the checkpoint ({error}). {NEED}") from error
        model = self.loaded()
        if model is None:
            raise HostError(f"Forge has loaded no checkpoint; its console says why. {NEED}")
        return model

    def entry(self) -> Any | None:
        """The one that the page's choice has asked for, else the one in the settings."""
        from modules import sd_models

        wanted = sd_models.model_data.forge_loading_parameters or {}
        return wanted.get("checkpoint_info") or sd_models.select_checkpoint()

    def check(self, model: Any) -> None:
        """Refuse other kinds of diffusion, and layers that are swapped while others compute."""
        from backend import stream  # type: ignore[import-not-found]

        name, kind = model.sd_checkpoint_info.name_for_extra, _predictor(model).prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise HostError(f"{name} predicts neither noise nor velocity ({kind}), as SDXL does. {NEED}")
        unet = model.forge_objects_original.unet.model.diffusion_model
        swapped = any(hasattr(module, "prev_parameters_manual_cast") for module in unet.modules())
        if swapped and getattr(stream, "should_use_stream", bool)():
            raise HostError(
                "Forge moves the UNet's layers to the GPU while others compute, after which gradients may be "
                "wrong. Set Swap Method to Queue (UI: all, at the top of the page), or raise GPU Weights."
            )

    def is_loaded(self, patcher: Any) -> bool:
        """Whether Forge's list of loaded models holds it."""
        from backend import memory_management

        return any(entry.model is patcher for entry in memory_management.current_loaded_models)

    def load(self, patcher: Any) -> None:
        """Which also takes off what a clone has put on."""
        from backend import memory_management

        memory_management.load_models_gpu([patcher])

    def take_off(self, patcher: Any) -> None:
        """Forge keeps the very parameters that LoRAs have replaced, and puts them back; Neo does so as it loads."""
        if hasattr(patcher, "refresh_loras"):
            patcher.refresh_loras()
        else:
            self.load(patcher)

    def unload_all_but(self, patcher: Any) -> None:
        """By Forge's memory manager."""
        from backend import memory_management

        kept = [entry for entry in memory_management.current_loaded_models if entry.model is patcher]
        memory_management.free_memory(1e30, patcher.load_device, keep_loaded=kept)

    def schedule(self, model: Any) -> tuple[Tensor, PredictionType]:
        """The predictor's, with zero terminal SNR where the settings or the checkpoint ask for it."""
        from backend.modules import k_prediction  # type: ignore[import-not-found]
        from modules import shared

        predictor = _predictor(model)
        kind: PredictionType = predictor.prediction_type
        if getattr(shared.opts, "sd_noise_schedule", "") == ZERO_SNR or getattr(
            model.model_config, "ztsnr", False
        ):
            sigmas = k_prediction.rescale_zero_terminal_snr_sigmas(predictor.sigmas)
            return 1 / (sigmas.float() ** 2 + 1), kind
        return predictor.alphas_cumprod, kind

    def dtype(self, model: Any) -> torch.dtype:
        """Which may be another than the weights are stored in."""
        dtype: torch.dtype = model.forge_objects_original.unet.model.computation_dtype
        return dtype

    def plain_attention(self) -> tuple[Any, str, Any]:
        """Sage and Flash (Neo's defaults) have no backward pass."""
        from backend import attention
        from backend.nn import unet  # type: ignore[import-not-found]

        owner = unet if hasattr(unet, "attention_function") else attention
        return owner, "attention_function", attention.attention_pytorch


def _predictor(model: Any) -> Any:
    return model.forge_objects_original.unet.model.predictor


class ForgeHost(ForgeFamilyHost):
    """Forge or Forge Neo as ``Host``."""

    name = "forge"

    def __init__(self) -> None:
        super().__init__(ForgeBackend())
