"""An output folder for one run at a time, texts written into a folder, and the checkpoints in one."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from benchmarks.errors import UserError, printable
from benchmarks.files import replacing

LOCK = ".running"
"""The file in an output folder that the run there holds locked; it tells which run that is."""


@contextmanager
def only_runner(folder: Path, command: str) -> Iterator[None]:
    """Keep other runs out of ``folder``: the lock ends with this process, however that ends.

    Raises UserError that names the other run, where there is one. A file system without locks is a line on standard
    error, and no reason to stop.
    """
    path = folder / LOCK
    try:
        file = _locked(path)
    except BlockingIOError:
        with suppress(OSError):
            other = printable(path.read_text(encoding="utf-8", errors="replace").strip())
            raise UserError(f"{folder} is in use by {other}: wait for it, or name another --output") from None
        raise UserError(f"{folder} is in use by another run: wait for it, or name another --output") from None
    except OSError as error:
        line = f"{path} cannot be locked ({error.strerror}): a second run there would go unnoticed"
        print(printable(line), file=sys.stderr)
        yield
        return
    try:
        since = datetime.now().astimezone().isoformat(" ", timespec="seconds")
        with suppress(OSError):
            os.write(file, f"process {os.getpid()} on {platform.node()} since {since}: {command}\n".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)


def _locked(path: Path) -> int:
    """A descriptor of ``path``, locked and empty. Raises BlockingIOError where another process has the lock."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):  # its owner removed it meanwhile: no path leads to this file
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    os.ftruncate(file, 0)
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def write_texts(contents: Mapping[str, str], folder: Path, what: str) -> None:
    """Write ``contents``, name → text, into ``folder``. Raises UserError, which says ``what``, where that fails."""
    try:
        for name, content in contents.items():
            with replacing(folder / name) as temporary:
                temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{what} cannot be written into {folder}: {error.strerror}") from error


def steps_in(folder: Path) -> list[int]:
    """The steps after which checkpoints in ``folder`` were written."""
    names = (re.match(r"step-(\d+)-", path.name) for path in folder.glob("step-*.safetensors"))
    return [int(name[1]) for name in names if name]
