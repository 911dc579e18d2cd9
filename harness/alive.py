"""Signs of life of a cell, for the process that waits for it: a file without a name, which the cell touches.

They come from the thread that works. One of its own would show life where the work hangs.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from typing import IO

VARIABLE = "FREPO_BENCH_ALIVE"
"""The variable that tells a cell the descriptor of the file."""
PERIOD = 1.0
"""Seconds between two signs, at least, and between two looks at them, at most."""

_last = -PERIOD


def sign() -> None:
    """Show that this process is alive. Nothing where it has just done so, or where nobody asks."""
    global _last
    now = time.monotonic()
    if now - _last < PERIOD:
        return
    _last = now
    if (descriptor := os.environ.get(VARIABLE)) is not None:
        with contextlib.suppress(OSError, ValueError):
            os.utime(int(descriptor))


class Signs:
    """The signs of one process, seen from outside."""

    def __init__(self) -> None:
        # In memory where the system can: a full disk must not look like a process that hangs.
        create = getattr(os, "memfd_create", None)
        self._file: IO[bytes] = open(create("signs of life"), "rb") if create else tempfile.TemporaryFile()  # noqa: SIM115
        self._seen = self._touched()
        self._looked = time.monotonic()
        self.silent = 0.0
        """Seconds without a sign, as far as we looked: time in which we were suspended ourselves does not count."""

    @property
    def descriptor(self) -> int:
        return self._file.fileno()

    def look(self) -> None:
        """Bring ``silent`` up to date; to be called about every ``PERIOD``."""
        now, touched = time.monotonic(), self._touched()
        self.silent = 0.0 if touched != self._seen else self.silent + min(now - self._looked, 2 * PERIOD)
        self._seen, self._looked = touched, now

    def close(self) -> None:
        self._file.close()

    def _touched(self) -> int:
        return os.fstat(self._file.fileno()).st_mtime_ns
