"""One merge from files to file: the only place where all rooms meet."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import LoraInput, MergeRequest, MergeSettings, parse_rank
from ..errors import ConfigError, IncompatibleError
from ..hosts import Host, Progress
from ..lora.algebra import Coefficients, Pairing, merge_layers, pair, scale
from ..lora.file import check_output, merged_metadata, output_size, read_lora, write_lora
from ..lora.layer import Approximation, Lora, LoraLayer
from .catalog import prompt_for
from .images import check_images
from .layers import at_rank, converted_warning, extras_warnings, kept_extras, rank_error
from .memory import memory_in_words
from .progress import Meter, units_of
from .report import Learnt, MergeReport
from .split import removed_on_error, split_targets
from .training import learn
from .weights import check_readable, checkpoint_weights

OnEvent = Callable[[Progress], None]


@dataclass(frozen=True)
class _Inputs:
    """The two LoRAs of a request, read and paired, and where the result goes."""

    subject: Lora
    style: Lora
    pairing: Pairing
    target: Path
    request: MergeRequest

    def concepts(self) -> list[dict[str, LoraLayer]]:
        """The UNet layers of each LoRA with the user's weight in their scaling."""
        return [
            {name: scale(layer, chosen.weight) for name, layer in lora.unet_layers().items()}
            for lora, chosen in ((self.subject, self.request.subject), (self.style, self.request.style))
        ]

    def extras(self, layers: Mapping[str, LoraLayer]) -> dict[str, torch.Tensor]:
        """The norm and bias differences that go into the file."""
        chosen = (self.request.subject, self.request.style)
        return kept_extras((self.subject, self.style), chosen, layers)


def check(request: MergeRequest, host: Host) -> None:
    """Refuse in a moment what ``run`` would refuse: call it before queueing.

    Raises:
        ZipLoraError: the same errors, in the same words, as far as they can be known from
            the names, the output and the host's state, without reading the tensors.
    """
    _target(request, host)
    split_targets(request, host)
    subject, style = host.resolve(request.subject.lora), host.resolve(request.style.lora)
    for path in (subject, style):
        check_readable(path, host)
    if subject.resolve() == style.resolve():
        raise IncompatibleError(
            f"Subject and style are the same file, {subject.name}. Choose two different LoRAs."
        )
    if request.settings.method != "direct":
        for chosen in (request.subject, request.style):
            _with_prompt(chosen, host)
            check_images(chosen.images)
        host.check()


def run(request: MergeRequest, host: Host, on_event: OnEvent | None = None) -> MergeReport:
    """Merge two LoRAs into one file.

    Args:
        request: what to merge, how, and the name of the result.
        host: where the LoRAs are installed and the checkpoint is loaded. Its lock is the
            caller's business (``Host.exclusive``, ``Host.wrap_task``).
        on_event: told of every step.

    Returns:
        What was written and how it went; the file has been read back and compared.

    Raises:
        ZipLoraError: in the user's words; nothing was written then, and the host's model is
            what it was.
    """
    started = time.monotonic()
    check(request, host)
    meter = Meter(host, on_event, units_of(request))
    inputs = _read(request, host, meter)
    learnt: Learnt | None = None
    coefficients: Mapping[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}
    if request.settings.method != "direct":
        _require_common(inputs)
        with memory_in_words(), host.open() as session:
            chosen = [_with_prompt(request.subject, host), _with_prompt(request.style, host)]
            deltas = {name: layer.delta for name, layer in _text_layers(inputs)[0].items()}
            settings = _sized(request.settings, session.native_size)
            inputs = dataclasses.replace(inputs, request=dataclasses.replace(request, settings=settings))
            learnt, coefficients = learn(session, inputs.concepts(), chosen, deltas, settings, meter)
    layers, lost = _merged_layers(inputs, coefficients)
    report = _report(inputs, host, layers, learnt)
    report = dataclasses.replace(report, rank_error=rank_error(layers, lost))
    halves = split_targets(request, host)
    with removed_on_error(halves.values()):
        report = _write_halves(inputs, host, halves, coefficients, report)
        return _write(inputs, host, layers, report, meter, started)


