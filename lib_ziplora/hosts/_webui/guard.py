"""Changes of a WebUI's model that every adapter makes for the time of a session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def instance_forwards_aside(unet: nn.Module) -> Iterator[None]:
    """Set aside ``forward`` and ``_forward`` that extensions put on single modules (Hypertile, ControlNet)."""
    aside = [
        (module, name, module.__dict__[name])
        for module in unet.modules()
        for name in ("forward", "_forward")
        if name in module.__dict__
    ]
    try:
        for module, name, _ in aside:
            del module.__dict__[name]
        yield
    finally:
        for module, name, value in aside:
            module.__dict__[name] = value
