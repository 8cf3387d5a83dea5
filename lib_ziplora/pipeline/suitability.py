"""What a merge's LoRAs, prompts and checkpoint are not made for, told from names and headers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ..config import MergeRequest, MergeSettings
from ..errors import IncompatibleError
from ..hosts import Host, KnowsLayers
from ..library.header_cache import InspectedFile
from ..library.prompts import prompt_notes
from ..lora.formats.speedups import speed_up_lora, speed_up_warning
from ..lora.io.embeddings import bundled
from ..lora.io.inspect import LoraHeader

DISTILLED_STEPS = 4
"""The most steps of a trajectory against a Lightning, Hyper, Turbo, LCM or DMD2 checkpoint."""


def request_remarks(request: MergeRequest, headers: Sequence[LoraHeader], host: Host) -> list[str]:
    """Sentences on what a prepared request holds that a merge doesn't follow, or was not made for; none twice.

    LoRAs whose name several files have, embeddings, speed-up LoRAs, a distilled checkpoint, prompts with tags.
    """
    chosen = {lora.lora for lora in request.loras}
    remarks = [lora.remark for lora in host.loras() if lora.remark and lora.name in chosen]
    for header in headers:
        kind = speed_up_lora(header.path, header.metadata)
        remarks += [speed_up_warning(header.name, kind)] if kind else []
        words = ", ".join(sorted(bundled(header.unknown)))
        if words and not request.settings.save_embeddings:
            remarks.append(
                f"{header.name} brings embeddings along ({words}), which do not go into the merged file. To use them, "
                "turn on 'Also save bundled embeddings' (--save-embeddings)."
            )
    settings = request.settings
    if settings.needs.model:
        kind = _distilled(host)
        if kind:
            remarks.append(
                f"The checkpoint is a {kind} model, which draws in few steps: the samples are drawn without guidance "
                f"(1) and in {settings.sampling_steps} steps each."
            )
        prompts = [lora.prompt for lora in request.loras] + [
            settings.combined_prompt,
            settings.negative_prompt,
        ]
        remarks += [note for prompt in prompts for note in prompt_notes(prompt)]
    return list(dict.fromkeys(remarks))


def require_fitting(request: MergeRequest, files: Sequence[InspectedFile], host: Host) -> None:
    """Refuse a LoRA with a layer that the given checkpoint doesn't have, or has in another shape.

    Raises:
        IncompatibleError: the sentence names LoRA and layer.
    """
    shapes = host.layer_shapes() if isinstance(host, KnowsLayers) else {}
    sections = {_section(name) for name in shapes}
    for text, file in zip(request.wants_text, files, strict=True):
        found = {name: layer.weight_shape for name, layer in file.shapes.layers.items()}
        for name in (*found, *file.shapes.unknown):
            wanted = text or name.startswith("lora_unet")
            if _section(name) in sections and wanted and not name.endswith("text_projection"):
                wrong = _misfit(found.get(name), shapes.get(name))
                if wrong:
                    raise IncompatibleError(
                        f"{file.header.name}: layer {name} {wrong}. Choose a LoRA that was trained on a model of the "
                        "checkpoint's kind, or another checkpoint."
                    )


def for_distilled(settings: MergeSettings, host: Host) -> MergeSettings:
    """The settings as they are, or without guidance and with few steps where the checkpoint needs that."""
    if not _distilled(host):
        return settings
    steps = min(settings.sampling_steps, DISTILLED_STEPS)
    return dataclasses.replace(settings, guidance_scale=1.0, sampling_steps=steps)


def _misfit(ours: tuple[int, ...] | None, theirs: tuple[int, ...] | None) -> str:
    """What is wrong with a layer; a linear layer and a 1x1 convolution of equal size are the same."""
    if theirs is None:
        return "is one that the checkpoint does not have"
    if ours and (ours[0], math.prod(ours[1:])) != (theirs[0], math.prod(theirs[1:])):
        return f"has a weight of shape {ours}, the checkpoint's is {theirs}"
    return ""


def _section(name: str) -> str:
    """``lora_unet``, ``lora_te1`` or ``lora_te2``."""
    return "_".join(name.split("_", 2)[:2])


def _distilled(host: Host) -> str:
    return host.distilled() if isinstance(host, KnowsLayers) else ""
