"""Progress and Ctrl+C in a terminal."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..hosts import Host, Progress


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


@contextmanager
def ctrl_c_interrupts(host: Host) -> Iterator[None]:
    """The first Ctrl+C asks the job to stop cleanly; a second one stops Python."""

    def ask(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        print("\nStopping ...", file=sys.stderr)
        host.interrupt()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
