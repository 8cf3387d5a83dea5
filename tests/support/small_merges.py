"""Two plain LoRAs, a pico host and requests, for tests of whole merges."""

from __future__ import annotations

import dataclasses

from safetensors.torch import load_file, save_file

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.lora.io.read import read_lora

from .pico_host import TEXT_LAYER, PicoHost, module_names, write_kohya

Q = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
NORM = "lora_unet_input_blocks_4_1_transformer_blocks_0_norm1"
TEXT_NORM = "lora_te1_text_model_encoder_layers_0_layer_norm1"


def pico_host(folder):
    """A pico host with two plain LoRAs, dog and ink, of every layer."""
    shapes = {**module_names(), TEXT_LAYER: (6, 6)}
    write_kohya(folder / "dog.safetensors", shapes, rank=2, seed=1)
    write_kohya(folder / "ink.safetensors", shapes, rank=3, alpha=3.0, seed=2)
    return PicoHost(folder)


def request(subject="dog", style="ink", weight=(1.0, 1.0), output="merged", **settings):
    base = MergeSettings(
        method="direct",
        precision="fp32",
        steps=2,
        width=64,
        height=64,
        sampling_steps=2,
        trajectories=2,
        combined_weight=0.0,
    )
    return MergeRequest.pair(
        LoraInput(subject, "a dog", weight[0]),
        LoraInput(style, "a cat", weight[1]),
        output,
        settings=dataclasses.replace(base, **settings),
    )


def add(host, name, content, base="dog"):
    """A LoRA file with a module's tensors replaced."""
    tensors = load_file(host.folder / f"{base}.safetensors")
    owners = {key.partition(".")[0] for key in content}
    tensors = {key: value for key, value in tensors.items() if key.partition(".")[0] not in owners}
    save_file({**tensors, **content}, host.folder / f"{name}.safetensors")


def merged(host):
    return read_lora(host.folder / "merged.safetensors")
