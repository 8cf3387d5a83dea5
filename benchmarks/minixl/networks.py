"""The judge's networks and their training: which subject a picture shows, and in which style."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import to_signal

BATCH, RATE, WIDTH, SIZE = 64, 4e-3, 128, 64
HELDOUT, SEED = 10, 0


class SubjectNet(nn.Module):
    """64 x 64 pixels -> an embedding (n, WIDTH) and subject logits."""

    def __init__(self, subjects: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_block(3, 32, 5, 2),
            *_block(32, 48, 3, 2),
            *_block(48, 96, 3, 1),
            *_block(96, 128, 3, 2),
            *_block(128, 128, 3, 1),
            *_block(128, 192, 3, 2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(192 * 16, WIDTH),
            nn.BatchNorm1d(WIDTH),
        )
        self.head = nn.Linear(WIDTH, subjects)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.body(x)
        return embedding, self.head(F.relu(embedding))


class StyleNet(nn.Module):
    """64 x 64 pixels -> an embedding (n, 256) and style logits: fine texture first, place forgotten."""

    def __init__(self, styles: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            *_block(12, 32, 3, 1),
            nn.MaxPool2d(2),
            *_block(32, 64, 3, 1),
            *_block(64, 96, 3, 2),
            *_block(96, 128, 3, 1),
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(256, styles))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        embedding = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        return embedding, self.head(embedding)


def _block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def to_input(pixels: np.ndarray[Any, Any]) -> Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, SIZE, SIZE) in -1..1; larger pictures by averaging areas."""
    return F.interpolate(to_signal(pixels), size=SIZE, mode="area")


def augment(x: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Shifts, scale, turn, mirror, colour and blur, each drawn anew for every picture.

    Args:
        x: (n, 3, h, w) in -1..1.
        generator: on the CPU.
        strength: of the changes in place and colour; where a drawing sits in its frame and its
            exact colours are part of a style, not of a subject.
    """

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(x), *shape, generator=generator)

    zoom, angle = 1 + strength * draw(-0.15, 0.35), strength * draw(-0.2, 0.2)
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    shift = strength * draw(-0.2, 0.2, 2)
    rows = [
        torch.stack([cos * mirror, -sin, shift[:, 0]], 1),
        torch.stack([sin * mirror, cos, shift[:, 1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    moved = F.grid_sample(x - 1, grid, align_corners=False)
    mix = torch.eye(3) + strength * draw(-0.15, 0.15, 3, 3)
    light = 1 + strength * draw(-0.2, 0.15, 1, 1, 1)
    coloured = torch.einsum("bij,bjhw->bihw", mix, moved) * light + 1
    soft = F.interpolate(F.avg_pool2d(coloured, 2), scale_factor=2, mode="bilinear")
    blurred = torch.lerp(coloured, soft, draw(-0.5, 1.0, 1, 1, 1).clamp(min=0))
    return (blurred + 0.02 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def split(count: int) -> tuple[Tensor, Tensor]:
    """Rows to train on, and every ``HELDOUT``-th of a seeded order kept out."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))
    return order[count // HELDOUT :], order[: count // HELDOUT]


@dataclass(frozen=True)
class Task:
    """One of the judge's two questions.

    Attributes:
        net: gives (embedding, logits); seeded, untrained.
        truth: (n,), the right class of every drawing.
        epochs: passes over the drawings.
        strength: of the augmentation.
    """

    net: nn.Module
    truth: Tensor
    epochs: int
    strength: float


def train(task: Task, versions: Tensor, rows: Tensor) -> None:
    """Train a task's network on some rows of the drawings.

    Args:
        task: what to learn.
        versions: (versions, n, 3, SIZE, SIZE), of which one is drawn each time.
        rows: which of the n.
    """
    net = task.net
    adam = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
    steps = len(rows) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, epochs=task.epochs, steps_per_epoch=steps)
    generator = torch.Generator().manual_seed(SEED)
    net.train()
    for _ in range(task.epochs):
        order = torch.randperm(len(rows), generator=generator)[: steps * BATCH]
        for batch in rows[order].split(BATCH):
            which = torch.randint(len(versions), (len(batch),), generator=generator)
            logits = net(augment(versions[which, batch].float(), generator, task.strength))[1]
            loss = F.cross_entropy(logits, task.truth[batch], label_smoothing=0.1)
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    net.eval()


def ranks_of(logits: Tensor, truth: Tensor) -> Tensor:
    """The rank of the true class of each row, 1 = first, as float."""
    return (logits > logits.gather(1, truth[:, None])).sum(1).float() + 1
