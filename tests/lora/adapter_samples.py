"""Random modules of every family and form, as the trainers lay them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LINEAR = (12, 8)
CONV = (12, 8, 3, 3)
POINTWISE = (12, 8, 1, 1)


@dataclass(frozen=True)
class Sample:
    """A module's tensors and the checkpoint's weight they belong to."""

    parts: dict[str, Tensor]
    weight: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)


def rand(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int, size: float = 0.5) -> Tensor:
        return size * torch.randn(*shape, generator=generator)

    return make


def columns_of(shape: tuple[int, ...]) -> int:
    return torch.Size(shape[1:]).numel()


def lora(make, shape, rank=3, alpha=1.5):
    return {
        "down": make(rank, *shape[1:]),
        "up": make(shape[0], rank, *[1] * (len(shape) - 2)),
        "alpha": torch.tensor(alpha),
    }


def locon_mid(make, shape, rank=3):
    return {
        "down": make(rank, shape[1], 1, 1),
        "mid": make(rank, rank, *shape[2:]),
        "up": make(shape[0], rank, 1, 1),
        "alpha": torch.tensor(2.0),
    }


def loha(make, shape, rank=3, alpha=1.5):
    parts = {"alpha": torch.tensor(alpha)}
    for n in "12":
        parts[f"hada_w{n}_a"] = make(shape[0], rank)
        parts[f"hada_w{n}_b"] = make(rank, columns_of(shape))
    return parts


def loha_tucker(make, shape, rank=3):
    parts = {"alpha": torch.tensor(2.0)}
    for n in "12":
        parts[f"hada_t{n}"] = make(rank, rank, *shape[2:])
        parts[f"hada_w{n}_a"] = make(rank, shape[0])
        parts[f"hada_w{n}_b"] = make(rank, shape[1])
    return parts


def lokr(make, shape, first="whole", second="whole", rank=2, alpha=3.0):
    """(12, 8) as (3, 2) times (4, 4)."""
    a, c, b, d, kernel = 3, 2, shape[0] // 3, shape[1] // 2, shape[2:]
    parts = {"alpha": torch.tensor(alpha)}
    if first == "whole":
        parts["lokr_w1"] = make(a, c)
    else:
        parts |= {"lokr_w1_a": make(a, rank), "lokr_w1_b": make(rank, c)}
    if second == "whole":
        parts["lokr_w2"] = make(b, d, *kernel)
    elif second == "tucker":
        parts |= {
            "lokr_t2": make(rank, rank, *kernel),
            "lokr_w2_a": make(rank, b),
            "lokr_w2_b": make(rank, d),
        }
    else:
        parts |= {"lokr_w2_a": make(b, rank), "lokr_w2_b": make(rank, d * torch.Size(kernel).numel())}
    return parts


def full(make, shape):
    return {"diff": make(*shape), "diff_b": make(shape[0])}


def norm(make, shape):
    return {"w_norm": make(*shape), "b_norm": make(*shape)}


def ia3(make, shape, on_input):
    count = shape[1] if on_input else shape[0]
    flat = (count,) if len(shape) == 2 else (1, count, *[1] * (len(shape) - 2))
    return {"weight": make(*flat), "on_input": torch.tensor(int(on_input))}


def glora_old(make, shape, rank=3):
    return {
        "a1.weight": make(rank, shape[1]),
        "a2.weight": make(shape[1], rank),
        "b1.weight": make(rank, shape[1]),
        "b2.weight": make(shape[0], rank),
        "alpha": torch.tensor(1.5),
    }


def glora_new(make, shape, rank=3):
    tail = [1] * (len(shape) - 2)
    return {
        "a1.weight": make(shape[1], rank, *tail),
        "a2.weight": make(rank, shape[1], *tail),
        "b1.weight": make(shape[0], rank, *tail),
        "b2.weight": make(rank, *shape[1:]),
        "alpha": torch.tensor(1.5),
    }


def oft(make, shape, size=4, alpha=0.0, rescaled=False):
    parts = {"oft_blocks": make(shape[0] // size, size, size), "alpha": torch.tensor(alpha)}
    return parts | ({"rescale": make(shape[0], *[1] * (len(shape) - 1))} if rescaled else {})


def oft_old(make, shape, size=4):
    return {"oft_diag": make(shape[0] // size, size, size)}


def boft(make, shape, size=4, stages=2, alpha=0.0, rescaled=False):
    parts = {"oft_blocks": make(stages, shape[0] // size, size, size), "alpha": torch.tensor(alpha)}
    return parts | ({"rescale": make(shape[0], *[1] * (len(shape) - 1))} if rescaled else {})


def dora(parts, make, shape, rows):
    magnitude = (
        make(shape[0], *[1] * (len(shape) - 1)) if rows else make(1, shape[1], *[1] * (len(shape) - 2))
    )
    return parts | {"dora_scale": magnitude.abs() + 0.5}


def boft_shape(shape):
    """Two stages of blocks of 4 need a multiple of 8 outputs."""
    return (16, *shape[1:])


def samples() -> dict[str, Sample]:
    """Every family in every form, by name."""
    found: dict[str, Sample] = {}
    make = rand(0)

    def add(name: str, parts: dict[str, Tensor], shape: tuple[int, ...]) -> None:
        found[f"{name}-{'x'.join(map(str, shape))}"] = Sample(parts, make(*shape))

    for shape in (LINEAR, CONV, POINTWISE):
        add("lora", lora(make, shape), shape)
        add("lora-scale", lora(make, shape) | {"scale": torch.tensor(0.7)}, shape)
        add("lora-no-alpha", {k: v for k, v in lora(make, shape).items() if k != "alpha"}, shape)
        add("loha", loha(make, shape), shape)
        for first in ("whole", "factors"):
            for second in ("whole", "factors"):
                add(f"lokr-{first}-{second}", lokr(make, shape, first, second), shape)
        add("full", full(make, shape), shape)
        for on_input in (False, True):
            add(f"ia3-{'input' if on_input else 'output'}", ia3(make, shape, on_input), shape)
        add("glora-new", glora_new(make, shape), shape)
        for alpha in (0.0, 0.05):
            for rescaled in (False, True):
                form = f"{alpha}{'-rescaled' if rescaled else ''}"
                add(f"oft-{form}", oft(make, shape, alpha=alpha, rescaled=rescaled), shape)
                wide = boft_shape(shape)
                add(f"boft-{form}", boft(make, wide, alpha=alpha, rescaled=rescaled), wide)
        add("oft-old", oft_old(make, shape), shape)
        for rows in (False, True):
            kind = "rows" if rows else "columns"
            add(f"dora-{kind}", dora(lora(make, shape), make, shape, rows), shape)
            add(f"doha-{kind}", dora(loha(make, shape), make, shape, rows), shape)
            add(f"dokr-{kind}", dora(lokr(make, shape), make, shape, rows), shape)
    add("locon-mid", locon_mid(make, CONV), CONV)
    add("loha-tucker", loha_tucker(make, CONV), CONV)
    for first in ("whole", "factors"):
        add(f"lokr-{first}-tucker", lokr(make, CONV, first, "tucker"), CONV)
    add("glora-old", glora_old(make, LINEAR), LINEAR)
    add("norm", norm(make, (12,)), (12,))
    return found


SAMPLES = samples()
