"""The checkpoint's weights, for LoRA files that can't be read without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ..errors import HostError, UnsupportedLoraError
from ..hosts import Host
from ..lora.formats.keys import canonical_modules
from ..lora.io.inspect import inspect_header, require_sdxl

Weights = Callable[[str], "Tensor | None"]


def check_readable(path: Path, host: Host) -> None:
    """Refuse a file that isn't a LoRA of SDXL, or that needs a checkpoint where there is none.

    Raises:
        UnsupportedLoraError: the sentence names the family and what to do.
    """
    header = inspect_header(path)
    require_sdxl(header)
    if header.relative_family:
        try:
            host.check()
        except HostError as error:
            require_sdxl(header, checkpoint=False)
            raise UnsupportedLoraError(str(error)) from error


@contextmanager
def checkpoint_weights(paths: list[Path], host: Host) -> Iterator[Weights | None]:
    """Canonical module name -> weight of the host's UNet, for the time of the block; None when no file needs it."""
    if not any(inspect_header(path).relative_family for path in paths):
        yield None
        return
    with host.open() as session:
        modules = canonical_modules(session.denoiser.unet)

        def weight(name: str) -> Tensor | None:
            if name not in modules:
                return None
            found: Tensor = modules[name].get_parameter("weight")
            return found.detach().cpu()

        yield weight
