"""What can go wrong, in the user's words.

Every message says what happened, which file or layer it concerns, and what to do.
Only the front ends (``ui/``, ``api``, the command line) turn these into text for people.
"""

from __future__ import annotations


class ZipLoraError(Exception):
    """Base of every error that this package raises on purpose."""

    def __str__(self) -> str:
        """The sentence; a file name's bytes that are no text show as in ``names.readable``."""
        return super().__str__().encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class ConfigError(ZipLoraError):
    """A setting is outside its range or two settings contradict each other."""


class LoraFileError(ZipLoraError):
    """A file is not a readable LoRA: truncated, a pickle, NaN, malformed tensors."""


class UnsupportedLoraError(ZipLoraError):
    """A readable LoRA that can't be merged here: another base model, another family."""


class IncompatibleError(ZipLoraError):
    """The LoRAs, or a LoRA and the checkpoint, do not fit each other."""


class OutputError(ZipLoraError):
    """The merged file can't be written: its name, its folder, the disk."""


class HostError(ZipLoraError):
    """The host's model can't be used: wrong kind, wrong flags, swapped while working."""


class OutOfMemoryError(HostError):
    """The device ran out of memory; the host's model has been restored."""


class Interrupted(ZipLoraError):
    """The user interrupted the run; nothing was written."""
