"""A clean model for the time of a block: every change by one context manager, undone in reverse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._webui.guard import instance_forwards_aside
from ..frozen import frozen
from . import loras

SDP = "sdp - scaled dot product"


@contextmanager
def clean(model: Any) -> Iterator[None]:
    """The checkpoint's own weights, frozen, in the WebUI's own forward, without anything on top.

    Afterwards the model, its settings and the random state are what they were; a LoRA that
    was merged into the weights by an earlier picture is off, and the next picture that names
    it puts it on again by itself.
    """
    unet = model.model.diffusion_model
    steps = (
        memory_released(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))),
        sd_unet_off(),
        plain_attention(),
        token_merging_off(model),
        tiling_off(),
        hypernetworks_aside(),
        remarks_aside(),
        schedule_of_settings(model),
        instance_forwards_aside(unet),
        own_forward(unet),
        norms_in_own_dtype(unet),
        sgm_checkpointing_off(unet),
        loras_off(model),
        frozen([model]),
    )
    with ExitStack() as stack:
        for step in steps:
            stack.enter_context(step)
        yield


@contextmanager
def memory_released(model: Any) -> Iterator[None]:
    """Afterwards give cached memory back and, under --medvram, send the model to the CPU."""
    from modules import devices, lowvram

    try:
        yield
    finally:
        if model.lowvram:
            lowvram.send_everything_to_cpu()
        devices.torch_gc()


@contextmanager
def sd_unet_off() -> Iterator[None]:
    """The checkpoint's UNet instead of an accelerated one (TensorRT and the like)."""
    from modules import sd_unet

    active = sd_unet.current_unet_option
    if active is None:
        yield
        return
    try:
        sd_unet.apply_unet("None")
        yield
    finally:
        sd_unet.apply_unet(active.label)


@contextmanager
def plain_attention() -> Iterator[None]:
    """torch's own attention, which every device can differentiate; then the one before, exactly."""
    from modules import sd_hijack

    before = sd_hijack.current_optimizer
    if before is not None and before.name in ("sdp", "sdp-no-mem"):
        yield
        return
    kept = [(owner, name, getattr(owner, name)) for owner, name in _attention_places()]
    try:
        sd_hijack.apply_optimizations(SDP)
        yield
    finally:
        sd_hijack.apply_optimizations(before.title() if before is not None else "None")
        for owner, name, value in kept:
            setattr(owner, name, value)


def _attention_places() -> list[tuple[Any, str]]:
    """What the WebUI's attention optimisations assign to."""
    from ldm.modules import attention, diffusionmodules  # type: ignore[import-not-found]
    from modules import sd_hijack
    from sgm.modules import attention as sgm_attention  # type: ignore[import-not-found]
    from sgm.modules import diffusionmodules as sgm_diffusionmodules

    places: list[tuple[Any, str]] = [(sd_hijack, "current_optimizer")]
    for attending, parts in ((attention, diffusionmodules), (sgm_attention, sgm_diffusionmodules)):
        places += [
            (attending.CrossAttention, "forward"),
            (parts.model.AttnBlock, "forward"),
            (parts.model, "nonlinearity"),
            (parts.openaimodel, "th"),
        ]
    return places


@contextmanager
def token_merging_off(model: Any) -> Iterator[None]:
    """No token merging (ToMe)."""
    from modules import sd_models

    ratio = getattr(model, "applied_token_merged_ratio", 0)
    try:
        sd_models.apply_token_merging(model, 0)
        yield
    finally:
        sd_models.apply_token_merging(model, ratio)


@contextmanager
def tiling_off() -> Iterator[None]:
    """Convolutions pad with zeros, not around the picture's edges."""
    from modules.sd_hijack import model_hijack

    tiling = model_hijack.circular_enabled
    if not tiling:
        yield
        return
    try:
        model_hijack.apply_circular(False)
        yield
    finally:
        model_hijack.apply_circular(tiling)


@contextmanager
def hypernetworks_aside() -> Iterator[None]:
    """No hypernetwork that an earlier picture has loaded."""
    from modules import shared

    loaded = list(shared.loaded_hypernetworks)
    try:
        shared.loaded_hypernetworks.clear()
        yield
    finally:
        shared.loaded_hypernetworks[:] = loaded


@contextmanager
def remarks_aside() -> Iterator[None]:
    """What encoding a prompt notes for the next picture's infotext is thrown away."""
    from modules.sd_hijack import model_hijack

    names = ("comments", "extra_generation_params", "fixes")
    kept = {name: getattr(model_hijack, name) for name in names}
    try:
        model_hijack.comments, model_hijack.extra_generation_params = [], {}
        yield
    finally:
        for name, value in kept.items():
            setattr(model_hijack, name, value)


@contextmanager
def schedule_of_settings(model: Any) -> Iterator[None]:
    """The noise schedule that the settings ask for (zero terminal SNR, downcasting)."""
    from modules import sd_models

    before = model.alphas_cumprod
    try:
        sd_models.apply_alpha_schedule_override(model)
        yield
    finally:
        model.alphas_cumprod = before


@contextmanager
def own_forward(unet: nn.Module) -> Iterator[None]:
    """sgm's own UNet forward and concatenation, whatever its class has become (FreeU)."""
    from modules import sd_hijack, sd_hijack_unet
    from sgm.modules.diffusionmodules import openaimodel  # type: ignore[import-not-found]

    concatenation = openaimodel.th
    unet.__dict__["forward"] = MethodType(sd_hijack.sgm_original_forward, unet)
    openaimodel.th = sd_hijack_unet.TorchHijackForUnet()
    try:
        yield
    finally:
        openaimodel.th = concatenation
        del unet.__dict__["forward"]


@contextmanager
def norms_in_own_dtype(unet: nn.Module) -> Iterator[None]:
    """Normalisations in the dtype of their input: sgm and autocast have them, and what they keep, in fp32.

    The kernels add up in fp32 all the same. For the backward pass a quarter more memory would be kept.
    """
    norms = [module for module in unet.modules() if isinstance(module, (nn.GroupNorm, nn.LayerNorm))]
    try:
        for norm in norms:
            norm.__dict__["forward"] = partial(_normalised, norm)
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)


def _normalised(norm: nn.GroupNorm | nn.LayerNorm, x: Tensor) -> Tensor:
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        if isinstance(norm, nn.GroupNorm):
            return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


@contextmanager
def sgm_checkpointing_off(unet: nn.Module) -> Iterator[None]:
    """sgm's checkpointing drops the gradients of branches; it stays off."""
    flags = [
        (module, name)
        for module in unet.modules()
        for name in ("checkpoint", "use_checkpoint")
        if getattr(module, name, False) is True
    ]
    try:
        for module, name in flags:
            setattr(module, name, False)
        yield
    finally:
        for module, name in flags:
            setattr(module, name, True)


@contextmanager
def loras_off(model: Any) -> Iterator[None]:
    """The checkpoint's own weights; they stay so until a picture names a LoRA."""
    loras.take_off(model)
    yield
