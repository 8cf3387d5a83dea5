"""The two files beside the merged one, so that a prompt can turn either strength."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..config import MergeRequest
from ..hosts import Host
from ..lora.file import check_output

SIDES = ("subject", "style")
_EXTENSION = ".safetensors"


def split_targets(request: MergeRequest, host: Host) -> dict[str, Path]:
    """Side -> the file of its part, ``name_subject`` and ``name_style``; empty when none are asked for.

    Raises:
        OutputError: one of them can't be written.
    """
    if not request.settings.split:
        return {}
    stem = request.output.removesuffix(_EXTENSION)
    ending = request.output[len(stem) :]
    targets = {side: host.output_path(f"{stem}_{side}{ending}") for side in SIDES}
    for path in targets.values():
        check_output(path, request.overwrite)
    return targets


@contextlib.contextmanager
def removed_on_error(paths: Iterable[Path]) -> Iterator[None]:
    """Files that the block creates are gone again when it fails or is interrupted."""
    new = [path for path in paths if not path.exists()]
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise
