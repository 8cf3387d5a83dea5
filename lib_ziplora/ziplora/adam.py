"""Adam over all coefficients at once, without asking the device anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class FlatAdam:
    """Adam (Kingma and Ba, arXiv 1412.6980) on many small tensors as if they were one.

    Args:
        parameters: of one device and dtype; changed in place.
        learning_rate: Adam's.
    """

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float) -> None:
        self._parameters = list(parameters)
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._rate = learning_rate
        like = self._parameters[0]
        self._mean = torch.zeros(sum(self._sizes), dtype=like.dtype, device=like.device)
        self._square = torch.zeros_like(self._mean)
        self._count = torch.zeros((), dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def step(self, gradient: Tensor, usable: Tensor) -> None:
        """One update; where ``usable`` is False, everything stays as it was.

        Args:
            gradient: of all parameters, flat, one after the other.
            usable: bool, () on the same device: whether the gradient is finite.
        """
        first, second = BETAS
        gradient = torch.where(usable, gradient, torch.zeros_like(gradient))
        count = self._count + 1
        mean = torch.lerp(self._mean, gradient, 1 - first)
        square = torch.lerp(self._square, gradient.square(), 1 - second)
        root = (square / (1 - second**count)).sqrt() + EPSILON
        change = -self._rate * mean / (1 - first**count) / root
        self._count = torch.where(usable, count, self._count)
        self._mean = torch.where(usable, mean, self._mean)
        self._square = torch.where(usable, square, self._square)
        change = torch.where(usable, change, torch.zeros_like(change))
        parts = [
            part.view_as(parameter)
            for part, parameter in zip(change.split(self._sizes), self._parameters, strict=True)
        ]
        torch._foreach_add_(self._parameters, parts)
