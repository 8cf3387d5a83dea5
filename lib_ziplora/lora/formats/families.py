"""LoRA families as one table, a row each, and what follows from it for one module's tensors.

A new family is a row here and its functions in ``deltas``, ``shapes`` and, where its singular values come cheaper
than from the dense delta weight, ``lowrank``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layer import Approximation, LoraLayer
from ..lowrank import RankRule, from_hadamard, from_kronecker
from . import deltas, shapes
from .deltas import Parts
from .shapes import PartShapes

LowRank = tuple[LoraLayer, Approximation]


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        label: what people call it.
        tails: ends of tensor names that only this family has.
        required: sets of parts, each of which is enough to make a module of it; none of what only modifies
            another family.
        rank_parts: those whose first dimension is the rank that alpha is divided by; the first that is there.
        delta: the delta weight of a module's tensors, unscaled.
        delta_of_weight: the same of a family that needs the checkpoint's weight.
        rank_and_shape: of the delta weight, from the tensors' shapes; None where those don't tell.
        low_rank: (name, parts, scaling, input dimensions, rule) -> a layer without the dense delta weight.
        scaled: whether ``alpha`` and ``scale`` multiply the delta weight.
        modifies: it is a way to change or to begin another family, relative to the checkpoint's weight.
        refused: why no merge can take it, whatever checkpoint is there, as half a sentence; "" when one can.
    """

    label: str
    tails: tuple[str, ...] = ()
    required: tuple[frozenset[str], ...] = ()
    rank_parts: tuple[str, ...] = ()
    delta: Callable[[Parts], Tensor] | None = None
    delta_of_weight: Callable[[Parts, Tensor], Tensor] | None = None
    rank_and_shape: Callable[[PartShapes], tuple[int, tuple[int, ...]]] | None = None
    low_rank: Callable[[str, Parts, float, Sequence[int], RankRule], LowRank] | None = None
    scaled: bool = True
    modifies: bool = False
    refused: str = ""


def _loha(name: str, parts: Parts, scaling: float, inputs: Sequence[int], rule: RankRule) -> LowRank:
    return from_hadamard(name, deltas.loha_halves(parts), scaling, inputs, rule)


def _lokr(name: str, parts: Parts, scaling: float, inputs: Sequence[int], rule: RankRule) -> LowRank:
    return from_kronecker(name, *deltas.lokr_matrices(parts), scaling, inputs, rule)


_OTHER_FORM = "it has another form than the one that LyCORIS writes, and no loader of LoRAs applies it"

