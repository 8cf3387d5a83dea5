"""What a merge of MiniXL's LoRAs learns from, in pieces, for the benchmarks that measure pieces of a merge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.methods import ROOT, STYLE_PROMPT, SUBJECT_PROMPT, Pair
from lib_ziplora.config import LoraInput, MergeSettings
from lib_ziplora.denoiser import Conditioning as Conditioning
from lib_ziplora.denoiser import Denoiser
from lib_ziplora.hosts import Session
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.progress import Meter
from lib_ziplora.training.target_samples import Drawn, Teacher
from lib_ziplora.ziplora.closed_form import Answer, Recording, each_alone, solve
from lib_ziplora.ziplora.coefficients import Concept, MergerCoefficients
from lib_ziplora.ziplora.hooks import adapters, lora_hooks
from lib_ziplora.ziplora.memory import Plan
from lib_ziplora.ziplora.samples import Samples
from lib_ziplora.ziplora.train import Term, TrainingResult, Update, evaluate, train

MODEL = ROOT / "benchmarks" / "minixl" / "model"
COMBINED_PROMPT = "a sks emoji in szn style"
SIZE, UNSEEN_SEED = 128, 4242
SETTINGS = MergeSettings(width=SIZE, height=SIZE, combined_prompt=COMBINED_PROMPT, start="ones", steps=100)
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


@dataclass(frozen=True)
class Lessons:
    """What a pair's merge learns from.

    Attributes:
        drawn: the subject's samples and the style's.
        both: those of the combined prompt; None where the settings leave it out.
        recording: the layers' inputs while those were drawn.
        strengths: of the balanced sum; 1 where nothing was balanced.
        combined_weight: of the combined prompt's error; ``answer_weight`` that of its answer in the closed form.
    """

    drawn: tuple[Drawn, ...]
    both: Samples | None
    recording: Recording
    strengths: tuple[float, ...]
    combined_weight: float
    answer_weight: float

    @property
    def terms(self) -> list[Term]:
        """The errors of the objective."""
        both = [] if self.both is None else [Term("combined", self.both, self.combined_weight)]
        return [*(Term("alone", part.train) for part in self.drawn), *both]

    @property
    def heldout(self) -> list[Samples]:
        return [part.heldout for part in self.drawn]

    @property
    def answers(self) -> list[Answer]:
        """For the closed form."""
        alone = each_alone([part.recording for part in self.drawn])
        if self.both is None:
            return alone
        return [*alone, Answer(self.recording, self.strengths, self.answer_weight)]

    def with_terms(self, terms: Sequence[Samples]) -> Lessons:
        """The same with other samples to train on."""
        drawn = tuple(replace(old, train=new) for old, new in zip(self.drawn, terms, strict=False))
        return replace(self, drawn=drawn, both=None if self.both is None else terms[len(drawn)])


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


def teacher_of(at: Desk, settings: MergeSettings) -> Teacher:
    """A teacher that nobody watches."""
    return Teacher(at.session, at.denoiser, at.modules, settings, Meter(at.host, None, 10**6))


def draw(at: Desk, settings: MergeSettings = SETTINGS, strengths: Sequence[float] | None = None) -> Lessons:
    """Draw a pair's samples as a merge does; ``strengths`` that are known are not weighed again."""
    teacher, chosen = teacher_of(at, settings), inputs()
    conditions = teacher.conditioning(chosen, {})
    drawn = tuple(
        teacher.samples(layers, lora, conditions, index)
        for index, (layers, lora) in enumerate(zip(at.concepts, chosen, strict=True))
    )
    if strengths is None:
        strengths = teacher.balance(at.concepts, chosen, conditions).strengths
    both, recording = None, {}
    if settings.needs.closed_form and conditions.both is not None:
        both, recording = teacher.combined(at.concepts, strengths, conditions)
    weights = settings.combined_weight, 1.0 if settings.needs.updates else settings.combined_weight
    return Lessons(drawn, both, recording, tuple(strengths), *weights)


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
        alone = evaluate(at.denoiser, at.modules, coefficients, self.alone) / len(self.alone)
        return alone, evaluate(at.denoiser, at.modules, coefficients, [self.both])


def unseen(at: Desk, strengths: Sequence[float]) -> Unseen:
    """Samples of another seed than the defaults'."""
    drawn = draw(at, replace(SETTINGS, seed=UNSEEN_SEED), strengths)
    assert drawn.both is not None
    return Unseen([part.train for part in drawn.drawn], drawn.both)


@torch.no_grad()
def taught_anew(at: Desk, lessons: Lessons) -> Lessons:
    """The same samples with the targets that this model's teachers give."""
    both = at.ones()
    both.start_at(lessons.strengths)
    alone = [adapters(part, at.denoiser.device, at.denoiser.dtype) for part in at.concepts]
    taught = []
    for samples, branches in zip(
        [term.samples for term in lessons.terms], [*alone, both.adapters()], strict=False
    ):
        with lora_hooks(at.modules, branches):
            rows = [samples[i : i + 1] for i in range(len(samples))]
            target = torch.cat([at.denoiser.predict(row.x_t, row.t, row.cond) for row in rows])
        taught.append(dataclasses.replace(samples, target=target))
    return lessons.with_terms(taught)


def begin(at: Desk, lessons: Lessons, settings: MergeSettings) -> MergerCoefficients:
    """Where a merge's loop begins: the strengths of the lessons, or the closed form from there."""
    start = at.ones()
    start.start_at(lessons.strengths)
    if settings.uses_closed_form:
        solve(start, lessons.answers)
    return start


def learn(
    at: Desk,
    lessons: Lessons,
    settings: MergeSettings = SETTINGS,
    start: MergerCoefficients | None = None,
    on_update: Callable[[Update], bool] = lambda update: True,
) -> tuple[MergerCoefficients, TrainingResult]:
    """The loop, from where the settings begin or from given coefficients."""
    start = begin(at, lessons, settings) if start is None else start
    return start, train(at.denoiser, at.modules, start, lessons.terms, settings, on_update, [FAST])


def flat(coefficients: MergerCoefficients) -> Tensor:
    """All coefficients, one after the other."""
    return torch.cat([m.detach().flatten() for m in coefficients.parameters()])
