"""The LoRAs of a merge: found, refused or read, and where the result goes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..config import LoraInput, MergeRequest, parse_rank
from ..errors import ConfigError, IncompatibleError
from ..hosts import Host
from ..library.catalog import prompt_for
from ..library.prompts import Prompted, combined_prompt, prompt_notes
from ..lora.algebra import Pairing, pair, scale
from ..lora.io.read import read_lora
from ..lora.io.sidecar import check_sidecar
from ..lora.io.size import expected_size
from ..lora.io.write import check_output
from ..lora.layer import Lora, LoraLayer
from ..lora.lowrank import RankRule
from ..progress import Meter
from ..training.memory import memory_in_words
from .layers import kept_extras
from .weights import checkpoint_weights


@dataclass(frozen=True)
class Inputs:
    """The LoRAs of a request, in its order, read and paired, and where the result goes."""

    loras: tuple[Lora, ...]
    pairing: Pairing
    target: Path
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
        roles = self.request.settings.text_roles
        return [
            (lora, chosen.role in roles) for lora, chosen in zip(self.loras, self.request.loras, strict=True)
        ]


def target_of(request: MergeRequest, host: Host) -> Path:
    """The file to write; refused when it, or its coefficients beside it, can't be written."""
    path = host.output_path(request.output)
    check_output(path, request.overwrite)
    check_sidecar(path, request.overwrite)
    return path


def require_different(request: MergeRequest, files: Sequence[Path]) -> None:
    """Raise IncompatibleError when one file is given twice."""
    for (first, path), (second, other) in itertools.combinations(zip(request.labels, files, strict=True), 2):
        if path.resolve() == other.resolve():
            raise IncompatibleError(
                f"{first.capitalize()} and {second} are the same file, {path.name}. Choose different LoRAs."
            )


def read_inputs(
    request: MergeRequest, files: Sequence[Path], target: Path, host: Host, meter: Meter
) -> Inputs:
    """Read and pair the LoRAs.

    Args:
        request: what to merge.
        files: of its LoRAs, in their order.
        target: the file to write.
        host: for the checkpoint's weights, where a LoRA can't be read without them.
        meter: told of every file.

    Raises:
        ZipLoraError: a file can't be read, two don't fit, or there is no room for the result.
    """
    rule = RankRule(request.settings.kept_energy)
    loras = []
    with memory_in_words(), checkpoint_weights(list(files), host) as weights:
        for file in files:
            meter.enter("reading", f"Reading {file.stem}")
            loras.append(read_lora(file, weights, rule, meter.stop_if_interrupted))
            meter.advance(1)
    for first, second in itertools.combinations(loras, 2):
        if first.sha256 == second.sha256:
            raise IncompatibleError(
                f"{first.name} and {second.name} are the same file under two names. Choose different LoRAs."
            )
    meter.enter("reading", "Pairing the layers")
    inputs = Inputs(tuple(loras), pair(*loras), target, request)
    _require_room(inputs)
    return inputs


def _require_room(inputs: Inputs) -> None:
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
    check_output(inputs.target, inputs.request.overwrite, size)


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


def with_prompt(chosen: LoraInput, host: Host) -> LoraInput:
    """The input with a prompt: its own, or the one that the LoRA's card or file suggests.

    Raises:
        ConfigError: there is none.
    """
    prompt = chosen.prompt.strip() or prompt_for(host, chosen.lora)
    if not prompt:
        raise ConfigError(
            f"There is no prompt for {chosen.lora}, and its file names no trigger words. "
            "Write the prompt that draws it, trigger words included."
        )
    return dataclasses.replace(chosen, prompt=prompt)


def settled(request: MergeRequest, host: Host) -> MergeRequest:
    """The request with every prompt in place: each LoRA's own, and the one for all together.

    Raises:
        ConfigError: a LoRA has no prompt, or the method needs one for all together and none can be made.
    """
    loras = tuple(with_prompt(chosen, host) for chosen in request.loras)
    settings = request.settings
    if settings.wants_combined and not settings.combined_prompt.strip():
        parts = [Prompted(lora.role, lora.prompt, prompt_for(host, lora.lora)) for lora in loras]
        settings = dataclasses.replace(settings, combined_prompt=combined_prompt(parts))
    if settings.method == "balanced" and not settings.combined_prompt.strip():
        raise ConfigError(
            "The method balanced needs a prompt for both together, and none can be made of the LoRAs' own. "
            "Write one, with the trigger words of all of them."
        )
    return dataclasses.replace(request, loras=loras, settings=settings)


def prompt_remarks(request: MergeRequest) -> list[str]:
    """Sentences on what the prompts of a settled request say and a merge doesn't follow; none twice."""
    settings = request.settings
    prompts = [lora.prompt for lora in request.loras] + [settings.combined_prompt, settings.negative_prompt]
    return list(dict.fromkeys(note for prompt in prompts for note in prompt_notes(prompt)))
