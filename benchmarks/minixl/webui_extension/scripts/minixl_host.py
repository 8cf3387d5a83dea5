"""A WebUI extension of its own, for MiniXL only: lets the WebUI build a model of MiniXL's shape.

sgm's configuration can't say the number of GroupNorm groups, the WebUI's OpenCLIP wrapper always
pads with token 0, and open_clip must know the second text encoder. The checkpoint's sidecar yaml
has a section ``host`` (written by ``benchmarks.minixl.checkpoint``) with these facts.
"""

from functools import wraps
from pathlib import Path

import open_clip
import torch
from modules import paths, sd_hijack_open_clip, sd_models
from sgm.modules import attention
from sgm.modules.diffusionmodules import model as vae
from sgm.modules.diffusionmodules import openaimodel as unet
from sgm.modules.diffusionmodules.util import GroupNorm32

if not hasattr(sd_models, "minixl_host"):
    sd_models.minixl_host = {}
facts = sd_models.minixl_host


def register():
    """Every ``*-te2.json`` beside the checkpoints is an open_clip model config named by its stem."""
    for file in (Path(paths.models_path) / "Stable-diffusion").rglob("*-te2.json"):
        open_clip.add_model_config(file)


def unet_norm(channels):
    return GroupNorm32(facts.get("unet_norm_groups", 32), channels)


def attention_norm(in_channels):
    return torch.nn.GroupNorm(facts.get("unet_norm_groups", 32), in_channels, eps=1e-6, affine=True)


def vae_norm(in_channels, num_groups=32):
    return torch.nn.GroupNorm(facts.get("vae_norm_groups", num_groups), in_channels, eps=1e-6, affine=True)


def reading_facts(repair_config):
    """The WebUI's ``repair_config``, which sees every configuration before its model is built."""

    @wraps(repair_config)
    def repair(sd_config, state_dict=None):
        facts.clear()
        facts.update(sd_config.get("host") or {})
        register()
        return repair_config(sd_config, state_dict)

    return repair


def padding_as_trained(init):
    """The OpenCLIP wrapper's ``__init__``, followed by the checkpoint's own padding token."""

    @wraps(init)
    def padded(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.id_pad = facts.get("te2_pad_token_id", self.id_pad)

    return padded


register()
if not getattr(sd_models, "minixl_patched", False):
    wrapper = sd_hijack_open_clip.FrozenOpenCLIPEmbedder2WithCustomWords
    sd_models.repair_config = reading_facts(sd_models.repair_config)
    wrapper.__init__ = padding_as_trained(wrapper.__init__)
    unet.normalization = unet_norm
    attention.Normalize = attention_norm
    vae.Normalize = vae_norm
    sd_models.minixl_patched = True
