"""What a merge needs from the world around it, and which world this is.

Adapters implement ``Host``: ``a1111``, ``forge`` (Neo too), ``reforge`` (Classic too) and ``standalone`` (diffusers).
SD.Next is recognised and refused in words. Detection is by feature, never by version.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ..denoiser import Conditioning, Denoiser, TextDeltas
from ..errors import HostError
from ..names import readable
from ..origins import AllowedOrigins
from .pictures import Drawn as Drawn
from .pictures import Draws as Draws
from .pictures import OnStep as OnStep
from .pictures import Pen as Pen
from .pictures import Picture as Picture
from .pictures import Sampler as Sampler


@dataclass(frozen=True)
class InstalledLora:
    """A LoRA file that the host lists.

    Attributes:
        name: what the user picks and writes into ``<lora:name:1>`` (the file's stem, readable in any case; with
            folders before it where another file has that stem).
        path: the file.
        user_metadata: what the user wrote on its card (keys as in the WebUI's
            ``<stem>.json``: ``activation text``, ``preferred weight``, ...), or empty.
        remark: which of several files of its name it is, as a sentence; "" where there is no other.
    """

    name: str
    path: Path
    user_metadata: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", readable(self.name))

    @property
    def problem(self) -> str:
        """Why the file can't be used whatever is in it, as a sentence; "" when it can."""
        if readable(str(self.path)) == str(self.path):
            return ""
        return f"{readable(self.path.name)} has a name or a folder that is no valid Unicode. Rename it."


@dataclass(frozen=True)
class CheckpointInfo:
    """The model that the host has loaded: its name, and its sha256 or ``""``."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Progress:
    """One step of a run, as told to the host and to the front end.

    Attributes:
        stage: ``reading``, ``encoding``, ``sampling``, ``solving``, ``optimising``, ``writing``, ``drawing``,
            ``done``.
        step: steps finished over the whole run (all stages together).
        total: steps of the whole run.
        seconds_left: an estimate, or None while nothing is known.
        text: one line for people.
        metrics: numbers of this step (``loss``, one of each LoRA: ``subject_loss``, ``style_loss``,
            ``similarity``, ``travel``), empty outside the optimisation.
    """

    stage: str
    step: int
    total: int
    seconds_left: float | None
    text: str
    metrics: Mapping[str, float] = field(default_factory=dict)


class Session(Protocol):
    """The host's model, clean and frozen, for the time of a ``with`` block."""

    @property
    def denoiser(self) -> Denoiser:
        """The base UNet without any LoRA."""
        ...

    @property
    def native_size(self) -> int:
        """Width and height, in pixels, of the pictures that the checkpoint was trained on."""
        ...

    def encode_prompts(
        self, prompts: Sequence[str], *, width: int, height: int, negative: bool, deltas: TextDeltas
    ) -> Conditioning:
        """Text and size conditioning, one row a prompt, with ``deltas`` added to the text
        encoders' weights while it is computed (and taken off again, bit for bit).

        ``negative`` marks unconditional prompts: an empty one gives the host's own
        unconditional rows (zeros in SDXL). The result lives on the denoiser's device.
        """
        ...

    def text_weight(self, name: str) -> Tensor | None:
        """The weight (out, in) of a layer of the text encoders by its canonical name; None where there is none."""
        ...

    def encode_images(self, images: Tensor, *, seed: int) -> Tensor:
        """Scaled latents (n, channels, h/8, w/8) in fp32 of images (n, 3, h, w) in [0, 1]."""
        ...

    def unet_alone(self) -> AbstractContextManager[None]:
        """Text encoders and autoencoder off the GPU inside the block, where that frees memory; then back.

        Inside it the denoiser works as ever, and nothing is encoded.
        """
        ...

    def check_alive(self) -> None:
        """Raise HostError when the model was swapped, moved or unloaded meanwhile."""
        ...