def _target(request: MergeRequest, host: Host) -> Path:
    """The file to write; refused when it can't be written."""
    path = host.output_path(request.output)
    check_output(path, request.overwrite)
    return path


def _read(request: MergeRequest, host: Host, meter: Meter) -> _Inputs:
    path = _target(request, host)
    meter.enter("reading", f"Reading {Path(request.subject.lora).stem}")
    files = [host.resolve(request.subject.lora), host.resolve(request.style.lora)]
    with memory_in_words(), checkpoint_weights(files, host) as weights:
        subject = read_lora(files[0], weights)
        meter.advance(1, f"Reading {Path(request.style.lora).stem}")
        style = read_lora(files[1], weights)
    if subject.sha256 == style.sha256:
        raise IncompatibleError(
            f"{subject.name} and {style.name} are the same file under two names. Choose two different LoRAs."
        )
    meter.advance(1, "Pairing the layers")
    inputs = _Inputs(subject, style, pair(subject, style), path, request)
    _require_room(inputs)
    return inputs


def _require_room(inputs: _Inputs) -> None:
    """Refuse when the disk can't hold the file, as far as its size is known beforehand."""
    request = inputs.request
    if parse_rank(request.settings.rank) is None:
        sizes = [
            output_size(lora.unet_layers(), request.settings.precision)
            for lora in (inputs.subject, inputs.style)
        ]
        check_output(inputs.target, request.overwrite, sum(sizes))


def _sized(settings: MergeSettings, native: int) -> MergeSettings:
    """The settings with the checkpoint's own size where none is given."""
    return dataclasses.replace(settings, width=settings.width or native, height=settings.height or native)


def _require_common(inputs: _Inputs) -> None:
    for lora in (inputs.subject, inputs.style):
        layers = lora.unet_layers().values()
        if layers and not any(layer.alpha and layer.up.any() and layer.down.any() for layer in layers):
            raise IncompatibleError(
                f"All UNet layers of {lora.name} are zero, so there is nothing to learn from it: it was saved "
                "before it was trained. Choose another save of it."
            )
    ours, theirs = inputs.subject.unet_layers(), inputs.style.unet_layers()
    if not any(name in theirs for name in ours):
        raise IncompatibleError(
            f"{inputs.subject.name} and {inputs.style.name} have no UNet layer in common, so there is nothing to "
            "learn. Choose the direct method: their plain sum keeps both as they are."
        )


def _with_prompt(chosen: LoraInput, host: Host) -> LoraInput:
    prompt = chosen.prompt.strip() or prompt_for(host, chosen.lora)
    if not prompt:
        raise ConfigError(
            f"There is no prompt for {chosen.lora}, and its file names no trigger words. "
            "Write the prompt that draws it, trigger words included."
        )
    return dataclasses.replace(chosen, prompt=prompt)


def _text_layers(inputs: _Inputs) -> tuple[dict[str, LoraLayer], list[Approximation]]:
    """The text-encoder layers of the file to be written, and what their rank has cost."""
    kept = inputs.request.settings.text_encoders
    layers = merge_layers(
        inputs.subject.text_layers() if kept in ("both", "subject") else {},
        inputs.style.text_layers() if kept in ("both", "style") else {},
        inputs.request.subject.weight,
        inputs.request.style.weight,
    )
    return at_rank(layers, inputs.request.settings.rank)


def _merged_layers(
    inputs: _Inputs, coefficients: Mapping[str, tuple[torch.Tensor | None, torch.Tensor | None]]
) -> tuple[dict[str, LoraLayer], list[Approximation]]:
    """Every layer of the file: the UNet's by its coefficients, the text encoders' as chosen.

    And the layers that their rank has cost something.
    """
    unet = merge_layers(
        inputs.subject.unet_layers(),
        inputs.style.unet_layers(),
        inputs.request.subject.weight,
        inputs.request.style.weight,
        coefficients,
    )
    smaller, lost = at_rank(unet, inputs.request.settings.rank)
    text, text_lost = _text_layers(inputs)
    return {**smaller, **text}, lost + text_lost


