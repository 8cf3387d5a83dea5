"""The module names of SDXL, as tables: what every other spelling is looked up in.

Canonical names are those that kohya's trainer writes and every loader reads: the path in the
original (sgm) UNet with underscores, ``input_blocks_4_1_transformer_blocks_0_attn1_to_q``, and
the path in transformers' CLIP, ``text_model_encoder_layers_0_self_attn_q_proj``. Diffusers numbers
the UNet's blocks differently; ``unet_paths`` knows both.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

LEVELS = 3
LAYERS_PER_BLOCK = 2
MAX_TRANSFORMER_BLOCKS = 10
TEXT_LAYERS = {1: 12, 2: 32}

UNET_TOP = {
    "conv_in": "input_blocks_0_0",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
}
RESNET = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
# The old attention processors of diffusers call to_out_0 to_out.
TRANSFORMER_BLOCK = {
    **{
        f"{attn}_{p}": f"{attn}_{p}"
        for attn in ("attn1", "attn2")
        for p in ("to_q", "to_k", "to_v", "to_out_0")
    },
    **{f"{attn}_to_out": f"{attn}_to_out_0" for attn in ("attn1", "attn2")},
    **{name: name for name in ("ff_net_0_proj", "ff_net_2", "norm1", "norm2", "norm3")},
}
ATTENTION = {
    **{name: name for name in ("norm", "proj_in", "proj_out")},
    **{
        f"transformer_blocks_{n}_{old}": f"transformer_blocks_{n}_{new}"
        for n in range(MAX_TRANSFORMER_BLOCKS)
        for old, new in TRANSFORMER_BLOCK.items()
    },
}
TEXT_LAYER = {
    **{f"self_attn_{p}_proj": f"self_attn_{p}_proj" for p in ("q", "k", "v", "out")},
    **{f"self_attn_to_{p}": f"self_attn_{p}_proj" for p in ("q", "k", "v", "out")},
    **{name: name for name in ("mlp_fc1", "mlp_fc2", "layer_norm1", "layer_norm2")},
}
# The second encoder's last layer, which Forge and ComfyUI change and the WebUI does not.
TEXT_PROJECTION = "text_projection"
TEXT_ATTENTION = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj")
# The canonical names' ends of the norm layers.
NORMS = ("_norm", "norm1", "norm2", "norm3", "_in_layers_0", "_out_layers_0", "unet_out_0")
# The canonical path's end of a 1x1 convolution, which low-rank factors alone don't tell from a linear layer.
POINTWISE_CONVOLUTION = "_skip_connection"

# The canonical paths' ends of the 3x3 convolutions.
CONVOLUTIONS = ("_in_layers_2", "_out_layers_3", "_0_op", "_2_conv", "unet_input_blocks_0_0", "unet_out_2")
KERNEL = (3, 3)

# The largest weights: feed-forward layers of the lowest level and of the text encoders; the convolution and the
# 1x1 convolution where the lowest level's skips come in.
LARGEST = {"lora_te1": 4 * 768 * 768, "lora_te2": 4 * 1280 * 1280, "lora_unet": 8 * 1280 * 1280}
LARGEST_CONVOLUTION = 2560 * 1280 * 9


def largest_weight(name: str) -> int:
    """How many numbers the weight of a module has in SDXL, at most; the canonical name says the kind."""
    if name.endswith(CONVOLUTIONS):
        return LARGEST_CONVOLUTION
    return next((size for start, size in LARGEST.items() if name.startswith(start)), LARGEST_CONVOLUTION)


def is_norm(name: str) -> bool:
    """Whether a canonical name is that of a norm layer, which has a weight and a bias (features,)."""
    return name.endswith(NORMS)


def _down_places() -> Iterator[tuple[str, str, dict[str, str]]]:
    for level in range(LEVELS):
        first = 1 + level * (LAYERS_PER_BLOCK + 1)
        for layer in range(LAYERS_PER_BLOCK):
            block = f"input_blocks_{first + layer}"
            yield f"down_blocks_{level}_resnets_{layer}", f"{block}_0", RESNET
            if level > 0:
                yield f"down_blocks_{level}_attentions_{layer}", f"{block}_1", ATTENTION
        if level < LEVELS - 1:
            down = f"input_blocks_{first + LAYERS_PER_BLOCK}_0"
            yield f"down_blocks_{level}_downsamplers_0", down, {"conv": "op"}


def _up_places() -> Iterator[tuple[str, str, dict[str, str]]]:
    for level in range(LEVELS):
        first = level * (LAYERS_PER_BLOCK + 1)
        for layer in range(LAYERS_PER_BLOCK + 1):
            block = f"output_blocks_{first + layer}"
            yield f"up_blocks_{level}_resnets_{layer}", f"{block}_0", RESNET
            if level < LEVELS - 1:
                yield f"up_blocks_{level}_attentions_{layer}", f"{block}_1", ATTENTION
        if level < LEVELS - 1:
            yield (
                f"up_blocks_{level}_upsamplers_0",
                f"output_blocks_{first + LAYERS_PER_BLOCK}_2",
                {"conv": "conv"},
            )


def _places() -> Iterator[tuple[str, str, dict[str, str]]]:
    """(diffusers' place, sgm's place, {diffusers' part: sgm's part}) over the whole UNet."""
    yield from _down_places()
    yield "mid_block_resnets_0", "middle_block_0", RESNET
    yield "mid_block_attentions_0", "middle_block_1", ATTENTION
    yield "mid_block_resnets_1", "middle_block_2", RESNET
    yield from _up_places()


@lru_cache(maxsize=1)
def unet_paths() -> tuple[dict[str, str], dict[str, str]]:
    """(sgm path -> canonical path, diffusers path -> canonical path), with underscores, SDXL's UNet."""
    sgm = {name: name for name in UNET_TOP.values()}
    diffusers = dict(UNET_TOP)
    for theirs, ours, parts in _places():
        for old, new in parts.items():
            canonical = f"{ours}_{new}"
            diffusers[f"{theirs}_{old}"] = canonical
            sgm[canonical] = canonical
            if parts is ATTENTION:
                sgm[f"{ours}_{old}"] = canonical
    return sgm, diffusers


@lru_cache(maxsize=2)
def text_paths(encoder: int) -> dict[str, str]:
    """Path in transformers' CLIP (with or without ``text_model_``) -> canonical path."""
    paths = {}
    for n in range(TEXT_LAYERS[encoder]):
        for old, new in TEXT_LAYER.items():
            canonical = f"text_model_encoder_layers_{n}_{new}"
            paths[f"text_model_encoder_layers_{n}_{old}"] = canonical
            paths[f"encoder_layers_{n}_{old}"] = canonical
    if encoder == 2:
        paths[TEXT_PROJECTION] = TEXT_PROJECTION
    return paths
