"""Every linear and convolution layer of SDXL's UNet and text encoders, in the original and in diffusers' naming."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Module(NamedTuple):
    """A module's path in both namings and its weight's shape."""

    sgm: str
    diffusers: str
    shape: tuple[int, ...]


# sgm place: (diffusers place, channels, transformer blocks)
ATTENTIONS = {
    "input_blocks.4.1": ("down_blocks.1.attentions.0", 640, 2),
    "input_blocks.5.1": ("down_blocks.1.attentions.1", 640, 2),
    "input_blocks.7.1": ("down_blocks.2.attentions.0", 1280, 10),
    "input_blocks.8.1": ("down_blocks.2.attentions.1", 1280, 10),
    "middle_block.1": ("mid_block.attentions.0", 1280, 10),
    "output_blocks.0.1": ("up_blocks.0.attentions.0", 1280, 10),
    "output_blocks.1.1": ("up_blocks.0.attentions.1", 1280, 10),
    "output_blocks.2.1": ("up_blocks.0.attentions.2", 1280, 10),
    "output_blocks.3.1": ("up_blocks.1.attentions.0", 640, 2),
    "output_blocks.4.1": ("up_blocks.1.attentions.1", 640, 2),
    "output_blocks.5.1": ("up_blocks.1.attentions.2", 640, 2),
}
# sgm place: (diffusers place, channels in, channels out)
RESNETS = {
    "input_blocks.1.0": ("down_blocks.0.resnets.0", 320, 320),
    "input_blocks.2.0": ("down_blocks.0.resnets.1", 320, 320),
    "input_blocks.4.0": ("down_blocks.1.resnets.0", 320, 640),
    "input_blocks.5.0": ("down_blocks.1.resnets.1", 640, 640),
    "input_blocks.7.0": ("down_blocks.2.resnets.0", 640, 1280),
    "input_blocks.8.0": ("down_blocks.2.resnets.1", 1280, 1280),
    "middle_block.0": ("mid_block.resnets.0", 1280, 1280),
    "middle_block.2": ("mid_block.resnets.1", 1280, 1280),
    "output_blocks.0.0": ("up_blocks.0.resnets.0", 2560, 1280),
    "output_blocks.1.0": ("up_blocks.0.resnets.1", 2560, 1280),
    "output_blocks.2.0": ("up_blocks.0.resnets.2", 1920, 1280),
    "output_blocks.3.0": ("up_blocks.1.resnets.0", 1920, 640),
    "output_blocks.4.0": ("up_blocks.1.resnets.1", 1280, 640),
    "output_blocks.5.0": ("up_blocks.1.resnets.2", 960, 640),
    "output_blocks.6.0": ("up_blocks.2.resnets.0", 960, 320),
    "output_blocks.7.0": ("up_blocks.2.resnets.1", 640, 320),
    "output_blocks.8.0": ("up_blocks.2.resnets.2", 640, 320),
}
OTHERS = (
    Module("input_blocks.0.0", "conv_in", (320, 4, 3, 3)),
    Module("time_embed.0", "time_embedding.linear_1", (1280, 320)),
    Module("time_embed.2", "time_embedding.linear_2", (1280, 1280)),
    Module("label_emb.0.0", "add_embedding.linear_1", (1280, 2816)),
    Module("label_emb.0.2", "add_embedding.linear_2", (1280, 1280)),
    Module("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv", (320, 320, 3, 3)),
    Module("input_blocks.6.0.op", "down_blocks.1.downsamplers.0.conv", (640, 640, 3, 3)),
    Module("output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv", (1280, 1280, 3, 3)),
    Module("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv", (640, 640, 3, 3)),
    Module("out.2", "conv_out", (4, 320, 3, 3)),
)
TEXT_WIDTHS = {1: (768, 12), 2: (1280, 32)}


def attention_modules() -> Iterator[Module]:
    """The 722 layers that kohya trains by default: attention, feed-forward, projections."""
    for sgm, (diffusers, width, depth) in ATTENTIONS.items():
        shapes = {"proj_in": (width, width), "proj_out": (width, width)}
        for n in range(depth):
            block = f"transformer_blocks.{n}"
            for attention, context in (("attn1", width), ("attn2", 2048)):
                shapes[f"{block}.{attention}.to_q"] = (width, width)
                shapes[f"{block}.{attention}.to_k"] = (width, context)
                shapes[f"{block}.{attention}.to_v"] = (width, context)
                shapes[f"{block}.{attention}.to_out.0"] = (width, width)
            shapes[f"{block}.ff.net.0.proj"] = (8 * width, width)
            shapes[f"{block}.ff.net.2"] = (width, 4 * width)
        for part, shape in shapes.items():
            yield Module(f"{sgm}.{part}", f"{diffusers}.{part}", shape)


def resnet_modules() -> Iterator[Module]:
    """Layers of the residual blocks."""
    for sgm, (diffusers, before, after) in RESNETS.items():
        yield Module(f"{sgm}.in_layers.2", f"{diffusers}.conv1", (after, before, 3, 3))
        yield Module(f"{sgm}.emb_layers.1", f"{diffusers}.time_emb_proj", (after, 1280))
        yield Module(f"{sgm}.out_layers.3", f"{diffusers}.conv2", (after, after, 3, 3))
        if before != after:
            yield Module(f"{sgm}.skip_connection", f"{diffusers}.conv_shortcut", (after, before, 1, 1))


def unet_modules() -> list[Module]:
    """All 794 layers of the UNet."""
    return [*attention_modules(), *resnet_modules(), *OTHERS]


def text_modules(encoder: int) -> Iterator[Module]:
    """The 72 or 192 layers of a text encoder; both namings are transformers' own."""
    width, depth = TEXT_WIDTHS[encoder]
    for n in range(depth):
        layer = f"text_model.encoder.layers.{n}"
        for p in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield Module(f"{layer}.self_attn.{p}", f"{layer}.self_attn.{p}", (width, width))
        yield Module(f"{layer}.mlp.fc1", f"{layer}.mlp.fc1", (4 * width, width))
        yield Module(f"{layer}.mlp.fc2", f"{layer}.mlp.fc2", (width, 4 * width))


def canonical(module: Module, section: str = "unet") -> str:
    """kohya's name of a module; ``section`` is unet, te1 or te2."""
    return f"lora_{section}_{module.sgm.replace('.', '_')}"