class Host(Protocol):
    """A place where LoRAs are installed and a checkpoint is loaded."""

    name: str

    def loras(self) -> Sequence[InstalledLora]:
        """The installed LoRAs, freshly listed, sorted by name."""
        ...

    def resolve(self, lora: str) -> Path:
        """The file of an installed LoRA's name (or, where the host allows it, of a path).

        Raises:
            LoraFileError: no such LoRA.
        """
        ...

    def output_path(self, name: str) -> Path:
        """Where a merged file called ``name`` goes.

        Raises:
            OutputError: the name has a path in it, is reserved, or means another LoRA.
        """
        ...

    def checkpoint(self) -> CheckpointInfo:
        """The checkpoint that a merge would use."""
        ...

    def check(self) -> None:
        """Raise HostError, in words that say what to do, when the model can't be used."""
        ...

    def open(self) -> AbstractContextManager[Session]:
        """A clean, frozen base model; afterwards the host is bit for bit what it was."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """The host's own queue lock, for callers that do not hold it already."""
        ...

    def report(self, progress: Progress) -> None:
        """Show progress in the host's own way."""
        ...

    def interrupted(self) -> bool:
        """Whether the user asked to stop and throw the run away."""
        ...

    def finish_requested(self) -> bool:
        """Whether the user asked to stop optimising now and write what there is."""
        ...

    def interrupt(self) -> None:
        """Ask the running job to stop."""
        ...

    def finish_now(self) -> None:
        """Ask the running job to stop optimising and to write."""
        ...

    def refresh(self, path: Path) -> None:
        """Make a file that was just written known to the host, or forget one that is gone."""
        ...


@dataclass(frozen=True)
class ApiAccess:
    """Who may use the REST API.

    Attributes:
        dependencies: FastAPI's ``Depends`` that every route asks first.
        origins: other web pages that may use it.
    """

    dependencies: Sequence[Any] = ()
    origins: AllowedOrigins = field(default_factory=AllowedOrigins)


@runtime_checkable
class ServesApi(Protocol):
    """A host with a web application of its own, on which the REST API can be."""

    def api_access(self) -> ApiAccess | None:
        """Who may use the REST API; None when it is switched off."""
        ...


@runtime_checkable
class KeepsData(Protocol):
    """A host that has a place for small files of ours; what is in it may be deleted at any time."""

    def data_folder(self) -> Path | None:
        """A folder of our own, not made yet perhaps; None when there is none."""
        ...


@runtime_checkable
class KeepsEmbeddings(Protocol):
    """A host that has a folder for textual inversion embeddings."""

    def embeddings_folder(self) -> Path:
        """Where they lie, subfolders included; not made yet perhaps."""
        ...


@runtime_checkable
class ShowsCards(Protocol):
    """A host that shows a card of every LoRA, and remembers which files lie beside it."""

    def card_changed(self, path: Path) -> None:
        """Look again at a file beside a LoRA that was just written, such as its preview."""
        ...


@runtime_checkable
class KnowsSize(Protocol):
    """A host that can tell ``Session.native_size`` before its model is opened."""

    def picture_size(self) -> int | None:
        """Width and height of the checkpoint's pictures, in pixels; None when nothing tells."""
        ...


@runtime_checkable
class KnowsLayers(Protocol):
    """A host that can tell what its checkpoint is made of before it is opened."""

    def layer_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Canonical layer name -> the weight's shape; empty where nothing tells. A section (``lora_unet``,
        ``lora_te1``, ``lora_te2``) is there with all its layers or not at all."""
        ...

    def distilled(self) -> str:
        """What made the checkpoint need few steps and no guidance (``Lightning``, ``LCM``, ...); "" for an
        ordinary one."""
        ...


@runtime_checkable
class SharesInterrupt(Protocol):
    """A host whose Interrupt, pressed for something else, stops our work too."""

    def take_interrupt(self) -> bool:
        """Whether there was an Interrupt that ``Host.interrupt`` did not send; it is forgotten."""
        ...


@runtime_checkable
class TellsFacts(Protocol):
    """A host that can say what a bug report should tell of it."""

    def facts(self) -> Mapping[str, str]:
        """Name -> value: the host's version, its attention, the versions of what it rests on."""
        ...


_ADAPTERS = {"forge": "ForgeHost", "reforge": "ReforgeHost", "a1111": "A1111Host"}
"""Kind of WebUI, whose module in this package has the same name -> the class that adapts it."""


def kind() -> str:
    """Which WebUI this process is, by what can be imported: sdnext, forge, reforge, a1111 or ``""``."""
    if _importable("modules.modeldata"):
        return "sdnext"
    if _importable("backend.memory_management"):
        return "forge"
    if _importable("modules_forge") and _importable("ldm_patched"):
        return "reforge"
    return "a1111" if _importable("modules.shared") else ""


def detect() -> Host:
    """The adapter for the WebUI that this process is.

    Raises:
        HostError: no WebUI, or one that there is no adapter for.
    """
    found = kind()
    if not found:
        raise HostError("This is no WebUI. Use python -m lib_ziplora serve, which needs none.")
    if found not in _ADAPTERS:
        raise HostError(
            "This WebUI is SD.Next, which ZipLoRA can't work in. Use python -m lib_ziplora serve, which needs no WebUI."
        )
    host: Host = getattr(importlib.import_module(f"{__name__}.{found}"), _ADAPTERS[found])()
    return host


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
