"""One merge or re-export from files to file: the only place where all rooms meet."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from ..config import MergeRequest, MergeSettings
from ..hosts import CheckpointInfo, Host, Progress
from ..progress import Meter, SubProgress, file_units, units_of
from ..report.report import MergeReport
from ..training.memory import memory_in_words
from ..training.run import learn
from .inputs import Inputs, read_inputs, require_common
from .prepare import PreparedMerge, prepare
from .reexport import ReexportRequest, prepare_reexport, saved_result
from .suitability import request_remarks
from .write import Result, TextLayers, text_layers, write

OnEvent = Callable[[Progress], None]


ENDED = (
    "An Interrupt that was pressed elsewhere in the UI reached this merge after update {} of {}; "
    "what was learnt by then was written."
)


def run(
    merge: PreparedMerge | MergeRequest | ReexportRequest,
    host: Host,
    on_event: OnEvent | None = None,
    part: SubProgress | None = None,
) -> MergeReport:
    """Merge LoRAs into one file, or write a merge again.

    Args:
        merge: what to merge, how, and the name of the result; a request is prepared first.
        host: where the LoRAs are installed and the checkpoint is loaded. Its lock is the
            caller's business (``Host.exclusive``).
        on_event: told of every step.
        part: where it stands when several merges are made one after the other.

    Returns:
        What was written and how it went; the file has been read back and compared.

    Raises:
        ZipLoraError: in the user's words; nothing was written then, and the host's model is
            what it was.
    """
    started = time.monotonic()
    if isinstance(merge, MergeRequest):
        merge = prepare(merge, host)
    elif isinstance(merge, ReexportRequest):
        merge = prepare_reexport(merge, host)
    units = units_of(merge.request) if merge.learns else file_units(len(merge.files))
    meter = Meter(host, on_event, units, part=part)
    inputs = read_inputs(merge, host, meter)
    text = text_layers(inputs)
    if merge.saved is not None:
        result = saved_result(merge, merge.saved, inputs, text, host)
    elif merge.learns:
        result = _learnt(inputs, text, host, meter)
    else:
        result = Result(inputs, text, (), host.checkpoint() if merge.relative else CheckpointInfo("", ""))
    if merge.saved is None:
        remarks = request_remarks(merge.request, merge.headers, host)
        result = dataclasses.replace(result, warnings=(*remarks, *result.warnings))
    return write(result, merge, host, meter, started)


def _learnt(inputs: Inputs, text: TextLayers, host: Host, meter: Meter) -> Result:
    """The merge with coefficients learnt against the host's checkpoint."""
    require_common(inputs.loras, inputs.pairing)
    request = inputs.request
    with memory_in_words(), host.open() as session:
        deltas = text.deltas(session.denoiser.device)
        settings = _sized(request.settings, session.native_size)
        inputs = dataclasses.replace(inputs, request=dataclasses.replace(request, settings=settings))
        learnt, coefficients = learn(session, inputs.concepts(), request.loras, deltas, settings, meter)
    warnings, history = learnt.warnings(), tuple(meter.history)
    if meter.ended_from_elsewhere:
        warnings.append(ENDED.format(learnt.steps, settings.steps))
    return Result(inputs, text, coefficients, host.checkpoint(), learnt, tuple(warnings), history)


def _sized(settings: MergeSettings, native: int) -> MergeSettings:
    """The settings with the checkpoint's own size where none is given."""
    return dataclasses.replace(settings, width=settings.width or native, height=settings.height or native)
