"""A judge of pictures: two small networks that say which subject a picture shows, and in which style.

    python -m benchmarks.minixl.embedding [--out benchmarks/minixl/judge]

Trained from nothing on nine tenths of the true drawings (``data``), each as it is and as
MiniXL's autoencoder gives it back, so that MiniXL's pictures lie in its domain; the other
tenth says how far it can be trusted. Seeded; some minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .data import CACHE, STYLES, Drawings, load, to_signal

MODEL = Path(__file__).resolve().parent / "model"
JUDGE = Path(__file__).resolve().parent / "judge"
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


def to_input(pixels: np.ndarray) -> Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, SIZE, SIZE) in -1..1; larger pictures by averaging areas."""
    return F.interpolate(to_signal(pixels), size=SIZE, mode="area")


@torch.no_grad()
def through_autoencoder(pixels: np.ndarray, batch: int = 32) -> Tensor:
    """What MiniXL's autoencoder makes of drawings, the best that MiniXL could draw, as ``to_input``."""
    vae: Any = AutoencoderKL.from_pretrained(MODEL / "vae").float().eval()
    parts = []
    for part in to_signal(pixels).split(batch):
        back = vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1)
        parts.append(F.interpolate(back, size=SIZE, mode="area"))
    return torch.cat(parts)


def both_versions(drawings: Drawings, cache: Path) -> Tensor:
    """All drawings as they are and autoencoded, (2, n, 3, SIZE, SIZE); the latter kept in the cache."""
    plain, file = to_input(drawings.pixels), cache / f"autoencoded-{SIZE}.npy"
    if not file.is_file():
        np.save(file, through_autoencoder(drawings.pixels).half().numpy())
    return torch.stack([plain, torch.from_numpy(np.load(file)).float()])


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


def tasks(drawings: Drawings) -> dict[str, Task]:
    """Subject and style."""
    torch.manual_seed(SEED)
    subjects, styles = torch.from_numpy(drawings.subject), torch.from_numpy(drawings.style)
    return {
        "subject": Task(SubjectNet(len(drawings.subjects)), subjects, 30, 1.0),
        "style": Task(StyleNet(len(STYLES)), styles, 30, 0.25),
    }


def train(task: Task, versions: Tensor, rows: Tensor) -> None:
    """Train a task's network on some rows of the drawings.

    Args:
        task: what to learn.
        versions: (versions, n, 3, SIZE, SIZE), of which one is drawn each time.
        rows: which of the n.
    """
    net = task.net
    adam = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
    steps = math.ceil(len(rows) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, epochs=task.epochs, steps_per_epoch=steps)
    generator = torch.Generator().manual_seed(SEED)
    net.train()
    for _ in range(task.epochs):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(BATCH):
            which = torch.randint(len(versions), (len(batch),), generator=generator)
            logits = net(augment(versions[which, batch].float(), generator, task.strength))[1]
            loss = F.cross_entropy(logits, task.truth[batch], label_smoothing=0.1)
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    net.eval()


@torch.no_grad()
def accuracy(name: str, net: nn.Module, versions: Tensor, truth: Tensor) -> dict[str, float]:
    """How well a network knows drawings that it was not trained on, as they are and autoencoded."""
    found = {}
    for version, x in zip(("drawn", "autoencoded"), versions, strict=True):
        logits = net(x)[1]
        ranks = ranks_of(logits, truth)
        found[f"{name} top 1 ({version})"] = (ranks == 1).float().mean().item()
        if name == "subject":
            found[f"{name} top 5 ({version})"] = (ranks <= 5).float().mean().item()
            found[f"{name} MRR ({version})"] = (1 / ranks).mean().item()
        else:
            found[f"{name} share ({version})"] = logits.softmax(1).gather(1, truth[:, None]).mean().item()
    return found


def ranks_of(logits: Tensor, truth: Tensor) -> Tensor:
    """The rank of the true class of each row, 1 = first, as float."""
    return (logits > logits.gather(1, truth[:, None])).sum(1).float() + 1


@dataclass(frozen=True)
class Judge:
    """The trained networks, the names of their classes, and how well they know real drawings."""

    subject: nn.Module
    style: nn.Module
    subjects: tuple[str, ...]
    accuracy: dict[str, float]

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """(n, h, w, 3) uint8 -> unit embeddings (n, WIDTH), subject logits, style logits."""
        x = to_input(pixels)
        embedding, subjects = self.subject(x)
        return F.normalize(embedding, dim=1), subjects, self.style(x)[1]


def load_judge(folder: Path = JUDGE) -> Judge:
    """The judge that lies beside the model."""
    note = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
    nets: dict[str, nn.Module] = {
        "subject": SubjectNet(len(note["subjects"])),
        "style": StyleNet(len(STYLES)),
    }
    for name, net in nets.items():
        weights = load_file(folder / f"{name}.safetensors")
        net.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
        )
    return Judge(nets["subject"].eval(), nets["style"].eval(), tuple(note["subjects"]), note["accuracy"])


def make(folder: Path, cache: Path) -> None:
    """Train both networks and keep them, in half precision, with their accuracy."""
    drawings = load(cache)
    versions, figures = both_versions(drawings, cache), {}
    rows, kept_out = split(len(drawings.subject))
    folder.mkdir(parents=True, exist_ok=True)
    for name, task in tasks(drawings).items():
        train(task, versions, rows)
        half = {key: v.half() if v.is_floating_point() else v for key, v in task.net.state_dict().items()}
        save_file(half, folder / f"{name}.safetensors")
        figures.update(accuracy(name, task.net, versions[:, kept_out], task.truth[kept_out]))
    note = {"subjects": drawings.subjects, "styles": STYLES, "accuracy": figures}
    (folder / "judge.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the judge and print its accuracy."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.embedding")
    parser.add_argument("--out", type=Path, default=JUDGE, help="folder of the judge")
    parser.add_argument("--cache", type=Path, default=CACHE, help="drawings (default out/minixl-data)")
    args = parser.parse_args(arguments)
    make(args.out, args.cache)
    for name, value in load_judge(args.out).accuracy.items():
        print(f"{name:32} {value:.3f}")


if __name__ == "__main__":
    main()
