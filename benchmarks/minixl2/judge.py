"""The judge of MiniXL 2's pictures: which subject, and which style of a panel whose looks differ.

    python -m benchmarks.minixl2.judge --out out/minixl2 [--epochs 12]

The networks are those of ``benchmarks.minixl.embedding``, trained on nine tenths of all drawings,
as they are and as the autoencoder gives them back at 64 pixels. Many icon sets look alike; so a
style is ranked within PANEL, the held-out styles and as many known ones chosen to differ.
``SecondJudge`` is independent of it: linear least squares on oriented edges and colours.
"""

from __future__ import annotations

import argparse
import json
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

from ..minixl.embedding import StyleNet, SubjectNet, Task, ranks_of, split, to_input, train
from .choice import HELDOUT_STYLES
from .data import Drawings, load

KNOWN_PANEL = (
    "dinkie-icons",
    "fluent-emoji-flat",
    "game-icons",
    "glyphs",
    "glyphs/outline",
    "iconmind/duotone+bold",
    "keyline-icons/duotone",
    "mingcute/fill",
    "noto",
    "pepicons-print",
    "ph/bold",
    "streamline-plump-color",
)
PANEL = tuple(sorted((*HELDOUT_STYLES, *KNOWN_PANEL)))
RIDGE, CELLS, ANGLES, FITTED = 30.0, 8, 8, 3


@dataclass(frozen=True)
class Judge:
    """Both networks and the names of their classes."""

    subject: nn.Module
    style: nn.Module
    subjects: tuple[str, ...]
    styles: tuple[str, ...]

    @torch.no_grad()
    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of inputs (n, 3, 64, 64) in -1..1: all subjects (n, subjects), and the panel's styles (n, styles)."""
        panel = [self.styles.index(name) for name in PANEL]
        return self.subject(x)[1], self.style(x)[1][:, panel]


