"""The part of ``Host`` that is the same in Automatic1111 and in its forks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import ZipLoraError
from ...lora.io.container import header_of
from .. import ApiAccess, CheckpointInfo, InstalledLora, Progress, Sampler, checkpoint_files
from . import api, drawing, loras

SDXL_SIZE = 1024
SMALLEST_SIZE, LARGEST_SIZE = 64, 2048


def resolution(entry: Any | None) -> int | None:
    """The edge of the square pictures that a checkpoint's metadata (ModelSpec) name; None without any.

    reForge throws an entry's metadata away once it has loaded the checkpoint; the file still has them.
    """
    metadata = getattr(entry, "metadata", None) or _metadata_of(getattr(entry, "filename", ""))
    given = metadata.get("modelspec.resolution")
    width, mark, height = str(given or "").lower().partition("x")
    if not width.isdecimal() or (mark and height != width):
        return None
    size = int(width)
    return size if SMALLEST_SIZE <= size <= LARGEST_SIZE and size % SMALLEST_SIZE == 0 else None


def _metadata_of(filename: str) -> Mapping[str, Any]:
    if not filename.endswith(loras.SUFFIX):
        return {}
    try:
        return header_of(Path(filename)).metadata
    except ZipLoraError:
        return {}


class WebuiHost:
    """LoRA list, queue, progress and settings of a WebUI. LoRAs are named, never given by a path."""

    _own_interrupt = False

    def chosen(self) -> Any | None:
        """The WebUI's entry of the checkpoint that a merge would use; None without any."""
        raise NotImplementedError

    def checkpoint(self) -> CheckpointInfo:
        """The chosen checkpoint; its sha256 as the WebUI knows it (``""`` under --no-hashing, or not yet)."""
        entry = self.chosen()
        return CheckpointInfo(entry.name_for_extra, entry.sha256 or "") if entry else CheckpointInfo("", "")

    def picture_size(self) -> int | None:
        """See ``KnowsSize``; from the checkpoint's metadata."""
        return resolution(self.chosen())

    def _file(self) -> Path | None:
        """The file of the chosen checkpoint."""
        entry = self.chosen()
        return Path(entry.filename) if entry else None

    def check_file(self) -> None:
        """Raise HostError for a checkpoint file that says of itself that it is no ordinary SDXL."""
        file = self._file()
        if file is not None and file.suffix.lower() == loras.SUFFIX:
            checkpoint_files.check_variant(file)

    def layer_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See ``KnowsLayers``; from the header of the checkpoint's file."""
        return checkpoint_files.layer_shapes(self._file())

    def distilled(self) -> str:
        """See ``KnowsLayers``; by the checkpoint's name and metadata."""
        return checkpoint_files.distillation(self._file())

    def loras(self) -> Sequence[InstalledLora]:
        """What the WebUI's LoRA pane lists, freshly listed, sorted by name."""
        return loras.installed()

    def resolve(self, lora: str) -> Path:
        """The file of an installed LoRA's name; LoraFileError when there is none."""
        return loras.resolve(lora)

    def output_path(self, name: str) -> Path:
        """In the WebUI's LoRA folder; OutputError for a path or a name that is taken elsewhere."""
        return loras.output_path(name)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The WebUI's queue, as a job of its own."""
        from modules import call_queue, shared

        with call_queue.queue_lock:
            self._own_interrupt = False
            shared.state.begin(job="ziplora")
            try:
                yield
            finally:
                shared.state.end()
                shared.state.skipped = shared.state.interrupted = shared.state.stopping_generation = False

    def report(self, progress: Progress) -> None:
        """Show progress in the WebUI's own bar."""
        from modules import shared

        state = shared.state
        state.job_count, state.job_no = 1, 0
        state.sampling_steps, state.sampling_step = progress.total, progress.step
        state.textinfo = " ".join(progress.text.split())

    def interrupted(self) -> bool:
        """Whether Interrupt was pressed, in our tab or (after this picture) in the txt2img tab."""
        from modules import shared

        return bool(shared.state.interrupted or shared.state.stopping_generation)

    def finish_requested(self) -> bool:
        """Whether Finish now (the WebUI's Skip) was pressed."""
        from modules import shared

        return bool(shared.state.skipped)

    def interrupt(self) -> None:
        """Ask the running job to stop."""
        from modules import shared

        self._own_interrupt = True
        shared.state.interrupt()

    def take_interrupt(self) -> bool:
        """See ``SharesInterrupt``; any tab's Interrupt, and the API's, stops whatever runs."""
        from modules import shared

        if self._own_interrupt or not self.interrupted():
            return False
        shared.state.interrupted = shared.state.stopping_generation = False
        return True

    def finish_now(self) -> None:
        """Ask the running job to stop optimising and to write."""
        from modules import shared

        shared.state.skip()

    def card_changed(self, path: Path) -> None:
        """See ``ShowsCards``; the LoRA pane knows of no file that is newer than itself."""
        loras.card_changed(path)

    def data_folder(self) -> Path | None:
        """Beside the WebUI's own caches."""
        from modules import cache, paths

        folder = getattr(cache, "cache_dir", None)
        return (Path(folder) if folder else Path(paths.data_path) / "cache") / "ziplora"

    def embeddings_folder(self) -> Path:
        """See ``KeepsEmbeddings``; the WebUI looks into it anew before each picture."""
        from modules import shared

        return Path(shared.cmd_opts.embeddings_dir)

    def samplers(self) -> Sequence[str]:
        """The samplers that the txt2img tab offers."""
        return drawing.samplers()

    def default_sampler(self) -> Sampler:
        """What the txt2img tab begins with."""
        return drawing.default_sampler()

    def api_access(self) -> ApiAccess | None:
        """Those who may use the WebUI's own API; None without --api."""
        return api.access()

    def facts(self) -> Mapping[str, str]:
        """See ``TellsFacts``; a subclass adds its attention."""
        from modules import launch_utils

        gradio = str(getattr(sys.modules.get("gradio"), "__version__", ""))
        return {"WebUI": launch_utils.git_tag(), "gradio": gradio}
