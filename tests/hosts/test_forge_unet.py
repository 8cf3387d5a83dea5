"""What makes Forge's UNet differentiable, on a block that is written as Forge's: no WebUI needed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_ziplora.errors import HostError
from lib_ziplora.hosts._forge.unet import any_inference, check_layers, normal_tensors, out_of_place
from lib_ziplora.ziplora.hooks import checkpointed, lora_hooks

WIDTH = 6


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.to_q(x) @ self.to_k(x).transpose(1, 2)).softmax(-1) @ x


class BasicTransformerBlock(nn.Module):
    """Adds in place to what its norms have kept, and so to its own argument, as Forge's does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.attn1, self.attn2 = Attention(), Attention()
        self.ff = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x += self.attn1(self.norm1(x))
        x += self.attn2(self.norm2(x))
        skip = x
        x = self.ff(self.norm3(x))
        x += skip
        return x


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(BasicTransformerBlock() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def unet() -> Unet:
    torch.manual_seed(0)
    return Unet().double().requires_grad_(False)


def queries(unet: Unet) -> dict[str, nn.Module]:
    return {name: module for name, module in unet.named_modules() if name.endswith("to_q")}


def branches(unet: Unet, ups: dict[str, Tensor]) -> AbstractContextManager[None]:
    down = torch.randn(1, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return lora_hooks(queries(unet), {name: (lambda up=up: (down, up)) for name, up in ups.items()})


def loss(unet: Unet) -> Tensor:
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return unet(x).square().sum()


def zeros(unet: Unet, value: float = 0.0) -> dict[str, Tensor]:
    made = {name: torch.full((WIDTH, 1), value, dtype=torch.float64) for name in queries(unet)}
    return {name: up.requires_grad_() for name, up in made.items()}


def test_the_block_as_it_is_can_not_be_differentiated(unet: Unet) -> None:
    with branches(unet, zeros(unet)), pytest.raises(RuntimeError, match="inplace"):
        loss(unet).backward()


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_finite_differences(unet: Unet, recompute: bool) -> None:
    ups, step = zeros(unet), 1e-6
    blocks = list(unet.blocks) if recompute else []
    with out_of_place(unet), branches(unet, ups), checkpointed(blocks):
        loss(unet).backward()
    for name, up in ups.items():
        values = []
        for change in (-step, step):
            moved = zeros(unet)
            with torch.no_grad(), branches(unet, moved):
                moved[name][2, 0] += change
                values.append(loss(unet).item())
        assert up.grad is not None
        assert up.grad[2, 0].item() == pytest.approx((values[1] - values[0]) / (2 * step), rel=1e-5)


def test_the_output_is_the_same_to_the_bit_and_nothing_stays(unet: Unet) -> None:
    with torch.no_grad(), branches(unet, zeros(unet, 0.1)):
        expected = loss(unet)
        with out_of_place(unet):
            assert torch.equal(loss(unet), expected)
    assert not any(m._forward_pre_hooks or "forward" in m.__dict__ for m in unet.modules())


def test_inference_tensors_become_normal_ones_of_the_same_bits() -> None:
    with torch.inference_mode():
        part = nn.BatchNorm1d(3)
    values = [tensor.clone() for tensor in (*part.parameters(), *part.buffers())]
    assert any_inference(part)
    with torch.inference_mode():
        normal_tensors(part)
    assert not any(tensor.is_inference() for tensor in (*part.parameters(), *part.buffers()))
    assert not any(parameter.requires_grad for parameter in part.parameters())
    assert all(map(torch.equal, (*part.parameters(), *part.buffers()), values))
    kept = list(part.parameters())
    normal_tensors(part)
    assert all(one is other for one, other in zip(part.parameters(), kept, strict=True))


class Packed(nn.Parameter):
    gguf_cls = object()


@pytest.mark.parametrize(
    "weight",
    [
        nn.Parameter(torch.zeros(18, 1, dtype=torch.uint8), requires_grad=False),
        nn.Parameter(torch.zeros(WIDTH, WIDTH, dtype=torch.int8), requires_grad=False),
        Packed(torch.zeros(WIDTH, WIDTH)),
        None,
    ],
    ids=["nf4", "int8", "gguf", "nunchaku"],
)
def test_quantised_layers_are_refused(unet: Unet, weight: Any) -> None:
    check_layers("a checkpoint", unet)
    unet.blocks[1].attn2.to_q.weight = weight
    with pytest.raises(HostError, match=r"a checkpoint's layers are quantised"):
        check_layers("a checkpoint", unet)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_other_precisions_are_taken(unet: Unet, dtype: torch.dtype) -> None:
    for module in queries(unet).values():
        module.weight = nn.Parameter(module.weight.to(dtype), requires_grad=False)
    check_layers("a checkpoint", unet)


def test_a_compiled_unet_is_refused(unet: Unet) -> None:
    unet._compiled_call_impl = lambda *args: None  # type: ignore[assignment]
    with pytest.raises(HostError, match="compiled"):
        check_layers("a checkpoint", unet)
