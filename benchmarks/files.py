"""Files that are written whole or not at all, and opened only where they are regular."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on leaving without an error it is synced and takes the place of ``path``.

    The temporary name is fixed, so that what a killed process left behind is overwritten by the next try. Other
    processes that write into the same folder this way wait; do not nest.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(folder, fcntl.LOCK_EX)  # ends with the process, however that ends
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        os.fsync(folder)
    finally:
        os.close(folder)


def put_aside(path: Path, ending: str) -> Path:
    """Rename ``path`` to the first free of ``NAME.ending``, ``NAME.ending-2``, …, so that it is not lost.

    Returns the new path. Raises OSError where that fails.
    """
    names = (f"{path.name}.{ending}{number}" for number in ("", *map("-{}".format, range(2, 1000))))
    aside = next(other for name in names if not os.path.lexists(other := path.with_name(name)))
    return path.rename(aside)


def regular(path: str, flags: int) -> int:
    """An opener for ``open``. Raises UserError where ``path`` is no regular file: reading a pipe might never end."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is no regular file: remove it")
    return descriptor
