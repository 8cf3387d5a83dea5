"""The LoRAs of a merge, read and paired."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..block_strengths import block_strengths, strength_of
from ..config import MergeRequest, parse_rank
from ..errors import IncompatibleError
from ..hosts import Host
from ..lora.algebra import Pairing, pair, scale
from ..lora.io.read import read_lora
from ..lora.io.size import expected_size
from ..lora.io.write import check_output
from ..lora.layer import Lora, LoraLayer
from ..lora.lowrank import RankRule
from ..progress import Meter
from ..training.memory import memory_in_words
from ..ziplora.np_lora import null_space_projection
from .layers import kept_extras
from .prepare import PreparedMerge
from .weights import checkpoint_weights

LAYER_METHODS = {"np-lora": null_space_projection}
"""The methods that change the layers of the UNet before they are summed; each LoRA's layers and role -> its layers."""


@dataclass(frozen=True)
class Inputs:
    """The LoRAs of a request, in its order, read and paired."""

    loras: tuple[Lora, ...]
    pairing: Pairing
    request: MergeRequest

    @property
    def weights(self) -> list[float]:
        """The user's weight of each LoRA."""
        return [chosen.weight for chosen in self.request.loras]

    def concepts(self) -> list[dict[str, LoraLayer]]:
        """The UNet layers of each LoRA with the user's weight in their scaling."""
        return [
            {name: scale(layer, weight) for name, layer in lora.unet_layers().items()}
            for lora, weight in zip(self.loras, self.weights, strict=True)
        ]

    def text_layers(self) -> list[dict[str, LoraLayer]]:
        """The text-encoder layers that each LoRA gives to the file; none from one whose role isn't wanted."""
        return [lora.text_layers() if wanted else {} for lora, wanted in self._with_text()]

    def extras(self, layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
        """The norm and bias differences that go into the file beside these layers."""
        found = [
            {name: t for name, t in lora.extras.items() if wanted or not name.startswith("lora_te")}
            for lora, wanted in self._with_text()
        ]
        return kept_extras(found, self.weights, layers)

    def alone(self, index: int) -> Inputs:
        """The same merge as if every other LoRA were empty."""
        empty = [dataclasses.replace(lora, layers={}, extras={}) for lora in self.loras]
        empty[index] = self.loras[index]
        return dataclasses.replace(self, loras=tuple(empty))

    def _with_text(self) -> list[tuple[Lora, bool]]:
        return list(zip(self.loras, self.request.wants_text, strict=True))


def read_inputs(prepared: PreparedMerge, host: Host, meter: Meter) -> Inputs:
    """Read and pair the LoRAs of a merge.

    Args:
        prepared: what to merge.
        host: for the checkpoint's weights, where a LoRA can't be read without them.
        meter: told of every file.

    Raises:
        ZipLoraError: a file can't be read, two don't fit, or there is no room for the result.
    """
    request, files = prepared.request, prepared.files
    rule = RankRule(request.settings.kept_energy)
    loras = []
    with memory_in_words(), checkpoint_weights(bool(prepared.relative), host) as weights:
        for file, text, chosen in zip(files, request.wants_text, request.loras, strict=True):
            meter.enter("reading", f"Reading {file.stem}")
            lora = read_lora(file, weights, rule, meter.stop_if_interrupted, text=text)
            loras.append(at_blocks(lora, chosen.blocks))
            meter.advance(1)
    for first, second in itertools.combinations(loras, 2):
        if first.sha256 == second.sha256:
            raise IncompatibleError(
                f"{first.name} and {second.name} are the same file under two names. Choose different LoRAs."
            )
    meter.enter("reading", "Pairing the layers")
    pairing = pair(*loras)
    if change := LAYER_METHODS.get(request.settings.method):
        changed = change([lora.unet_layers() for lora in loras], [chosen.role for chosen in request.loras])
        loras = [
            dataclasses.replace(lora, layers={**lora.layers, **layers})
            for lora, layers in zip(loras, changed, strict=True)
        ]
    inputs = Inputs(tuple(loras), pairing, request)
    _require_room(inputs, prepared.output)
    return inputs


def at_blocks(lora: Lora, blocks: str) -> Lora:
    """A LoRA with every layer at the strength of its block; what is at 0 is left out.

    Raises:
        IncompatibleError: nothing is left of it.
    """
    if not blocks.strip():
        return lora
    strengths = block_strengths(blocks)
    layers = {
        name: scale(layer, strength)
        for name, layer in lora.layers.items()
        if (strength := strength_of(name, strengths))
    }
    if not layers:
        raise IncompatibleError(f"{lora.name} has no layer in the blocks {blocks}. Choose others.")
    extras = {name: t * s for name, t in lora.extras.items() if (s := strength_of(name, strengths))}
    return dataclasses.replace(lora, layers=layers, extras=extras)


def _require_room(inputs: Inputs, output: Path) -> None:
    """Refuse when the disk can't hold the files, as far as their sizes are known beforehand."""
    settings = inputs.request.settings
    rank = parse_rank(settings.rank)
    if isinstance(rank, float):
        return
    sources = [
        {**lora.unet_layers(), **text} for lora, text in zip(inputs.loras, inputs.text_layers(), strict=True)
    ]
    size = expected_size(sources, settings.precision, rank)
    if settings.split:
        size += sum(expected_size([source], settings.precision, rank) for source in sources)
    check_output(output, inputs.request.overwrite, size)


def require_common(loras: Sequence[Lora], pairing: Pairing) -> None:
    """Refuse LoRAs that there is nothing to learn from.

    Raises:
        IncompatibleError: all layers of one are zero, or no other has a layer of it.
    """
    for lora in loras:
        layers = lora.unet_layers().values()
        if layers and not any(layer.alpha and layer.up.any() and layer.down.any() for layer in layers):
            raise IncompatibleError(
                f"All UNet layers of {lora.name} are zero, so there is nothing to learn from it: it was saved "
                "before it was trained. Choose another save of it."
            )
    shared = set(pairing.common)
    for lora in loras:
        if not any(name in shared for name in lora.unet_layers()):
            others = [other.name for other in loras if other is not lora]
            raise IncompatibleError(
                f"{lora.name} has no UNet layer in common with {' or '.join(others)}, so there is nothing to "
                "learn. Choose the direct method: the plain sum keeps every LoRA as it is."
            )
