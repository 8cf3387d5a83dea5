"""Atomic writing: files that appear whole under their names, or not at all; alone or several together.

Files are written beside their names, as hidden ``.<name>.<host>-<process>.<token>.tmp``, and get their names at the
end. Several get them together: a marker says that all are complete, so that a process that dies in between is
finished by the next one (``clean_leftovers``), and one that dies before has changed nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...errors import OutputError

# Seconds after which a hidden file is a leftover, even if its process may still run.
LEFTOVER_AGE = 24 * 3600
_HOST = hashlib.sha256(socket.gethostname().encode("utf-8", "replace")).hexdigest()[:6]
_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{6})-(?P<process>\d{1,9})\.(?P<token>[0-9a-f]{12})\.(?P<kind>tmp|old|new|replace)"
)
# Those of earlier versions.
_NAMELESS = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_in_use: set[str] = set()


@contextlib.contextmanager
def atomic_write(file: Path, overwrite: bool) -> Iterator[Path]:
    """A hidden file to write to, which gets its name when the block ends well: ``atomic_writes`` of one."""
    with atomic_writes([file], overwrite) as (temporary,):
        yield temporary


def atomic_text(file: Path, text: str, overwrite: bool) -> None:
    """Write a text in UTF-8, whole or not at all, as in ``atomic_writes``."""
    with atomic_write(file, overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_writes(files: Sequence[Path], overwrite: bool) -> Iterator[list[Path]]:
    """Hidden files to write to, which get their names together when the block ends well.

    A link is replaced by the file, never written through.

    Args:
        files: the names that they get, in existing folders.
        overwrite: replace existing files.

    Yields:
        A hidden file for each; the block creates all of them.

    Raises:
        OutputError: one can't be written, or its name is taken; every file is then what it was.
    """
    token = secrets.token_hex(6)
    temporaries = [_hidden(file, token, "tmp") for file in files]
    _in_use.add(token)
    try:
        for folder in {file.parent for file in files}:
            clean_leftovers(folder)
        yield temporaries
        _publish(list(zip(temporaries, files, strict=True)), token, overwrite)
    except OSError as error:
        raise unwritable(files[0], error) from error
    finally:
        _remove(temporaries)
        _in_use.discard(token)


def clean_leftovers(folder: Path) -> None:
    """Finish what a dead process was publishing in a folder, and remove its hidden files."""
    found: dict[str, dict[Path, re.Match[str]]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and _is_leftover(entry):
                match = _TEMPORARY.fullmatch(entry.name)
                if match is None:
                    _remove([Path(entry)])
                else:
                    found.setdefault(match["token"], {})[folder / entry.name] = match
    for group in found.values():
        markers = [path for path, match in group.items() if match["kind"] in ("new", "replace")]
        for path, match in group.items() if markers else ():
            if match["kind"] == "tmp":
                with contextlib.suppress(OutputError):
                    _give_name(path, path.with_name(match["name"]), markers[0].suffix == ".replace")
        _remove([path for path in group if path not in markers])
        _remove(markers)


@contextlib.contextmanager
def probe(file: Path) -> Iterator[Path]:
    """A free hidden name beside the file; whatever gets it is gone afterwards."""
    token = secrets.token_hex(6)
    temporary = _hidden(file, token, "tmp")
    _in_use.add(token)
    try:
        yield temporary
    finally:
        _remove([temporary])
        _in_use.discard(token)


def _hidden(file: Path, token: str, kind: str) -> Path:
    return file.with_name(f".{file.name}.{_HOST}-{os.getpid()}.{token}.{kind}")


def _is_leftover(entry: os.DirEntry[str]) -> bool:
    match = _TEMPORARY.fullmatch(entry.name)
    if match is None and not _NAMELESS.fullmatch(entry.name):
        return False
    if match is not None and match["host"] == _HOST:
        process = int(match["process"])
        if process == os.getpid():
            return match["token"] not in _in_use
        if not _runs(process):
            return True
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFTOVER_AGE


def _runs(process: int) -> bool:
    """Whether a process runs on this machine; on Windows, where asking would end it, always."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _publish(pairs: Sequence[tuple[Path, Path]], token: str, overwrite: bool) -> None:
    """Give complete files their names; where one can't get it, all names are again what they were."""
    files = [file for _, file in pairs]
    several = len(files) > 1
    old = {file: _hidden(file, token, "old") for file in files if several and os.path.lexists(file)}
    marker = _hidden(files[0], token, "replace" if overwrite else "new")
    try:
        for file in files:
            if not overwrite and file in old:
                raise taken(file)
            if file in old:
                _keep(file, old[file])
        if several:
            marker.open("xb").close()
        for temporary, file in pairs:
            _give_name(temporary, file, overwrite)
    except BaseException:
        _restore(pairs, old)
        raise
    finally:
        _remove([marker, *old.values()])
    for folder in {file.parent for file in files}:
        _flush_folder(folder)


def _restore(pairs: Sequence[tuple[Path, Path]], old: Mapping[Path, Path]) -> None:
    for temporary, file in pairs:
        with contextlib.suppress(OSError):
            if file in old:
                _replace(old[file], file)
            elif not temporary.exists() or temporary.samefile(file):
                file.unlink()


def _keep(file: Path, second: Path) -> None:
    """Give a file a second name; where the file system has no hard links, that name alone."""
    try:
        os.link(file, second, follow_symlinks=False)
    except (OSError, NotImplementedError, AttributeError):
        _replace(file, second)


def _give_name(temporary: Path, file: Path, overwrite: bool) -> None:
    """Name a file in one step; unless told to overwrite only if the name is free, even if it is taken right now.

    Raises:
        OutputError: the name is taken, or the system refuses.
    """
    try:
        if overwrite:
            _replace(temporary, file)
        else:
            _claim(temporary, file)
    except FileExistsError as error:
        raise taken(file) from error
    except OSError as error:
        raise unwritable(file, error) from error


def _claim(temporary: Path, file: Path) -> None:
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


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


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
