"""A denoiser small enough for finite differences: convolutions, attention-like linears, blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_ziplora.denoiser import Conditioning
from lib_ziplora.lora.layer import LoraLayer


class Block(nn.Module):
    """A residual block with a 3x3 convolution, a strided one, and two linear layers."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.point = nn.Conv2d(width, width, 1)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(context, width, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.point(F.silu(self.conv(x)))
        tokens = x.flatten(2).transpose(1, 2)
        weights = (self.to_q(tokens) @ self.to_k(context).transpose(1, 2)).softmax(-1)
        mixed = (weights @ self.to_k(context)).transpose(1, 2).reshape(x.shape)
        return x + mixed


class PicoUNet(nn.Module):
    def __init__(self, width: int = 6, context: int = 5) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, width, 3, padding=1)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList([Block(width, context), Block(width, context)])
        self.conv_out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        h = self.down(self.conv_in(x)) * (1 + t.to(x.dtype).reshape(-1, 1, 1, 1) / 1000)
        for block in self.blocks:
            h = block(h, context)
        return self.conv_out(F.interpolate(h, scale_factor=2.0))


class PicoDenoiser:
    """``Denoiser`` over ``PicoUNet`` on the CPU."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.unet: nn.Module = PicoUNet().to(dtype).eval().requires_grad_(False)
        self.alphas_cumprod = torch.linspace(0.999, 0.005, 1000)
        self.prediction_type = "epsilon"
        self.latent_channels = 4
        self.device = torch.device("cpu")
        self.dtype = dtype
        self.forwards = 0

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        self.forwards += 1
        return self.unet(x_t.to(self.dtype), t, cond.context.to(self.dtype)).float()

    def checkpoint_blocks(self) -> Sequence[nn.Module]:
        return list(self.unet.blocks)

    def modules(self) -> dict[str, nn.Module]:
        return {
            f"lora_unet_{name}": module
            for name, module in self.unet.named_modules()
            if hasattr(module, "weight")
        }


def random_lora(denoiser: PicoDenoiser, rank: int, seed: int, strength: float = 1.0) -> dict[str, LoraLayer]:
    """A LoRA of random factors over every layer of the pico model."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, module in denoiser.modules().items():
        shape = module.weight.shape
        kernel = () if tuple(shape[2:]) in ((), (1, 1)) else tuple(shape[2:])
        down = torch.randn(rank, shape[1], *kernel, generator=generator) / 4
        up = torch.randn(shape[0], rank, generator=generator) * strength / 4
        layers[name] = LoraLayer(name, down, up, alpha=rank / 2)
    return layers


def conditioning(rows: int, seed: int = 0) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(rows, 3, 5, generator=generator), torch.randn(rows, 2, generator=generator)
    )
