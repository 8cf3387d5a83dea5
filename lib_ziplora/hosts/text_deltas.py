"""Delta weights of a LoRA's text-encoder layers, added to a checkpoint's weights for a while."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..denoiser import TextDeltas
from ..errors import IncompatibleError
from .offload import CPU, device_of, move


@contextmanager
def applied(deltas: TextDeltas, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Add dense delta weights to linear layers inside the block.

    Nothing is written into a weight (Forge's are inference tensors, which can't be): the layer gets a parameter of
    its own meanwhile, and afterwards the very one that it had. That one waits in the CPU's memory, where it can be
    moved: all of them beside the changed ones, 1.4 GB of SDXL, would not fit an 8 GB card.

    Raises:
        IncompatibleError: a layer that the text encoders don't have, or of another shape.
    """
    require_layers(deltas, modules)
    kept: dict[str, tuple[nn.Parameter, torch.device]] = {}
    try:
        for name, delta in deltas.items():
            parameter = modules[name].weight
            assert isinstance(parameter, nn.Parameter)
            with torch.no_grad():
                changed = nn.Parameter(summed(parameter, delta(), name), requires_grad=False)
            kept[name], modules[name].weight = (parameter, device_of(parameter)), changed
            if not parameter.is_inference():
                move(parameter, CPU)
        yield
    finally:
        for name, (parameter, device) in kept.items():
            modules[name].weight = parameter
            if not parameter.is_inference():
                move(parameter, device)


def weight_of(name: str, modules: Mapping[str, nn.Module]) -> Tensor | None:
    """The weight of a layer, on the CPU; None where there is none of that name."""
    if name not in modules:
        return None
    weight: Tensor = modules[name].get_parameter("weight")
    return weight.detach().cpu()


def require_layers(names: Collection[str], present: Collection[str]) -> None:
    """Raise IncompatibleError for a layer name that the text encoders don't have."""
    missing = sorted(set(names) - set(present))
    if missing:
        raise IncompatibleError(
            f"The checkpoint's text encoders have no layer {missing[0]}"
            f"{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}; "
            "is the LoRA made for SDXL? Set the text encoder layers to none to leave them out."
        )


def summed(weight: Tensor, delta: Tensor, name: str) -> Tensor:
    """The weight with a delta added in fp32, in the weight's own dtype and on its device.

    Raises:
        IncompatibleError: the shapes differ.
    """
    if delta.shape != weight.shape:
        raise IncompatibleError(
            f"Layer {name} of the LoRA has a delta weight of shape {tuple(delta.shape)}, "
            f"the checkpoint's is {tuple(weight.shape)}; is the LoRA made for SDXL?"
        )
    return (weight.float() + delta.to(weight.device, torch.float32)).to(weight.dtype)
