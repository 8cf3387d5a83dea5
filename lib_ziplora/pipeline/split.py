"""Each LoRA's part as a file beside the merged one, so that a prompt can turn every strength."""

from __future__ import annotations

from pathlib import Path

from ..config import MergeRequest
from ..hosts import Host
from ..lora.io.write import check_output

_EXTENSION = ".safetensors"


def split_targets(request: MergeRequest, host: Host) -> tuple[Path, ...]:
    """The file of each LoRA's part, ``name_subject``, ``name_style2``; empty when none are asked for.

    Raises:
        OutputError: one of them can't be written.
    """
    if not request.settings.split:
        return ()
    stem = request.output.removesuffix(_EXTENSION)
    ending = request.output[len(stem) :]
    endings = [label.replace(" ", "") for label in request.labels]
    targets = tuple(host.output_path(f"{stem}_{label}{ending}") for label in endings)
    for path in targets:
        check_output(path, request.overwrite)
    return targets
