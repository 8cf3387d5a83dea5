"""Resize: one LoRA written again at another rank or precision, in kohya's names, and the error that it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass

from ..config import Precision, output_option, overwrite_option, setting_fields
from ..hosts import Host
from ..lora.io.metadata import merged_metadata
from ..lora.io.read import read_lora
from ..lora.io.write import as_written, check_output, make_folder, write_lora
from ..lora.layer import Approximation, Lora, LoraLayer, StackedLayer
from ..lora.lowrank import RankRule, total_error
from ..options import option, parse_rank
from .layers import at_rank, converted_warning, extras_warnings, frobenius, kept_extras

DESCRIPTIVE = ("ss_", "modelspec.")
"""Beginnings of the header strings that stay: how it was trained, and with which words."""


@dataclass(frozen=True)
class ResizeRequest:
    """Which LoRA to write again, and how."""

    source: str = option(MISSING, "LoRA", "A LoRA file, or the name of one in a --lora-dir", flag="source")
    output: str = output_option()
    overwrite: bool = overwrite_option()
    rank: str = option("exact", "Rank", setting_fields()["rank"].help)
    precision: Precision = option("fp16", "Precision", setting_fields()["precision"].help)

    def __post_init__(self) -> None:
        parse_rank(self.rank)


@dataclass(frozen=True)
class Resized:
    """A LoRA that was written again.

    Attributes:
        output: its file.
        ranks: the highest rank before and now.
        sizes: bytes before and now.
        error: of all layers together: ||new - old|| / ||old||, rounding included.
        mean_error: of a layer, on average.
        worst: the layer with the largest error.
        worst_error: its error.
        remarks: what else was lost, as sentences.
    """

    output: str
    ranks: tuple[int, ...]
    sizes: tuple[int, int]
    error: float
    mean_error: float
    worst: str
    worst_error: float
    remarks: tuple[str, ...]


def resize(request: ResizeRequest, host: Host) -> Resized:
    """Write a LoRA again, and compare what was written with what it was.

    Layers of other families become low-rank, as in a merge.

    Raises:
        ZipLoraError: it can't be read, or its file can't be written.
    """
    path, output = host.resolve(request.source), host.output_path(request.output)
    check_output(output, request.overwrite)
    wanted = parse_rank(request.rank)
    rule = RankRule(wanted) if isinstance(wanted, float) else RankRule(limit=wanted)
    lora = read_lora(path, rule=rule)
    layers, _ = at_rank(lora.layers, request.rank)
    make_folder(output)
    extras = kept_extras([lora.extras], [1.0], layers)
    write_lora(
        output, layers, _metadata(lora, output.stem, layers), request.precision, request.overwrite, extras
    )
    host.refresh(output)
    written = read_lora(output)
    lost = [_loss(layer, written.layers[name]) for name, layer in lora.layers.items()]
    worst = max(lost, key=lambda item: item.error)
    return Resized(
        str(output),
        tuple(max(layer.rank for layer in one.layers.values()) for one in (lora, written)),
        (lora.size, written.size),
        total_error(lost),
        sum(item.error for item in lost) / len(lost),
        worst.layer,
        worst.error,
        tuple(filter(None, (converted_warning(lora), *extras_warnings([lora], extras)))),
    )


def _metadata(lora: Lora, name: str, layers: Mapping[str, LoraLayer]) -> dict[str, str]:
    """The header's strings: how the LoRA was trained stays, what its tensors are is new."""
    described = {key: text for key, text in lora.metadata.items() if key.startswith(DESCRIPTIVE)}
    resized = {"of": lora.name, "sha256": lora.sha256}
    return {**described, **merged_metadata(name, as_written(layers), recipe={"resized": resized})}


def _loss(old: LoraLayer, new: LoraLayer) -> Approximation:
    """||new - old|| / ||old||, from the factors."""
    difference = StackedLayer(old.name, (*old.terms(), *(term.scaled(-1.0) for term in new.terms())))
    norm = frobenius(old)
    return Approximation(old.name, "lora", new.rank, frobenius(difference) / norm if norm else 0.0, norm)
