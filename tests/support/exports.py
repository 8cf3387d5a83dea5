"""A merge of three LoRAs that is exported again, for tests of re-exports."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from lib_ziplora.config import LoraInput, MergeRequest
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.reexport import ReexportRequest

from .pico_host import TEXT_LAYER, module_names, write_kohya
from .small_merges import pico_host, request


def host_of_three(folder):
    """A pico host with the LoRAs dog, cat and ink."""
    host = pico_host(folder)
    write_kohya(folder / "cat.safetensors", {**module_names(), TEXT_LAYER: (6, 6)}, rank=4, seed=3)
    return host


def merge(host, method="ziplora", **settings):
    """Two subjects and a style, at other weights than 1."""
    loras = (
        LoraInput("dog", "a dog", 0.7),
        LoraInput("cat", "a cat", -0.4),
        LoraInput("ink", "in ink", 1.3, role="style"),
    )
    base = request(method=method, learning_rate=0.05, steps=1, trajectories=1, guidance_scale=1.0, **settings)
    return run(MergeRequest(loras, "merged", settings=base.settings), host)


def again(host, output="again", source="merged", **asked):
    return run(ReexportRequest(source, output, **asked), host)


def tensors(host, name):
    return load_file(host.folder / f"{name}.safetensors")


def read(host, name):
    return read_lora(host.folder / f"{name}.safetensors")


def same_tensors(host, first, second):
    a, b = tensors(host, first), tensors(host, second)
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def content(host):
    return {path.name: path.read_bytes() for path in host.folder.iterdir()}
