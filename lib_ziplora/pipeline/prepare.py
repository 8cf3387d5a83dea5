"""Preparation of a merge: everything that can be known before a tensor is read, found out once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..config import LoraInput, MergeRequest
from ..errors import ConfigError, HostError, IncompatibleError, UnsupportedLoraError, ZipLoraError
from ..hosts import Host
from ..library.header_cache import InspectedFile, inspect_file
from ..library.prompts import Prompted, combined_prompt, suggested_prompt
from ..lora.io.inspect import LoraHeader, require_sdxl
from ..lora.io.sidecar import check_sidecar, sidecar_path
from ..lora.io.write import EXTENSION, check_output
from ..report.saved import SavedMerge
from ..training.images import check_images
from .suitability import for_distilled, require_fitting


@dataclass(frozen=True)
class PreparedMerge:
    """Everything that is known of a merge before a tensor is read; only ``prepare`` makes one.

    Attributes:
        request: with every prompt in place.
        files: of its LoRAs, in their order.
        headers: of the files.
        output: the file to write.
        parts: the file of each LoRA's part (``name_subject``, ``name_style2``); none unless asked for.
        saved: of a re-export, the merge that is written again; None where there is something to compute.
        origin: of a re-export, the file that ``saved`` was read from, and what each LoRA is multiplied by.
    """

    request: MergeRequest
    files: tuple[Path, ...]
    headers: tuple[LoraHeader, ...]
    output: Path
    parts: tuple[Path, ...] = ()
    saved: SavedMerge | None = None
    origin: tuple[Path, tuple[float, ...]] | None = None

    @property
    def sidecar(self) -> Path:
        """The file of the coefficients, beside the output."""
        return sidecar_path(self.output)

    @property
    def learns(self) -> bool:
        """Whether it draws samples and needs the host's model for that."""
        return self.saved is None and self.request.settings.needs.model

    @property
    def relative(self) -> tuple[str, ...]:
        """The names of the LoRAs that can't be read without the checkpoint's weights."""
        wanted = zip(self.headers, self.request.wants_text, strict=True)
        return tuple(header.name for header, text in wanted if header.relative_family(text))


@dataclass
class Examination:
    """What was found out about a request, and everything that keeps it from being done, the first first."""

    request: MergeRequest
    files: list[Path] = field(default_factory=list)
    inspected: list[InspectedFile] = field(default_factory=list)
    output: Path | None = None
    parts: tuple[Path, ...] = ()
    problems: list[ZipLoraError] = field(default_factory=list)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Our errors inside the block become problems."""
        try:
            yield
        except ZipLoraError as error:
            self.problems.append(error)

    def prepared(self) -> PreparedMerge:
        """The merge, where there is no problem; else the first one is raised."""
        if self.problems or self.output is None:
            raise self.problems[0]
        headers = tuple(found.header for found in self.inspected)
        return PreparedMerge(self.request, tuple(self.files), headers, self.output, self.parts)


def prepare(request: MergeRequest, host: Host) -> PreparedMerge:
    """Find out what can be known of a merge before a tensor is read; refuse what can't be done.

    Raises:
        ZipLoraError: an unknown LoRA, one that can't be merged, a name that is taken, no prompt, a model that
            can't be used; in the user's words.
    """
    return examine(request, host).prepared()


def examine(request: MergeRequest, host: Host) -> Examination:
    """As ``prepare``, but with every problem instead of the first, and what is known in spite of them."""
    found = Examination(request)
    check_outputs(found, host)
    for chosen, text in zip(request.loras, request.wants_text, strict=True):
        with found.collecting():
            add_file(found, host.resolve(chosen.lora), host, text)
    if len(found.files) == len(request.loras):
        with found.collecting():
            require_different(request, found.files)
        if request.settings.needs.model:
            _resolve_prompts(found, host)
    if request.settings.needs.model:
        for chosen in request.loras:
            with found.collecting():
                check_images(chosen.images)
        with found.collecting():
            host.check()
    if len(found.files) == len(request.loras):
        with found.collecting():
            require_fitting(request, found.inspected, host)
    return found


def check_outputs(found: Examination, host: Host) -> None:
    """The files to write; a problem when one, or the coefficients beside it, can't be written."""
    request = found.request
    with found.collecting():
        path = host.output_path(request.output)
        check_output(path, request.overwrite)
        check_sidecar(path, request.overwrite)
        found.output = path
        if request.settings.split:
            stem = request.output.removesuffix(EXTENSION)
            names = [f"{stem}_{label.replace(' ', '')}" for label in request.labels]
            ending = request.output[len(stem) :]
            found.parts = tuple(host.output_path(f"{name}{ending}") for name in names)
            for part in found.parts:
                check_output(part, request.overwrite)


def add_file(found: Examination, path: Path, host: Host, text: bool) -> None:
    """Take a LoRA's file, unless it is no LoRA of SDXL, or needs a checkpoint where there is none.

    Args:
        found: what it is added to.
        path: the file.
        host: for the checkpoint.
        text: whether its text encoder layers are wanted.

    Raises:
        LoraFileError: it can't be read.
        UnsupportedLoraError: the sentence names the family and what to do.
    """
    inspected = inspect_file(path)
    require_sdxl(inspected.header)
    if inspected.header.relative_family(text):
        try:
            host.check()
        except HostError as error:
            require_sdxl(inspected.header, checkpoint=False, text=text)
            raise UnsupportedLoraError(str(error)) from error
    found.files.append(path)
    found.inspected.append(inspected)


def require_different(request: MergeRequest, files: Sequence[Path]) -> None:
    """Raise IncompatibleError when one file is given twice."""
    for (first, path), (second, other) in itertools.combinations(zip(request.labels, files, strict=True), 2):
        if path.resolve() == other.resolve():
            raise IncompatibleError(
                f"{first.capitalize()} and {second} are the same file, {path.name}. Choose different LoRAs."
            )


def _resolve_prompts(found: Examination, host: Host) -> None:
    """Every prompt in place: each LoRA's own, and the one for all together where it is of use."""
    request = found.request
    cards = {lora.path: lora.user_metadata for lora in host.loras()}
    suggested = [
        suggested_prompt(cards.get(path, {}), one.header.metadata)
        for path, one in zip(found.files, found.inspected, strict=True)
    ]
    loras = []
    for chosen, suggestion in zip(request.loras, suggested, strict=True):
        with found.collecting():
            loras.append(_with_prompt(chosen, suggestion))
    if len(loras) < len(request.loras):
        return
    settings = for_distilled(request.settings, host)
    if settings.uses_combined_prompt and not settings.combined_prompt.strip():
        parts = [
            Prompted(lora.role, lora.prompt, trigger) for lora, trigger in zip(loras, suggested, strict=True)
        ]
        settings = dataclasses.replace(settings, combined_prompt=combined_prompt(parts))
    if settings.needs.combined_prompt == "required" and not settings.combined_prompt.strip():
        found.problems.append(
            ConfigError(
                f"The method {settings.method} needs a prompt for both together, and none can be made of the LoRAs' "
                "own. Write one, with the trigger words of all of them."
            )
        )
    found.request = dataclasses.replace(request, loras=tuple(loras), settings=settings)


def _with_prompt(chosen: LoraInput, suggestion: str) -> LoraInput:
    prompt = chosen.prompt.strip() or suggestion
    if not prompt:
        raise ConfigError(
            f"There is no prompt for {chosen.lora}, and its file names no trigger words. "
            "Write the prompt that draws it, trigger words included."
        )
    return dataclasses.replace(chosen, prompt=prompt)