def _report(
    inputs: _Inputs, host: Host, layers: Mapping[str, LoraLayer], learnt: Learnt | None
) -> MergeReport:
    pairing, settings = inputs.pairing, inputs.request.settings
    unknown = {lora.name: lora.unknown for lora in (inputs.subject, inputs.style) if lora.unknown}
    warnings = [
        f"{name}: {len(keys)} tensors belong to no layer that SDXL has and were left out, the first is {keys[0]}."
        for name, keys in unknown.items()
    ]
    loras = (inputs.subject, inputs.style)
    warnings += [sentence for lora in loras if (sentence := converted_warning(lora))]
    warnings += extras_warnings(loras, inputs.extras(layers))
    warnings += settings.remarks() + (learnt.warnings() if learnt else [])
    if not pairing.common:
        warnings.append("The two LoRAs have no layer in common: the file holds both side by side.")
    return MergeReport(
        output=str(inputs.target),
        name=inputs.target.stem,
        method=settings.method,
        common_layers=len(pairing.common),
        subject_only=len(pairing.subject_only),
        style_only=len(pairing.style_only),
        rank=max(layer.rank for layer in layers.values()),
        sha256="",
        settings=settings,
        checkpoint=host.checkpoint().name if learnt else "",
        unknown=unknown,
        warnings=tuple(warnings),
        **(dataclasses.asdict(learnt) if learnt else {"steps": 0}),
    )


def _write(
    inputs: _Inputs,
    host: Host,
    layers: Mapping[str, LoraLayer],
    report: MergeReport,
    meter: Meter,
    started: float,
) -> MergeReport:
    meter.enter("writing", f"Writing {inputs.target.name}")
    request = inputs.request
    lora = (inputs.subject, inputs.style)
    metadata = merged_metadata(report.name, layers, lora, _recipe(inputs, host, report))
    meter.stop_if_interrupted()
    precision, extras = request.settings.precision, inputs.extras(layers)
    digest = write_lora(inputs.target, layers, metadata, precision, request.overwrite, extras)
    host.refresh(inputs.target)
    seconds = time.monotonic() - started
    meter.finish(f"Wrote {inputs.target.name} in {seconds:.0f} s")
    return dataclasses.replace(report, sha256=digest, seconds=round(seconds, 2))


def _write_halves(
    inputs: _Inputs, host: Host, targets: Mapping[str, Path], coefficients: Coefficients, report: MergeReport
) -> MergeReport:
    """The subject's and the style's part as files of their own, where they are asked for."""
    for side, target in targets.items():
        other = "style" if side == "subject" else "subject"
        empty = dataclasses.replace(getattr(inputs, other), layers={}, extras={})
        half = dataclasses.replace(inputs, **{other: empty})
        layers, _ = _merged_layers(half, coefficients)
        metadata = merged_metadata(
            target.stem, layers, (getattr(inputs, side),), _recipe(inputs, host, report)
        )
        settings = inputs.request.settings
        write_lora(
            target, layers, metadata, settings.precision, inputs.request.overwrite, half.extras(layers)
        )
        host.refresh(target)
    return dataclasses.replace(report, split=tuple(target.stem for target in targets.values()))


def _recipe(inputs: _Inputs, host: Host, report: MergeReport) -> dict[str, object]:
    """How the file was made, for its header: inputs, settings, checkpoint, what was learnt."""
    request = inputs.request
    kept = ("steps", "common_layers", "subject_only", "style_only", "mean_travel", "similarity_start")
    ends = ("similarity_end", "loss_start", "loss_end", "heldout_loss_start", "heldout_loss_end")
    return {
        "method": report.method,
        "subject": dataclasses.asdict(request.subject),
        "style": dataclasses.asdict(request.style),
        "settings": dataclasses.asdict(request.settings),
        "checkpoint": dataclasses.asdict(host.checkpoint()) if report.checkpoint else {},
        "summary": {name: getattr(report, name) for name in (*kept, *ends)},
    }
