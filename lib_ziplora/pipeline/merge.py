"""One merge from files to file: the only place where all rooms meet."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from ..config import MergeRequest, MergeSettings
from ..hosts import Host, Progress
from ..lora.io.inspect import inspect_header
from ..progress import Meter, Part, units_of
from ..report.report import MergeReport
from ..training.images import check_images
from ..training.memory import memory_in_words
from ..training.run import learn
from .inputs import Inputs, prompt_remarks, read_inputs, require_common, require_different, settled, target_of
from .split import split_targets
from .weights import check_readable
from .write import Result, text_layers, write

OnEvent = Callable[[Progress], None]


def check(request: MergeRequest, host: Host) -> None:
    """Refuse in a moment what ``run`` would refuse: call it before queueing.

    Raises:
        ZipLoraError: the same errors, in the same words, as far as they can be known from
            the names, the output and the host's state, without reading the tensors.
    """
    target_of(request, host)
    split_targets(request, host)
    files = [host.resolve(chosen.lora) for chosen in request.loras]
    for path in files:
        check_readable(path, host)
    require_different(request, files)
    if request.settings.method != "direct":
        settled(request, host)
        for chosen in request.loras:
            check_images(chosen.images)
        host.check()


def run(
    request: MergeRequest, host: Host, on_event: OnEvent | None = None, part: Part | None = None
) -> MergeReport:
    """Merge LoRAs into one file.

    Args:
        request: what to merge, how, and the name of the result.
        host: where the LoRAs are installed and the checkpoint is loaded. Its lock is the
            caller's business (``Host.exclusive``, ``Host.wrap_task``).
        on_event: told of every step.
        part: where it stands when several merges are made one after the other.

    Returns:
        What was written and how it went; the file has been read back and compared.

    Raises:
        ZipLoraError: in the user's words; nothing was written then, and the host's model is
            what it was.
    """
    started = time.monotonic()
    check(request, host)
    if request.settings.method != "direct":
        request = settled(request, host)
    meter = Meter(host, on_event, units_of(request), part=part)
    files = [host.resolve(chosen.lora) for chosen in request.loras]
    inputs = read_inputs(request, files, target_of(request, host), host, meter)
    if request.settings.method != "direct":
        result = _learnt(inputs, host, meter)
    elif any(inspect_header(file).relative_family for file in files):
        result = Result(inputs, (), checkpoint=host.checkpoint())
    else:
        result = Result(inputs, ())
    return write(result, host, meter, started)


def _learnt(inputs: Inputs, host: Host, meter: Meter) -> Result:
    """The merge with coefficients learnt against the host's checkpoint."""
    require_common(inputs.loras, inputs.pairing)
    request = inputs.request
    with memory_in_words(), host.open() as session:
        deltas = {name: layer.delta for name, layer in text_layers(inputs)[0].items()}
        settings = _sized(request.settings, session.native_size)
        inputs = dataclasses.replace(inputs, request=dataclasses.replace(request, settings=settings))
        learnt, coefficients = learn(session, inputs.concepts(), request.loras, deltas, settings, meter)
        figures = dataclasses.asdict(learnt)
    warnings, history = (*prompt_remarks(request), *learnt.warnings()), tuple(meter.history)
    return Result(inputs, coefficients, figures, host.checkpoint(), warnings, history=history)


def _sized(settings: MergeSettings, native: int) -> MergeSettings:
    """The settings with the checkpoint's own size where none is given."""
    return dataclasses.replace(settings, width=settings.width or native, height=settings.height or native)
