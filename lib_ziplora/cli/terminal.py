"""Progress and Ctrl+C in a terminal."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ..file_cache import Stamp, stamp
from ..hosts import Progress
from ..jobs.queue import Job
from ..jobs.service import Service


class ProgressBar:
    """Progress on stderr: tqdm's bar where tqdm is installed, else a line every tenth."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._last = ("", -1)

    def __call__(self, progress: Progress) -> None:
        """Show one event."""
        try:
            from tqdm import tqdm
        except ImportError:
            self._line(progress)
            return
        if self._bar is None:
            form = "{percentage:3.0f}%|{bar:24}| {elapsed}{postfix}"
            self._bar = tqdm(total=progress.total, bar_format=form, leave=True, file=sys.stderr)
        self._bar.n, self._bar.total = progress.step, progress.total
        self._bar.set_postfix_str(f"{_clock(progress.seconds_left)} left  {progress.text}")

    def _line(self, progress: Progress) -> None:
        mark = (progress.stage, 10 * progress.step // max(progress.total, 1))
        if mark != self._last:
            self._last = mark
            print(f"{100 * progress.step // max(progress.total, 1):3d} % {progress.text}", file=sys.stderr)

    def close(self) -> None:
        """Leave the terminal on a fresh line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def lenient_output() -> None:
    """Characters that the terminal can't show are escaped instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence_output() -> None:
    """Let what is still to be printed go nowhere: the reader of standard output is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _clock(seconds: float | None) -> str:
    return "?" if seconds is None else f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


class Written:
    """The files that a command is to write, and which of them it has written by now."""

    def __init__(self) -> None:
        self._before: dict[Path, Stamp | None] = {}

    def watch(self, *files: Path) -> None:
        """Remember how files are before they are written."""
        self._before |= {file: _stamp(file) for file in files}

    def words(self) -> str:
        """What is on the disk now, for a sentence about an interrupt."""
        names = [file.name for file, before in self._before.items() if _stamp(file) not in (None, before)]
        if not names:
            return "nothing was written"
        return f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} written"


def _stamp(file: Path) -> Stamp | None:
    try:
        return stamp(file)
    except OSError:
        return None


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """SIGTERM does what Ctrl+C does, for the time of the block; in the main thread alone, which has signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def signals_interrupt(service: Service, job: Job) -> Iterator[None]:
    """The first Ctrl+C (or SIGTERM) asks the job to stop cleanly; a second one stops Python."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(_number: int, _frame: FrameType | None) -> None:
        restore()
        print("\nStopping ...", file=sys.stderr)
        if not job.ended:
            service.interrupt(job)

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield
    finally:
        restore()
