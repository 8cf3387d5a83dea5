"""Training data of MiniXL's LoRAs, and the stages of a merge one by one, for the benchmarks that measure them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.methods import BOTH_PROMPT, STYLE_PROMPT, SUBJECT_PROMPT, Pair
from benchmarks.minixl.lora import MODEL
from lib_ziplora.config import LoraInput, MergeSettings
from lib_ziplora.denoiser import Conditioning as Conditioning
from lib_ziplora.denoiser import Denoiser
from lib_ziplora.hosts import Session
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.progress import Meter
from lib_ziplora.training.strengths import Strengths
from lib_ziplora.training.target_samples import DataSampler, TrainingData
from lib_ziplora.ziplora.closed_form import solve
from lib_ziplora.ziplora.coefficients import Concept, MergerCoefficients
from lib_ziplora.ziplora.hooks import adapters, lora_hooks
from lib_ziplora.ziplora.memory import Plan
from lib_ziplora.ziplora.samples import Samples
from lib_ziplora.ziplora.train import TrainingResult, Update, evaluate, train

SIZE, UNSEEN_SEED = 64, 4242
SETTINGS = MergeSettings(width=SIZE, height=SIZE, combined_prompt=BOTH_PROMPT, start="ones", steps=100)
"""The defaults at the size that MiniXL was trained on, but from the balanced sum and with the updates that it needs."""
FAST = Plan(batched=True, checkpointing=0.0)


@dataclass(frozen=True)
class Desk:
    """A pair's layers beside an opened model.

    Attributes:
        session: the model, clean.
        concepts: the subject's layers and the style's.
        modules: the modules that they change, by canonical name.
        host: of the session.
    """

    session: Session
    concepts: tuple[Concept, ...]
    modules: dict[str, nn.Module]
    host: StandaloneHost

    @property
    def denoiser(self) -> Denoiser:
        return self.session.denoiser

    def ones(self) -> MergerCoefficients:
        """The plain sum."""
        return MergerCoefficients.ones(self.concepts, self.denoiser.device, self.denoiser.dtype)


@contextmanager
def desk(pair: Pair, dtype: str = "fp32", device: str = "cpu") -> Iterator[Desk]:
    """MiniXL in a dtype, with a pair's layers."""
    host = StandaloneHost(MODEL, device=device, dtype=dtype)
    concepts = tuple(read_lora(file).unet_layers() for file in pair.files())
    with host.open() as session:
        modules = canonical_modules(session.denoiser.unet)
        yield Desk(session, concepts, {name: modules[name] for part in concepts for name in part}, host)


def inputs() -> tuple[LoraInput, ...]:
    """The prompts of a subject and a style; the files are read elsewhere."""
    return LoraInput("subject", SUBJECT_PROMPT, role="subject"), LoraInput(
        "style", STYLE_PROMPT, role="style"
    )


def draw(at: Desk, settings: MergeSettings = SETTINGS, strengths: Strengths | None = None) -> TrainingData:
    """Draw a pair's samples as a merge does; ``strengths`` that are known are not searched again."""
    sampler = DataSampler(at.session, at.denoiser, at.modules, settings, Meter(at.host, None, 10**6))
    return sampler.training_data(at.ones(), inputs(), sampler.conditions(inputs(), {}), strengths)


@dataclass(frozen=True)
class Unseen:
    """Samples that no merge has learnt from, the same ones for every method.

    Attributes:
        alone: each LoRA's own.
        both: the balanced sum's of the combined prompt.
    """

    alone: list[Samples]
    both: Samples

    def errors(self, at: Desk, coefficients: MergerCoefficients) -> tuple[float, float]:
        """Relative error of a merge on them: for each LoRA by itself, and for the combined prompt."""
        alone = sum(evaluate(at.denoiser, at.modules, coefficients, self.alone)) / len(self.alone)
        return alone, sum(evaluate(at.denoiser, at.modules, coefficients, [self.both]))


def unseen(at: Desk, strengths: Strengths) -> Unseen:
    """Samples of another seed than the defaults'."""
    *alone, both = draw(at, replace(SETTINGS, seed=UNSEEN_SEED), strengths).terms
    return Unseen([term.samples for term in alone], both.samples)


@torch.no_grad()
def with_targets_of(at: Desk, data: TrainingData) -> TrainingData:
    """The same samples with the targets that this model gives, which may be of another dtype."""
    both = at.ones()
    both.start_at(data.strengths.values)
    alone = [adapters(part, at.denoiser.device, at.denoiser.dtype) for part in at.concepts]
    terms = []
    for term, factors in zip(data.terms, [*alone, both.adapters()], strict=False):
        samples = term.samples
        with lora_hooks(at.modules, factors):
            rows = [samples[i : i + 1] for i in range(len(samples))]
            target = torch.cat([at.denoiser.predict(row.x_t, row.t, row.cond) for row in rows])
        terms.append(replace(term, samples=replace(samples, target=target)))
    return replace(data, terms=tuple(terms))


def begin(at: Desk, data: TrainingData) -> MergerCoefficients:
    """Where a merge's loop begins: the strengths of the plain sum, or the closed form from there."""
    start = at.ones()
    start.start_at(data.strengths.values)
    if data.layer_targets:
        solve(start, data.layer_targets)
    return start


def learn(
    at: Desk,
    data: TrainingData,
    settings: MergeSettings = SETTINGS,
    start: MergerCoefficients | None = None,
    on_update: Callable[[Update], bool] = lambda update: True,
) -> tuple[MergerCoefficients, TrainingResult]:
    """The loop, from where the settings begin or from given coefficients."""
    start = begin(at, data) if start is None else start
    return start, train(at.denoiser, at.modules, start, data.terms, settings, on_update, [FAST])


def flat(coefficients: MergerCoefficients) -> Tensor:
    """All coefficients, one after the other."""
    return torch.cat([m.detach().flatten() for m in coefficients.parameters()])
