"""reForge and Forge Classic as host: Forge's patched objects over Automatic1111's way of loading."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..denoiser import PredictionType
from ..errors import HostError
from ._forge.host import ZERO_SNR, ForgeFamilyHost
from ._webui.kind import NEED


class ReforgeBackend:
    """reForge's ``ldm_patched`` and its ``sd_models``; see ``Backend``."""

    def loaded(self) -> Any | None:
        """See ``Backend``."""
        from modules import sd_models

        return sd_models.model_data.sd_model

    def load_selected(self) -> Any:
        """As the next picture would."""
        from modules import sd_models

        model, entry = sd_models.model_data.get_sd_model(), self.entry()
        if model is not None and entry is not None and model.sd_checkpoint_info.filename != entry.filename:
            sd_models.reload_model_weights()
            model = self.loaded()
        if model is None:
            raise HostError(f"The WebUI could not load the checkpoint; its console says why. {NEED}")
        return model

    def entry(self) -> Any | None:
        """The one that is chosen on the page; an older choice only where that is unknown."""
        from modules import sd_models, shared

        chosen, model = sd_models.checkpoint_aliases.get(shared.opts.sd_model_checkpoint), self.loaded()
        return chosen if chosen is not None or model is None else model.sd_checkpoint_info

    def check(self, model: Any) -> None:
        """Nothing that other checks leave."""

    def is_loaded(self, patcher: Any) -> bool:
        """See ``Backend``."""
        from ldm_patched.modules import model_management  # type: ignore[import-not-found]

        return any(entry.model is patcher for entry in model_management.current_loaded_models)

    def load(self, patcher: Any) -> None:
        """Which also takes off what a clone has put on."""
        from ldm_patched.modules import model_management

        model_management.load_models_gpu([patcher])

    take_off = load

    def unload_all_but(self, patcher: Any) -> None:
        """By the WebUI's memory manager."""
        from ldm_patched.modules import model_management

        kept = [entry for entry in model_management.current_loaded_models if entry.model is patcher]
        model_management.free_memory(1e30, patcher.load_device, kept)

    def schedule(self, model: Any) -> tuple[Tensor, PredictionType]:
        """That of the sampling, with zero terminal SNR where the settings or the checkpoint ask for it."""
        from ldm_patched.modules import model_sampling
        from modules import shared

        sigmas = model.forge_objects_original.unet.model.model_sampling.sigmas
        if getattr(shared.opts, "sd_noise_schedule", "") == ZERO_SNR or getattr(model, "ztsnr", False):
            sigmas = model_sampling.rescale_zero_terminal_snr_sigmas(sigmas)
        return 1 / (sigmas.float() ** 2 + 1), "v_prediction" if model.parameterization == "v" else "epsilon"

    def dtype(self, model: Any) -> torch.dtype:
        """Which may be another than the weights are stored in."""
        unet = model.forge_objects_original.unet.model
        dtype: torch.dtype = getattr(unet, "manual_cast_dtype", None) or unet.get_dtype()
        return dtype

    def plain_attention(self) -> tuple[Any, str, Any]:
        """Sage and Flash have no backward pass."""
        from ldm_patched.ldm.modules import attention  # type: ignore[import-not-found]

        return attention, "optimized_attention", attention.attention_pytorch


class ReforgeHost(ForgeFamilyHost):
    """reForge or Forge Classic as ``Host``."""

    name = "reforge"

    def __init__(self) -> None:
        super().__init__(ReforgeBackend())
