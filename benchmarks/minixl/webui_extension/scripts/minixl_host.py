"""A WebUI extension of its own, for MiniXL only: lets the WebUI build a model of MiniXL's shape.

sgm's configuration can't say the number of GroupNorm groups, the WebUI's OpenCLIP wrapper always
pads with token 0, and open_clip must know the second text encoder. The checkpoint's sidecar yaml
has a section `host` (written by benchmarks/minixl/export.py) with these facts.
"""

import os

import open_clip
import sgm.modules.attention as attention
import sgm.modules.diffusionmodules.model as vae
import sgm.modules.diffusionmodules.openaimodel as unet
import torch
from modules import paths, sd_hijack_open_clip, sd_models
from sgm.modules.diffusionmodules.util import GroupNorm32

if not hasattr(sd_models, "minixl_host"):
    sd_models.minixl_host = {}
state = sd_models.minixl_host


def register():
    """Every *-te2.json beside the checkpoints is an open_clip model config named by its stem."""
    for root, _, files in os.walk(os.path.join(paths.models_path, "Stable-diffusion")):
        for name in files:
            if name.endswith("-te2.json"):
                open_clip.add_model_config(os.path.join(root, name))


def unet_norm(channels):
    return GroupNorm32(state.get("unet_norm_groups", 32), channels)


def attention_norm(in_channels):
    return torch.nn.GroupNorm(state.get("unet_norm_groups", 32), in_channels, eps=1e-6, affine=True)


def vae_norm(in_channels, num_groups=32):
    return torch.nn.GroupNorm(state.get("vae_norm_groups", num_groups), in_channels, eps=1e-6, affine=True)


def patch():
    repair = sd_models.repair_config
    wrapper = sd_hijack_open_clip.FrozenOpenCLIPEmbedder2WithCustomWords
    init = wrapper.__init__

    def repair_config(sd_config, state_dict=None):
        state.clear()
        state.update(sd_config.get("host") or {})
        register()
        return repair(sd_config, state_dict)

    def __init__(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.id_pad = state.get("te2_pad_token_id", self.id_pad)

    sd_models.repair_config = repair_config
    wrapper.__init__ = __init__
    unet.normalization = unet_norm
    attention.Normalize = attention_norm
    vae.Normalize = vae_norm


register()
if not getattr(sd_models, "minixl_patched", False):
    patch()
    sd_models.minixl_patched = True
