"""A file that is compared with what was meant while it is written."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from ...errors import OutputError


class VerifiedFile:
    """A new file; every megabyte that is written is read back at once and compared.

    Args:
        path: where; must be free.
        name: the file's, for people.
    """

    SIZE = 1 << 20

    def __init__(self, path: Path, name: str) -> None:
        self._name = name
        self._stream = path.open("xb", buffering=0)
        self._again = path.open("rb", buffering=0)
        self._memory = memoryview(bytearray(self.SIZE))

    def __enter__(self) -> VerifiedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._again.close()
        self._stream.close()

    def rewind(self) -> None:
        """Write the next bytes to the file's beginning."""
        self._stream.seek(0)
        self._again.seek(0)

    def write(self, data: memoryview) -> None:
        """Write, read and compare.

        Raises:
            OutputError: it is read back differently.
            OSError: the disk.
        """
        for start in range(0, len(data), self.SIZE):
            meant = data[start : start + self.SIZE]
            written = 0
            while written < len(meant):
                written += self._stream.write(meant[written:]) or 0
            found, count = self._memory[: len(meant)], 0
            while count < len(meant) and (more := self._again.readinto(found[count:])):
                count += more
            if not np.array_equal(np.frombuffer(found, np.uint8), np.frombuffer(meant, np.uint8)):
                raise different(self._name)


def different(name: str) -> OutputError:
    """The error for a file that is not what was written."""
    return OutputError(
        f"{name} was read back differently from what was written, so it was not kept. "
        "Check the disk and try again."
    )
