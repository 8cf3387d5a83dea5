"""A reForge extension of its own, for MiniXL only: teaches reForge the sizes of MiniXL's model.

reForge guesses a checkpoint's kind from its tensors and builds SDXL's text encoders and autoencoder; MiniXL's
are smaller, and its norms have other groups. The configurations come from ``benchmarks/minixl/model``.
"""

import json
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ClassVar

import torch
from ldm_patched.modules import ops, sd, sd1_clip, sdxl_clip, supported_models, supported_models_base

MODEL = Path(__file__).resolve().parents[2] / "model"
UNET_GROUPS, VAE_GROUPS = 16, 4
VAE = {"ch": 8, "ch_mult": [1, 2, 4, 8], "num_res_blocks": 1}
VAE_WIDTH = 64
"""Channels after the decoder's first convolution, by which MiniXL's autoencoder is known."""

building = {"groups": None, "vae": False}


@contextmanager
def groups(number):
    """Norms that are made inside the block have so many groups."""
    building["groups"] = number
    try:
        yield
    finally:
        building["groups"] = None


def clip_config(name):
    """A text encoder's configuration as reForge takes it."""
    found = json.loads((MODEL / name / "config.json").read_text(encoding="utf-8"))
    found.pop("dtype", None)
    return found


def penultimate(encoder):
    """Its last layer but one, as SDXL does; the constructor refuses that of an encoder of two layers."""
    encoder.layer, encoder.layer_idx = "hidden", -2
    return encoder


def clip(name, config, device, dtype, model_options, **more):
    options = {**model_options, "model_name": name}
    more |= {"device": device, "dtype": dtype, "layer_norm_hidden_state": False, "model_options": options}
    return penultimate(sd1_clip.SDClipModel(layer="last", textmodel_json_config=clip_config(config), **more))


class TextEncoders(sdxl_clip.SDXLClipModel):
    """MiniXL's two text encoders."""

    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
        torch.nn.Module.__init__(self)
        given = (device, dtype, model_options)
        tokens = {"start": 49406, "end": 49407, "pad": 0}
        self.clip_l = clip("clip_l", "text_encoder", *given)
        self.clip_g = clip(
            "clip_g", "text_encoder_2", *given, special_tokens=tokens, return_projected_pooled=True
        )
        self.dtypes = {dtype} if dtype is not None else set()


class MiniXL(supported_models.SDXL):
    """An SDXL with MiniXL's sizes."""

    unet_config: ClassVar = {
        "model_channels": 32,
        "use_linear_in_transformer": True,
        "context_dim": 128,
        "adm_in_channels": 256,
        "use_temporal_attention": False,
    }
    unet_extra_config: ClassVar = {"num_heads": -1, "num_head_channels": 32}

    def clip_target(self, state_dict={}):  # noqa: B006
        return supported_models_base.ClipTarget(sdxl_clip.SDXLTokenizer, TextEncoders)

    def get_model(self, *args, **kwargs):
        with groups(UNET_GROUPS):
            return super().get_model(*args, **kwargs)


def with_groups(init):
    @wraps(init)
    def grouped(self, *args, num_groups=None, **kwargs):
        if num_groups is None:
            num_groups, *args = args
        init(self, building["groups"] or num_groups, *args, **kwargs)

    return grouped


def with_sizes(init):
    """``AutoencoderKL.__init__`` with MiniXL's sizes where its weights are to go in."""

    @wraps(init)
    def sized(self, *args, ddconfig=None, **kwargs):
        if not building["vae"]:
            return init(self, *args, ddconfig=ddconfig, **kwargs)
        with groups(VAE_GROUPS):
            return init(self, *args, ddconfig={**ddconfig, **VAE}, **kwargs)

    return sized


def noting_the_weights(init):
    @wraps(init)
    def noted(self, sd=None, *args, **kwargs):
        first = (sd or {}).get("decoder.conv_in.weight")
        building["vae"] = first is not None and first.shape[0] == VAE_WIDTH
        init(self, sd, *args, **kwargs)

    return noted


if not any(known.__name__ == "MiniXL" for known in supported_models.models):  # Reload UI runs this again
    supported_models.models.insert(0, MiniXL)
    norm = ops.disable_weight_init.GroupNorm
    norm.__init__ = with_groups(norm.__init__)
    sd.AutoencoderKL.__init__ = with_sizes(sd.AutoencoderKL.__init__)
    sd.VAE.__init__ = noting_the_weights(sd.VAE.__init__)
