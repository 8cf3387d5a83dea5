"""Progress and Ctrl+C in a terminal."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


class Interrupts:
    """Ctrl+C and SIGTERM, and which of the files that a command is to write are written by then."""

    def __init__(self) -> None:
        self.pressed = False
        self._before: dict[Path, Stamp | None] = {}

    def watch(self, *files: Path) -> None:
        """Remember how files are before they are written."""
        self._before |= {file: _stamp(file) for file in files}

    def sentence(self) -> str:
        """What to say of an interrupt."""
        names = [file.name for file, before in self._before.items() if _stamp(file) not in (None, before)]
        if not names:
            return "Interrupted; nothing was written."
        return f"Interrupted; {', '.join(names)} {'was' if len(names) == 1 else 'were'} written."

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Both signals raise KeyboardInterrupt in the block; outside the main thread there are none."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self.pressed = True
            raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with _handled_by(stop):
            yield

    @contextmanager
    def asking(self, service: Service, job: Job) -> Iterator[None]:
        """The first signal asks a job to stop cleanly; another one raises KeyboardInterrupt."""
        restored = ExitStack()

        def ask(_number: int, _frame: FrameType | None) -> None:
            restored.close()
            print("\nStopping ...", file=sys.stderr)
            if not job.ended:
                service.interrupt(job)

        with restored:
            restored.enter_context(_handled_by(ask))
            yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = [(number, signal.signal(number, handler)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, earlier in before:
            signal.signal(number, earlier)


def _stamp(file: Path) -> Stamp | None:
    try:
        return stamp(file)
    except OSError:
        return None
