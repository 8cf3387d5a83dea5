"""Diffusers' names of an SDXL model's tensors, rewritten as SDXL's original (sgm) names.

Keys are renamed one by one, so what isn't understood is refused instead of being written under a
wrong name. ``config`` is always the component's own config.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Config = dict[str, Any]
Weights = dict[str, Tensor]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TE1 = "conditioner.embedders.0.transformer.text_model."
TE2 = "conditioner.embedders.1.model."

UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_PARTS = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
VAE_MID = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}
TE2_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
TE2_TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def require(condition: bool, what: str) -> None:
    """Refuse with a sentence (ValueError) when the folder isn't SDXL-shaped."""
    if not condition:
        raise ValueError(f"not an SDXL-shaped model: {what}")


def replace_part(key: str, parts: dict[str, str]) -> str:
    """Rename the first of ``parts`` that is a dotted piece of ``key``; others stay."""
    for old, new in parts.items():
        renamed, count = re.subn(rf"(^|\.){re.escape(old)}(?=\.)", rf"\g<1>{new}", key)
        if count:
            return renamed
    return key


def unet_key(key: str, layers_per_block: int, up_attention: Sequence[bool]) -> str:
    """UNet key, diffusers -> sgm. ``up_attention``: which up blocks have attention layers."""
    module, _, leaf = key.rpartition(".")
    if module in UNET_TOP:
        return f"{UNET}{UNET_TOP[module]}.{leaf}"
    match = re.fullmatch(r"(down_blocks|up_blocks)\.(\d+)\.(\w+)\.(\d+)\.(.+)", key)
    middle = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", key)
    if middle:
        kind, index, rest = middle.groups()
        place = f"middle_block.{2 * int(index) if kind == 'resnets' else 1}"
    elif match:
        side, block, kind, index, rest = match.groups()
        down = side == "down_blocks"
        start = int(block) * (layers_per_block + 1) + int(down)
        stage = "input_blocks" if down else "output_blocks"
        slot = {"resnets": 0, "attentions": 1, "downsamplers": 0}.get(kind, 1)
        if kind == "upsamplers":
            slot = 2 if up_attention[int(block)] else 1
        within = layers_per_block if kind.endswith("samplers") else int(index)
        place = f"{stage}.{start + within}.{slot}"
        rest = rest.replace("conv.", "op.", 1) if kind == "downsamplers" else rest
    else:
        raise ValueError(f"unknown UNet key {key}")
    rest = replace_part(rest, UNET_RESNET) if kind == "resnets" else rest
    return f"{UNET}{place}.{rest}"


def vae_key(key: str, levels: int) -> str:
    """Autoencoder key, diffusers -> sgm; the decoder's levels are counted the other way round."""
    key = replace_part(key, VAE_PARTS)
    if ".mid_block." in key:
        key = replace_part(key, VAE_MID).replace(".mid_block.", ".mid.")
    match = re.fullmatch(
        r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|\w+samplers)\.(\d+)\.(.+)", key
    )
    if match:
        side, level, kind, index, rest = match.groups()
        way, number = ("down", int(level)) if side == "encoder" else ("up", levels - 1 - int(level))
        piece = f"block.{index}" if kind == "resnets" else f"{way}sample"
        key = f"{side}.{way}.{number}.{piece}.{rest}"
    require(not re.search("_block|resnets|attentions|samplers", key), f"unknown VAE key {key}")
    return VAE + key


def convert_unet(weights: Weights, config: Config) -> Weights:
    """All UNet tensors under sgm names; shapes are the same in both."""
    attention = ["Attn" in kind for kind in config["up_block_types"]]
    return {unet_key(k, config["layers_per_block"], attention): v for k, v in weights.items()}


def convert_vae(weights: Weights, config: Config) -> Weights:
    """All autoencoder tensors; attention projections (out, in) become 1x1 convolutions."""
    out: Weights = {}
    for key, value in weights.items():
        if ".attentions." in key and value.ndim == 2:
            value = value[:, :, None, None]
        out[vae_key(key, len(config["block_out_channels"]))] = value
    return out


def bare_text_key(key: str) -> str:
    """Text encoder key without the prefix that only some versions of transformers write."""
    return key.removeprefix("text_model.")


def convert_te1(weights: Weights, config: Config) -> Weights:
    """The first text encoder keeps transformers' names under SDXL's prefix."""
    out = {TE1 + bare_text_key(key): value for key, value in weights.items()}
    positions = torch.arange(config["max_position_embeddings"]).unsqueeze(0)
    return {TE1 + "embeddings.position_ids": positions, **out}


def convert_te2(weights: Weights, config: Config) -> Weights:
    """The second text encoder in open_clip's names.

    q, k and v are stacked to ``in_proj`` (3*width, width); ``text_projection`` is transposed to
    (width, out); the MLP, 4*width wide in open_clip, is filled up with zeros, which the
    activations (both map 0 to 0) leave without effect.
    """
    source = {bare_text_key(key): value for key, value in weights.items()}
    source.pop("embeddings.position_ids", None)
    width = 4 * config["hidden_size"]
    out: Weights = {TE2 + "text_projection": source.pop("text_projection.weight").T.contiguous()}
    out.update({TE2 + new: source.pop(old) for old, new in TE2_TOP.items()})
    for layer in range(config["num_hidden_layers"]):
        old, new = f"encoder.layers.{layer}.", f"{TE2}transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            stacked = [source.pop(f"{old}self_attn.{p}_proj.{kind}") for p in "qkv"]
            out[f"{new}attn.in_proj_{kind}"] = torch.cat(stacked)
        for key in [key for key in source if key.startswith(old)]:
            value = source.pop(key)
            if ".mlp.fc1." in key:
                value = pad_zeros(value, 0, width)
            elif key.endswith(".mlp.fc2.weight"):
                value = pad_zeros(value, 1, width)
            out[new + replace_part(key.removeprefix(old), TE2_PARTS)] = value
    require(not source, f"text_encoder_2 has unknown keys {sorted(source)}")
    return out


def pad_zeros(value: Tensor, dim: int, size: int) -> Tensor:
    """``value`` with dimension ``dim`` filled up with zeros to ``size``."""
    require(value.shape[dim] <= size, "text_encoder_2's MLP is wider than 4 times its width")
    shape = list(value.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([value, value.new_zeros(shape)], dim)


CONVERTERS: dict[str, Callable[[Weights, Config], Weights]] = {
    "unet": convert_unet,
    "vae": convert_vae,
    "text_encoder": convert_te1,
    "text_encoder_2": convert_te2,
}
