"""The merges that ``benchmarks.quality`` compares, by name.

A name is one of ``ALIASES``, ``sum:WS:WT`` (weights of subject and style), any
settings of the merge itself, ``ziplora,steps=20,start=closed-form``, ``ties:DENSITY`` or ``dare:DENSITY``
(PEFT's own functions on the delta weights), ``strength:S:T:METHOD`` (another method's merge exported
again with the subject at S and the style at T), or ``blend:SHARE:METHOD``, which lies between the plain
sum (share 0) and another method (share 1).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.minixl.choice import HALVES, STYLE_TOKEN, SUBJECT_TOKEN, caption, lora_name
from benchmarks.minixl.lora import EXAMPLES
from benchmarks.minixl.lora import LORAS as TRAINED
from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings, settings_from
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.lora.algebra import merge_layers
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.write import write_lora
from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.lora.lowrank import EXACT, from_dense
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.reexport import ReexportRequest

LORAS = (EXAMPLES, TRAINED)
"""Where MiniXL's LoRAs are: the examples of the repository, and what ``minixl.lora`` trains."""
SUBJECT_PROMPT = caption(SUBJECT_TOKEN)
STYLE_PROMPT = caption("bell", STYLE_TOKEN)
BOTH_PROMPT = caption(SUBJECT_TOKEN, STYLE_TOKEN)
EQUATION_5 = "combined_weight=0"
"""Without the term on the combined prompt, as the paper has it."""
FROM_ONES = f"start=ones,steps=100,{EQUATION_5}"
"""As the paper does it."""
ALIASES = {
    "sum": "sum:1:1",
    "balanced": "balanced",
    "ours": "ziplora",
    "ours-20": "ziplora,steps=20",
    "from-ones": "ziplora,start=ones,steps=100",
    "equation-5": f"ziplora,{FROM_ONES}",
    "public": f"ziplora,objective=public,learning_rate=0.00005,similarity_lambda=0.01,{FROM_ONES}",
    "cosine": f"ziplora,objective=cosine,similarity_lambda=0.1,{FROM_ONES}",
    "paper": f"ziplora,objective=paper,similarity_lambda=0.01,{FROM_ONES}",
    "instant": "instant",
    "closed": f"instant,{EQUATION_5}",
    "closed+20": f"ziplora,start=closed-form,steps=20,{EQUATION_5}",
    "closed+100": f"ziplora,start=closed-form,steps=100,{EQUATION_5}",
}
GRID = (
    *((1, 1), (0.75, 0.75), (0.6, 0.6), (1.25, 1.25), (1, 0.75), (0.75, 1), (0.6, 0.8), (0.8, 0.6)),
    *((1, 0.5), (0.5, 1), (1.25, 1), (1, 1.25)),
)


def lora_file(kind: str, name: str) -> Path:
    """The LoRA of a subject or style.

    Raises:
        FileNotFoundError: it was not trained here.
    """
    found = [folder / f"{lora_name(kind, name)}.safetensors" for folder in LORAS]
    for file in found:
        if file.is_file():
            return file
    raise FileNotFoundError(f"{found[-1]} is missing; python -m benchmarks.minixl.lora trains it")


@dataclass(frozen=True)
class Pair:
    """A subject and a style, each with its LoRA."""

    subject: str
    style: str

    @property
    def name(self) -> str:
        return f"{self.subject}:{self.style}"

    def files(self) -> tuple[Path, Path]:
        """The subject's LoRA and the style's."""
        return lora_file("subject", self.subject), lora_file("style", self.style)


@dataclass(frozen=True)
class Merged:
    """A merged LoRA and what its making cost.

    Attributes:
        file: the LoRA.
        seconds: of the merge.
        figures: parts of the merge's own report.
    """

    file: Path
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)


def pairs_of(half: str) -> list[Pair]:
    """Every subject of a half with every style of it."""
    subjects, styles = HALVES[half]
    return [Pair(subject, style) for subject in subjects for style in styles]


