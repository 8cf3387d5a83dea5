"""Models that are neither trained nor in training mode, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(parts: Sequence[nn.Module]) -> Iterator[None]:
    """No parameter asks for a gradient and every module is in evaluation mode; then as before."""
    flags = [(parameter, parameter.requires_grad) for part in parts for parameter in part.parameters()]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
