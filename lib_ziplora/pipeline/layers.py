"""Rank, norms and biases of the merged file, and the warnings about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..config import parse_rank
from ..lora.algebra import merge_extras
from ..lora.formats.families import FAMILIES
from ..lora.layer import Approximation, Lora, LoraLayer
from ..lora.lowrank import RankRule, cut, total_error
from ..plots import counted

OUTSIDE_BLOCKS = tuple(
    f"lora_unet_{place}_" for place in ("input_blocks_0", "time_embed", "label_emb", "out")
)
"""Layers at whose names diffusers 0.35 refuses a whole file, as it does at differences of norms and biases."""


def at_rank(layers: Mapping[str, LoraLayer], rank: str) -> tuple[dict[str, LoraLayer], list[Approximation]]:
    """The layers at the rank that ``MergeSettings.rank`` asks for, and which lost something."""
    wanted = parse_rank(rank)
    if wanted is None:
        return dict(layers), []
    rule = RankRule(wanted) if isinstance(wanted, float) else RankRule(1.0, wanted)
    smaller, found = {}, []
    for name, layer in layers.items():
        smaller[name], lost = cut(layer, rule)
        found += [lost] if lost else []
    return smaller, found


def rank_error(layers: Mapping[str, LoraLayer], lost: list[Approximation]) -> float:
    """The relative error that the lower ranks have left in all layers together."""
    cut_ones = {item.layer for item in lost}
    kept = [
        Approximation(name, "lora", layer.rank, 0.0, frobenius(layer))
        for name, layer in layers.items()
        if name not in cut_ones
    ]
    return total_error([*lost, *kept]) if lost else 0.0


def frobenius(layer: LoraLayer) -> float:
    """||delta|| from the factors: sqrt(trace((up^T up) (down down^T)))."""
    up, down = layer.up.double(), layer.down.double().flatten(1)
    return abs(layer.scaling) * float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt())


def kept_extras(
    extras: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    layers: Mapping[str, LoraLayer],
) -> dict[str, Tensor]:
    """The norm and bias differences of each LoRA that the file can carry, summed at their weights.

    Norms of text encoders can't: Forge knows no such name, and refuses files with many unknown
    ones. A bias difference needs a layer beside it, or the WebUI refuses the file.
    """
    merged = merge_extras(extras, weights)
    return {
        name: tensor
        for name, tensor in merged.items()
        if (name.rpartition(".")[0] in layers)
        or (name.startswith("lora_unet_") and name.endswith(("w_norm", "b_norm")))
    }


def converted_warning(lora: Lora) -> str:
    """A sentence about the layers of other families, or ""."""
    items = lora.approximations
    if not items:
        return ""
    families = ", ".join(sorted({FAMILIES[item.family].label for item in items}))
    worst = max(items, key=lambda item: item.error)
    return (
        f"{lora.name}: {counted(len(items), 'layer')} of {families} became low-rank, of rank "
        f"{max(item.rank for item in items)} at most, with an error of {100 * total_error(items):.1f} % in all "
        f"(the largest is {100 * worst.error:.1f} %, in {worst.layer})."
    )


def extras_warnings(loras: Sequence[Lora], kept: Mapping[str, Tensor]) -> list[str]:
    """Sentences about norms and biases that were carried through, or left out."""
    found = []
    for lora in loras:
        left_out = [name for name in lora.extras if name not in kept]
        if left_out:
            found.append(
                f"{lora.name}: {len(left_out)} differences of norms or biases were left out, "
                f"the first is {left_out[0]}."
            )
    biases = sum(name.endswith(".diff_b") for name in kept)
    if len(kept) > biases:
        found.append("Differences of norm layers were added as they are; the optimisation did not see them.")
    if biases:
        found.append(
            f"{biases} differences of biases are in the file; Forge and ComfyUI apply them, Automatic1111 does not."
        )
    return found


def loader_warnings(layers: Mapping[str, LoraLayer], kept: Mapping[str, Tensor]) -> list[str]:
    """Sentences about what is in the file and not every program takes."""
    found, refused = [], [*kept, *(name for name in layers if name.startswith(OUTSIDE_BLOCKS))]
    if refused:
        found.append(
            f"Programs that load LoRAs with diffusers will refuse the file: it holds {counted(len(refused), 'layer')} "
            f"that diffusers does not know (the first is {refused[0]}). WebUIs and ComfyUI load it."
        )
    if "lora_te2_text_projection" in layers:
        found.append(
            "lora_te2_text_projection is in the file; Forge, ComfyUI and diffusers apply it, Automatic1111 does not."
        )
    return found