# The WebUI's order: the first whose required parts are there counts.
FAMILIES = {
    "lora": Family(
        "LoRA",
        required=(frozenset({"down", "up"}),),
        rank_parts=("down",),
        delta=deltas.lora,
        rank_and_shape=shapes.lora,
    ),
    "dora": Family(
        "DoRA",
        tails=("dora_scale", "lora_magnitude_vector.weight", "lora_magnitude_vector", "magnitude"),
        modifies=True,
    ),
    "pissa": Family("PiSSA", modifies=True),
    "olora": Family("OLoRA", modifies=True),
    "lora-bias": Family("LoRA with biases", tails=("lora_B.bias", "lora_up.bias")),
    "loha": Family(
        "LoHa",
        tails=tuple(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
        required=(frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),),
        rank_parts=("hada_w1_b",),
        delta=deltas.loha,
        rank_and_shape=shapes.loha,
        low_rank=_loha,
    ),
    "ia3": Family(
        "(IA)3",
        tails=("on_input",),
        required=(frozenset({"weight", "on_input"}),),
        delta_of_weight=deltas.ia3,
    ),
    "lokr": Family(
        "LoKr",
        tails=tuple(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
        required=tuple(
            frozenset({*first, *second})
            for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
            for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
        ),
        rank_parts=("lokr_w2_b", "lokr_w1_b"),
        delta=deltas.lokr,
        rank_and_shape=shapes.lokr,
        low_rank=_lokr,
    ),
    "full": Family(
        "a full difference",
        tails=("diff", "diff_b"),
        required=(frozenset({"diff"}),),
        delta=deltas.full,
        rank_and_shape=shapes.full,
    ),
    "norm": Family(
        "trained norm layers",
        tails=("w_norm", "b_norm"),
        required=(frozenset({"w_norm"}), frozenset({"b_norm"})),
        delta=deltas.norm,
    ),
    "glora": Family(
        "GLoRA",
        tails=tuple(f"{part}.weight" for part in ("a1", "a2", "b1", "b2")),
        required=(frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight"}),),
        delta_of_weight=deltas.glora,
        rank_and_shape=shapes.glora,
    ),
    "oft": Family(
        "OFT",
        tails=("oft_blocks", "oft_diag", "rescale"),
        required=(frozenset({"oft_blocks"}), frozenset({"oft_diag"})),
        delta_of_weight=deltas.oft,
        scaled=False,
    ),
    **{
        f"refused-{label}": Family(label, tails=tails, refused=why)
        for label, tails, why in (
            ("PEFT's OFT", ("oft_R.weight",), _OTHER_FORM),
            ("PEFT's BOFT", ("boft_R", "boft_s"), _OTHER_FORM),
            ("PEFT's (IA)3", ("ia3_l",), _OTHER_FORM),
            (
                "T-LoRA",
                ("q_layer.weight", "p_layer.weight", "lambda_layer"),
                "its rank depends on the timestep",
            ),
            ("AdaLoRA", ("lora_E", "ranknum"), "the rank of each of its layers is in a form of its own"),
            ("VeRA", ("vera_lambda_b", "vera_lambda_d"), "its matrices are drawn anew from a seed"),
            ("HRA", ("hra_u",), _OTHER_FORM),
            ("Bone", ("bone_block",), _OTHER_FORM),
            ("MiSS", ("miss_block",), _OTHER_FORM),
            (
                "FourierFT",
                ("fourierft_spectrum",),
                "the places of its frequencies are drawn anew from a seed",
            ),
            ("SVDiff", ("spectral_shifts",), "it changes the singular values of each weight"),
            ("GLoRA with Tucker's core", ("bm.weight",), "no loader applies it"),
            (
                "a replaced weight",
                ("set_weight",),
                "it replaces the checkpoint's own weights, whatever they are",
            ),
        )
    },
    "module": Family(
        "whole weights of the model's own layers (PEFT's modules_to_save and bias)",
        refused="they replace the checkpoint's own weights instead of changing them",
    ),
    "unknown": Family(
        "tensors of a kind that is not known here",
        refused="what they do to their layer is not known, so the rest of the file would not be what was trained",
    ),
}
# The differences of a norm layer, of which a file may have one alone.
NORM = frozenset({"w_norm", "b_norm"})
# Parts that a layer carries beside its delta weight.
SIDE_PARTS = frozenset({"diff_b", "up_bias"})
# DoRA's magnitudes: kohya's, LyCORIS' and OneTrainer's; PEFT's and ai-toolkit's.
MAGNITUDES = frozenset({"dora_scale", "magnitude"})
# Families whose delta weight depends on the checkpoint's weight.
RELATIVE = frozenset(
    name for name, row in FAMILIES.items() if row.modifies or row.delta_of_weight is not None
)
RANK_PARTS = tuple(part for family in FAMILIES.values() for part in family.rank_parts)


def family_of(parts: Collection[str]) -> str | None:
    """The family that a module's parts make, or None when they make none; DoRA is what it decomposes."""
    there = set(parts)
    rows = FAMILIES.items()
    return next((name for name, row in rows if any(one <= there for one in row.required)), None)


def named_family(parts: Collection[str]) -> str | None:
    """The family as people call it: like ``family_of``, but DoRA whatever it decomposes."""
    return family_of(parts) if MAGNITUDES.isdisjoint(parts) else "dora"


def needs_weight(parts: Collection[str]) -> str:
    """The family of a delta weight that can't be known without the checkpoint's weight, or ""."""
    family = named_family(parts)
    return family if family in RELATIVE else ""


def delta_weight(
    parts: Parts, shape: Sequence[int] | None = None, weight: Tensor | None = None, start: str = ""
) -> Tensor:
    """The delta weight of a module, of whichever family its parts make, in fp32.

    Args:
        parts: the module's tensors.
        shape: of the module's weight, where tensors alone don't say it (a convolution whose
            kernel is flattened into the columns); the weight's own where that is given.
        weight: the checkpoint's, for (IA)3, GLoRA, OFT, BOFT, DoRA, PiSSA and OLoRA.
        start: ``pissa`` or ``olora``, where training began with a part of the weight taken off.

    Raises:
        ValueError: the parts make no family, or the weight is needed and absent.
        RuntimeError: the tensors don't fit each other.
    """
    family = family_of(parts)
    if family is None:
        raise ValueError(f"no family has the parts {', '.join(sorted(parts))}")
    if (start or needs_weight(parts)) and weight is None:
        raise ValueError(f"{family} needs the checkpoint's weight")
    if start and weight is not None:
        part = deltas.taken_off(start, weight, rank_of(parts) or 0, scaling(parts))
        return delta_weight(parts, shape, weight.float() - part) - part
    row, base = FAMILIES[family], None if weight is None else weight.float()
    if row.delta is not None:
        delta = row.delta(parts)
    else:
        assert row.delta_of_weight is not None and base is not None
        delta = row.delta_of_weight(parts, base)
    if "bias" in parts:
        delta = delta.reshape(-1) + parts["bias"].float().reshape(-1)
    delta = delta * scaling(parts)
    target = base.shape if base is not None else shape
    if target is not None:
        delta = delta.reshape(torch.Size(target))
    magnitude = next((part for part in parts if part in MAGNITUDES), None)
    if base is None or magnitude is None:
        return delta
    outputs = deltas.magnitude_on_outputs(parts[magnitude].shape, base.shape, magnitude == "magnitude")
    return deltas.decomposed(base, delta, parts[magnitude], outputs)


def scaling(parts: Parts) -> float:
    """The factor of the delta weight: ``scale``, else alpha / rank, else 1.

    LoKr's rank is that of its second half where that is factorised, else of its first. A full
    difference, a norm layer, GLoRA and LoKr of two whole matrices have none. The alpha of OFT is
    its constraint, that of (IA)3 has no meaning. LyCORIS scales GLoRA by alpha / rank;
    the WebUI doesn't (see ``deltas.glora``).
    """
    family = family_of(parts)
    if family is not None and not FAMILIES[family].scaled:
        return 1.0
    if "scale" in parts:
        return float(parts["scale"])
    rank = rank_of(parts)
    if rank is None and family == "glora" and not deltas.is_old_glora(parts):
        rank = parts["a2.weight"].shape[0]
    return float(parts["alpha"]) / rank if rank is not None and "alpha" in parts else 1.0


def is_bias_alone(parts: Collection[str]) -> bool:
    """Whether a module's parts change its bias and nothing else."""
    return set(parts) - {"alpha"} == {"diff_b"}


def uses_alpha(parts: Parts) -> bool:
    """Whether alpha changes a module's delta weight; LyCORIS writes infinity where it doesn't, of a huge dimension."""
    family = family_of(parts)
    return family in (None, "glora", "oft") or rank_of(parts) is not None


def rank_of(parts: Parts) -> int | None:
    """The rank that alpha is divided by, or None in a family that has none."""
    return next((parts[part].shape[0] for part in RANK_PARTS if part in parts and parts[part].ndim), None)