def settings_of(method: str) -> MergeSettings:
    """The settings that a name such as ``ziplora,steps=20`` means, the rest being the defaults."""
    kind, *assignments = method.split(",")
    values = dict(item.split("=", 1) for item in assignments)
    return settings_from({"method": kind, **values})


def merge(method: str, pair: Pair, host: StandaloneHost, folder: Path) -> Merged:
    """Merge a pair by a method's name; the file goes into ``folder``."""
    spec = ALIASES.get(method, method)
    if spec.startswith("blend:"):
        return _blend(spec, pair, host, folder)
    target = _target(method, folder)
    started = time.monotonic()
    if spec.startswith("strength:"):
        return _at_strengths(method, spec, pair, host, folder)
    if spec.startswith(("ties", "dare")):
        write_lora(target, _by_peft(spec, pair), overwrite=True)
        return Merged(target, time.monotonic() - started)
    subject_file, style_file = (str(file) for file in pair.files())
    inputs = LoraInput(subject_file, SUBJECT_PROMPT), LoraInput(style_file, STYLE_PROMPT)
    if spec.startswith("sum:"):
        weights = [float(weight) for weight in spec.split(":")[1:]]
        inputs = replace(inputs[0], weight=weights[0]), replace(inputs[1], weight=weights[1])
        spec = "direct"
    report = run(MergeRequest.pair(*inputs, str(target), True, settings_of(spec)), host).to_json()
    kept = ("subject_share", "heldout_loss_start", "heldout_loss_end", "mean_travel", "similarity_end")
    figures = {name: report[name] for name in kept if isinstance(report.get(name), float)}
    return Merged(target, time.monotonic() - started, figures)


def _at_strengths(method: str, spec: str, pair: Pair, host: StandaloneHost, folder: Path) -> Merged:
    """Another method's merge, exported again with other strengths of its subject and style."""
    _, subject, style, other = spec.split(":", 3)
    made = folder / f"{other}.safetensors"
    if not made.is_file():
        merge(other, pair, host, folder)
    target = _target(method, folder)
    weights = {"subject_weights": (float(subject),), "style_weights": (float(style),)}
    run(ReexportRequest(str(made), str(target), True, **weights), host)
    return Merged(target, 0.0)


def _by_peft(spec: str, pair: Pair) -> dict[str, LoraLayer]:
    """TIES (arXiv 2306.01708) or DARE (arXiv 2311.03099) on each layer's delta weights, both at weight 1.

    The dense result goes into the file at the rank that keeps all but rounding. DARE's dice are seeded.
    """
    from peft.utils import merge_utils

    kind, _, density = spec.partition(":")
    torch.manual_seed(0)
    function = {"ties": merge_utils.ties, "dare": merge_utils.dare_linear}[kind]
    loras = [read_lora(file).layers for file in pair.files()]
    merged = {}
    for name in dict.fromkeys([*loras[0], *loras[1]]):
        layers = [layers[name] for layers in loras if name in layers]
        if len(layers) == 1:
            merged[name] = layers[0]
            continue
        delta = function([layer.delta() for layer in layers], torch.ones(2), float(density or 0.5))
        merged[name] = from_dense(name, delta, EXACT)[0]
    return merged


def _target(method: str, folder: Path) -> Path:
    return folder / f"{method.replace(':', '_').replace(',', '_').replace('=', '_')}.safetensors"


def _blend(spec: str, pair: Pair, host: StandaloneHost, folder: Path) -> Merged:
    """SHARE of another method's delta weights, and the rest of the plain sum's."""
    _, share, other = spec.split(":", 2)
    parts = [
        (merge("sum", pair, host, folder), 1 - float(share)),
        (merge(other, pair, host, folder), float(share)),
    ]
    layers = [(read_lora(made.file).layers, weight) for made, weight in parts]
    merged = merge_layers([made for made, _ in layers], [weight for _, weight in layers])
    write_lora(_target(spec, folder), merged, overwrite=True)
    return Merged(_target(spec, folder), parts[1][0].seconds)
