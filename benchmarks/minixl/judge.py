"""The judge of MiniXL's pictures: which subject, and which style of a panel whose looks differ.

    python -m benchmarks.minixl.judge --out out/minixl/judge [--epochs 12]

Two small networks (``networks``), trained on nine tenths of all drawings, as they are and as the
autoencoder gives them back at 64 pixels. Many icon sets look alike; so a style is ranked within
PANEL, the held-out styles and as many known ones chosen to differ.
``SecondJudge`` is independent of it: linear least squares on oriented edges and colours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .choice import HELDOUT_STYLES
from .data import CACHE, Drawings, load
from .networks import StyleNet, SubjectNet, Task, ranks_of, split, to_input, train

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
JUDGE = Path(__file__).resolve().parent / "judge"
RIDGE, CELLS, ANGLES, FITTED = 30.0, 8, 8, 3
SECOND = ("mean", "spread", "subject", "style")


@dataclass(frozen=True)
class Judge:
    """Both networks, the names of their classes, and how well both judges know real drawings.

    Attributes:
        accuracy: on drawings that were not trained on.
    """

    subject: nn.Module
    style: nn.Module
    subjects: tuple[str, ...]
    styles: tuple[str, ...]
    accuracy: Mapping[str, float]

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


def make(out: Path, cache: Path, epochs: int) -> None:
    """Train both networks and fit the second judge, unless they are there, and write how well they know drawings."""
    drawings, names = load(cache), ("subject", "style")
    versions = both_versions(drawings, cache)
    rows, kept_out = split(len(drawings.subject))
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    nets = (SubjectNet(len(drawings.subjects)), StyleNet(len(drawings.styles)))
    for name, net, passes, strength in zip(names, nets, (epochs, epochs * 2 // 3), (1.0, 0.25), strict=True):
        file = out / f"{name}.safetensors"
        if not file.is_file():
            truth = torch.from_numpy(getattr(drawings, name))
            # Twice as fast as in fp32; a cache would keep the weights as they were at the first step.
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                train(Task(net, truth, passes, strength), versions, rows)
            half = {key: v.half() if v.is_floating_point() else v for key, v in net.state_dict().items()}
            save_file(half, file)
    if not (out / "second.safetensors").is_file():
        fitted = SecondJudge.fit(versions, rows, drawings)
        save_file(
            {name: getattr(fitted, name).half().contiguous() for name in SECOND}, out / "second.safetensors"
        )
    note = {"subjects": drawings.subjects, "styles": drawings.styles, "accuracy": {}}
    for _ in range(2):  # the judges read their names from the file to which their accuracy is added
        (out / "judge.json").write_text(json.dumps(note) + "\n", encoding="utf-8")
        note["accuracy"] = accuracy(load_judge(out), load_second(out), drawings, versions, kept_out)


def accuracy(
    judge: Judge, second: SecondJudge, drawings: Drawings, versions: Tensor, kept_out: Tensor
) -> dict[str, float]:
    """Both judges' shares of right answers and mean reciprocal ranks on drawings that they were not trained on."""
    subject = torch.from_numpy(drawings.subject)[kept_out]
    places = torch.tensor([PANEL.index(name) if name in PANEL else -1 for name in drawings.styles])
    style = places[torch.from_numpy(drawings.style)[kept_out]]
    shown = style >= 0
    found = {}
    for title, version in zip(("drawn", "autoencoded"), versions, strict=True):
        x = version[kept_out].float()
        for name, judged in (("networks", judge), ("least squares", second)):
            subjects, styles = judged.logits(x)
            for what, ranks in (
                ("subject", ranks_of(subjects, subject)),
                ("style", ranks_of(styles[shown], style[shown])),
            ):
                found[f"{name}, {title}: {what} top 1"] = float((ranks == 1).float().mean())
                found[f"{name}, {title}: {what} MRR"] = float((1 / ranks).mean())
    return {name: round(value, 4) for name, value in found.items()}


def load_judge(folder: Path = JUDGE) -> Judge:
    """The networks in a folder."""
    note = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
    subjects, styles = tuple(note["subjects"]), tuple(note["styles"])
    nets = (SubjectNet(len(subjects)), StyleNet(len(styles)))
    for name, net in zip(("subject", "style"), nets, strict=True):
        weights = load_file(folder / f"{name}.safetensors")
        net.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in weights.items()})
        net.eval()
    return Judge(*nets, subjects, styles, note["accuracy"])


def load_second(folder: Path = JUDGE) -> SecondJudge:
    """The second judge in a folder."""
    note = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
    fitted = load_file(folder / "second.safetensors")
    return SecondJudge(*(fitted[name].float() for name in SECOND), tuple(note["subjects"]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the judges and print their accuracy."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.judge", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the judges")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="drawings, autoencoder and latents (default out/minixl)"
    )
    parser.add_argument("--epochs", type=int, default=12, help="of the subjects; the styles get two thirds")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    make(args.out, args.cache, args.epochs)
    for name, value in load_judge(args.out).accuracy.items():
        print(f"{name:40} {value:.3f}")


if __name__ == "__main__":
    main()
