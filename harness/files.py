"""Files that are either there whole or not there at all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on leaving without an error it is synced and takes the place of ``path``.

    The temporary name is fixed, so that what a killed process left behind is overwritten by the next try. Others that
    write into the same folder this way wait until we are done; do not nest.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(folder, fcntl.LOCK_EX)  # ends with the process, however that ends
        try:
            yield temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        os.fsync(folder)
    finally:
        os.close(folder)


def write_texts(contents: Mapping[str, str], folder: Path, what: str) -> None:
    """Write ``contents``, name → text, into ``folder``. Raises UserError, which says ``what``, where that fails."""
    try:
        for name, content in contents.items():
            with replacing(folder / name) as temporary:
                temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{what} cannot be written into {folder}: {error.strerror}") from error