def features(x: Tensor) -> Tensor:
    """Oriented edges and colours of inputs (n, 3, 64, 64), (n, features): cells of 8 x 8 pixels, and their means."""
    grey = x.mean(1, keepdim=True)
    dx, dy = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2], grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    size, angle = (dx.square() + dy.square()).sqrt(), torch.atan2(dy, dx) % torch.pi
    bins = torch.arange(ANGLES).view(1, -1, 1, 1) * torch.pi / ANGLES
    apart = (angle - bins + torch.pi / 2) % torch.pi - torch.pi / 2
    edges = size * (1 - apart.abs() * ANGLES / torch.pi).clamp(min=0)
    maps = torch.cat([F.pad(edges, (1, 1, 1, 1)), x, x.square()], 1)
    cells = F.avg_pool2d(maps, 64 // CELLS).flatten(1)
    levels = torch.linspace(-1, 1, 9).view(1, 1, 1, -1)
    tones = (1 - (x.flatten(2)[..., None] - levels).abs() * 4).clamp(min=0).mean(2).flatten(1)
    fine = torch.cat([F.avg_pool2d(edges, k).square().mean((2, 3)) for k in (1, 2, 4)], 1)
    return torch.cat([cells.sign() * cells.abs().sqrt(), tones, fine.sqrt(), torch.ones(len(x), 1)], 1)


@dataclass(frozen=True)
class SecondJudge:
    """Linear least squares on ``features`` with RIDGE.

    Attributes:
        mean, spread: of the features.
        subject, style: (features, classes).
    """

    mean: Tensor
    spread: Tensor
    subject: Tensor
    style: Tensor
    subjects: tuple[str, ...]

    @classmethod
    def fit(cls, versions: Tensor, rows: Tensor, drawings: Drawings) -> SecondJudge:
        """From every FITTEDth of the rows of the drawings (versions, n, 3, 64, 64), both versions of each."""
        rows = rows[::FITTED]
        x = torch.cat([features(part.float()) for version in versions for part in version[rows].split(512)])
        mean, spread = x.mean(0), x.std(0) + 1e-3
        mean[-1], spread[-1] = 0.0, 1.0
        x = (x - mean) / spread
        subject = torch.from_numpy(drawings.subject)[rows].repeat(len(versions))
        names = torch.tensor([PANEL.index(name) if name in PANEL else -1 for name in drawings.styles])
        style = names[torch.from_numpy(drawings.style)[rows]].repeat(len(versions))
        shown = style >= 0
        return cls(
            mean,
            spread,
            ridge(x, F.one_hot(subject, len(drawings.subjects)).float()),
            ridge(x[shown], F.one_hot(style[shown], len(PANEL)).float()),
            drawings.subjects,
        )

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Judge.logits``."""
        seen = (features(x) - self.mean) / self.spread
        return seen @ self.subject, seen @ self.style


def reciprocal_ranks(judge: Judge | SecondJudge, x: Tensor, subject: str, style: str) -> np.ndarray[Any, Any]:
    """Of the right subject among all and of the right style in the panel, (n, 2), for inputs (n, 3, 64, 64)."""
    right = (judge.subjects.index(subject), PANEL.index(style))
    ranks = [
        ranks_of(part, torch.full((len(x),), row)) for part, row in zip(judge.logits(x), right, strict=True)
    ]
    found: np.ndarray[Any, Any] = (1 / torch.stack(ranks, 1)).numpy()
    return found


def second_judge(out: Path, drawings: Drawings) -> SecondJudge:
    """The second judge, fitted on first use and kept in ``out``."""
    file = out / "judge" / "second.pt"
    if not file.is_file():
        fitted = SecondJudge.fit(both_versions(drawings, out), split(len(drawings.subject))[0], drawings)
        torch.save((fitted.mean, fitted.spread, fitted.subject, fitted.style), file)
    return SecondJudge(*torch.load(file, weights_only=True), drawings.subjects)


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """The (features, classes) weights that give ``y`` (n, classes) from ``x`` (n, features), least squares."""
    weights: Tensor = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ y)
    return weights


@torch.no_grad()
def both_versions(drawings: Drawings, out: Path) -> Tensor:
    """All drawings as they are and autoencoded, (2, n, 3, 64, 64) fp16; kept in ``out``."""
    file = out / "judged-64.npy"
    if not file.is_file():
        vae: Any = AutoencoderKL.from_pretrained(out / "vae").float().eval()
        z = torch.load(out / "latents-64.pt", weights_only=True)["plain"].float() / vae.config.scaling_factor
        back = []
        for part in z.split(64):
            with torch.autocast("cpu", torch.bfloat16):
                back.append(vae.decode(part).sample.clamp(-1, 1).half())
        plain = [to_input(drawings.pixels[n : n + 512]).half() for n in range(0, len(drawings.pixels), 512)]
        np.save(file, torch.stack([torch.cat(plain), torch.cat(back)]).numpy())
    return torch.from_numpy(np.load(file, mmap_mode="c"))


def make(out: Path, epochs: int) -> None:
    """Train both networks, unless they are there, and print how well they know the drawings kept out."""
    drawings = load(out)
    versions = both_versions(drawings, out)
    rows, kept_out = split(len(drawings.subject))
    folder = out / "judge"
    if (folder / "judge.json").is_file():
        report(out, drawings, versions, kept_out)
        return
    torch.manual_seed(0)
    nets = {"subject": SubjectNet(len(drawings.subjects)), "style": StyleNet(len(drawings.styles))}
    folder.mkdir(exist_ok=True)
    for name, net in nets.items():
        truth = torch.from_numpy(getattr(drawings, name))
        part = Task(net, truth, epochs, 1.0) if name == "subject" else Task(net, truth, epochs * 2 // 3, 0.25)
        # Twice as fast as in fp32; a cache would keep the weights as they were at the first step.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            train(part, versions, rows)
        half = {key: v.half() if v.is_floating_point() else v for key, v in net.state_dict().items()}
        save_file(half, folder / f"{name}.safetensors")
    note = {"subjects": drawings.subjects, "styles": drawings.styles}
    (folder / "judge.json").write_text(json.dumps(note) + "\n", encoding="utf-8")
    report(out, drawings, versions, kept_out)


def report(out: Path, drawings: Drawings, versions: Tensor, kept_out: Tensor) -> None:
    """Print both judges' accuracy on drawings that they were not trained on."""
    judge, second = load_judge(out / "judge"), second_judge(out, drawings)
    subject = torch.from_numpy(drawings.subject)[kept_out]
    places = torch.tensor([PANEL.index(name) if name in PANEL else -1 for name in drawings.styles])
    style = places[torch.from_numpy(drawings.style)[kept_out]]
    shown = style >= 0
    for title, version in zip(("drawn", "autoencoded"), versions, strict=True):
        x = version[kept_out].float()
        for name, judged in (("networks", judge), ("least squares", second)):
            subjects, styles = judged.logits(x)
            found = [ranks_of(subjects, subject), ranks_of(styles[shown], style[shown])]
            top, mean = ([float(kind(ranks)) for ranks in found] for kind in (_top, _reciprocal))
            print(
                f"{name}, {title}: subject top 1 {top[0]:.3f} (MRR {mean[0]:.3f}), "
                f"style in the panel top 1 {top[1]:.3f} (MRR {mean[1]:.3f})",
                flush=True,
            )


def _top(ranks: Tensor) -> Tensor:
    return (ranks == 1).float().mean()


def _reciprocal(ranks: Tensor) -> Tensor:
    return (1 / ranks).mean()


def load_judge(folder: Path) -> Judge:
    """The networks in a folder."""
    note = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
    nets: dict[str, nn.Module] = {
        "subject": SubjectNet(len(note["subjects"])),
        "style": StyleNet(len(note["styles"])),
    }
    for name, net in nets.items():
        weights = load_file(folder / f"{name}.safetensors")
        net.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in weights.items()})
        net.eval()
    return Judge(nets["subject"], nets["style"], tuple(note["subjects"]), tuple(note["styles"]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the judge."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl2.judge", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12, help="of the subjects; the styles get two thirds")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    make(args.out, args.epochs)


if __name__ == "__main__":
    main()
