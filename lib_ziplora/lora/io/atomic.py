"""Files that appear whole under their names, or not at all; alone or several together."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ...errors import OutputError


@contextlib.contextmanager
def appearing(file: Path, overwrite: bool) -> Iterator[Path]:
    """A hidden file to write to, which gets its name when the block ends well.

    Args:
        file: the name that it gets, in an existing folder.
        overwrite: replace an existing file.

    Raises:
        OutputError: it can't be written; what was there before is untouched.
    """
    try:
        with hidden(file) as temporary:
            yield temporary
            _publish(temporary, file, overwrite)
    except FileExistsError as error:
        raise taken(file) from error
    except OSError as error:
        raise unwritable(file, error) from error


@contextlib.contextmanager
def all_or_none(files: Iterable[Path]) -> Iterator[list[Path]]:
    """Files that are written together: when the block fails or is interrupted, each is as it was before.

    A file that is there gets a second, hidden name for the time of the block: it stays in its place
    until it is replaced, and nothing is copied.

    Args:
        files: what the block is going to write.

    Yields:
        A list; the block adds each file to it once it is written.

    Raises:
        OutputError: a file that is there can't be kept.
    """
    kept: dict[Path, Path] = {}
    written: list[Path] = []
    try:
        for file in files:
            if os.path.lexists(file):
                kept[file] = _hidden_name(file)
                _keep(file, kept[file])
        yield written
    except BaseException:
        _restore(written, kept)
        raise
    for second in kept.values():
        with contextlib.suppress(OSError):
            second.unlink(missing_ok=True)


def _restore(written: Sequence[Path], kept: Mapping[Path, Path]) -> None:
    for file in written:
        if file not in kept:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
    for file, second in kept.items():
        with contextlib.suppress(OSError):
            if file in written or not os.path.lexists(file):
                _replace(second, file)
            else:
                second.unlink(missing_ok=True)


def _keep(file: Path, second: Path) -> None:
    """Give a file a second name; where the file system has no hard links, that name alone."""
    try:
        os.link(file, second, follow_symlinks=False)
    except (OSError, NotImplementedError, AttributeError):
        try:
            _replace(file, second)
        except OSError as error:
            raise unwritable(file, error) from error


@contextlib.contextmanager
def hidden(file: Path) -> Iterator[Path]:
    """A free name beside the file, hidden from LoRA listings; whatever gets it is gone afterwards."""
    temporary = _hidden_name(file)
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _hidden_name(file: Path) -> Path:
    return file.with_name(f".{file.stem}.{secrets.token_hex(6)}.tmp")


def _publish(temporary: Path, file: Path, overwrite: bool) -> None:
    """Give the finished file its name, in one step that either happens or doesn't."""
    if overwrite:
        _replace(temporary, file)
    else:
        _claim(temporary, file)
    with contextlib.suppress(OSError):
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _claim(temporary: Path, file: Path) -> None:
    """Name the file only if the name is free, also when somebody takes it at this moment.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(temporary, file)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError, AttributeError):
        # A file system without hard links: an empty file claims the name, then is replaced.
        file.open("xb").close()
        try:
            _replace(temporary, file)
        except BaseException:
            file.unlink()
            raise


def _replace(temporary: Path, file: Path) -> None:
    """A rename over the old file, patient with programs that hold the old file open for a moment (Windows)."""
    for pause in (0.05, 0.2, 0.5):
        try:
            temporary.replace(file)
            return
        except PermissionError:
            time.sleep(pause)
    temporary.replace(file)


def taken(file: Path) -> OutputError:
    """The error for a name that another file has."""
    return OutputError(f"{file.name} exists already. Choose another name, or allow it to be replaced.")


def unwritable(file: Path, error: OSError) -> OutputError:
    """The error for a file that the system does not let us write."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return OutputError(f"The disk is full: {file.name} was not written. Make room in {file.parent}.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"{file.parent} can't be written to ({error.strerror}). Choose another folder or its owner."
        )
    return OutputError(f"{file.name} can't be written to {file.parent} ({error.strerror or error}).")
