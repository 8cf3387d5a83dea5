"""Taking LoRAs off the model's weights, into which the WebUI has merged them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import HostError
from .._webui import loras
from . import model

PATCHED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)
"""The classes into whose weights the WebUI merges LoRAs."""


def take_off(model: Any) -> None:
    """Restore the checkpoint's own weights where pictures have merged LoRAs into them.

    Raises:
        HostError: a module could not be restored.
    """
    networks = loras.extension()
    if networks is None:
        return
    networks.load_networks([], [], [], [])
    with torch.inference_mode(False), torch.no_grad():
        for module in model.modules():
            if isinstance(module, PATCHED):
                networks.network_apply_weights(module)
    baked = [m for m in model.modules() if getattr(m, "network_current_names", ())]
    if baked:
        raise HostError(
            f"The WebUI could not take an earlier picture's LoRA off {len(baked)} layers "
            f"({getattr(baked[0], 'network_layer_name', '?')}). Reload the checkpoint and try again."
        )


@contextmanager
def off_afterwards(loaded: Any) -> Iterator[None]:
    """The checkpoint's own weights afterwards; the next picture puts on what it names."""
    try:
        yield
    finally:
        if model.loaded() is loaded:
            take_off(loaded)


def refresh(path: Path, loaded: Any | None) -> None:
    """Make a file that was just written known, and forget whatever it replaced.

    The WebUI compares LoRAs by name: weights and cached conditionings made with an older
    file of that name would be used again. The caller holds the WebUI's lock.
    """
    networks = loras.extension()
    if networks is None:
        return
    stale = [
        n for n, net in networks.networks_in_memory.items() if Path(net.network_on_disk.filename) == path
    ]
    for name in stale:
        networks.networks_in_memory.pop(name, None)
    if loaded is not None:
        take_off(loaded)
    loras.listed_again(networks, path)
