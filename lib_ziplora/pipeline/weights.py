"""The checkpoint's weights, for LoRA files that can't be read without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from ..hosts import Host
from ..lora.formats.keys import canonical_modules

Weights = Callable[[str], "Tensor | None"]


@contextmanager
def checkpoint_weights(needed: bool, host: Host) -> Iterator[Weights | None]:
    """Canonical module name -> weight of the host's UNet or text encoders, for the time of the block.

    None when it isn't needed.
    """
    if not needed:
        yield None
        return
    with host.open() as session:
        modules = canonical_modules(session.denoiser.unet)

        def weight(name: str) -> Tensor | None:
            if name.startswith("lora_te"):
                return session.text_weight(name)
            if name not in modules:
                return None
            found: Tensor = modules[name].get_parameter("weight")
            return found.detach().cpu()

        yield weight
