"""A folder for one run at a time, texts written into a folder, and the checkpoints in one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.errors import UserError
from benchmarks.files import replacing
from harness.records.lease import FOLDER, Held, take

RUNNING = ".running"
"""The lease of a run that shares a folder with no other of its kind."""


@contextmanager
def only_runner(folder: Path, command: str) -> Iterator[None]:
    """Keep others of the same kind out of ``folder``. Raises UserError that names the other, where there is one."""
    try:
        held = take(folder / FOLDER / RUNNING, command)
    except Held as holder:
        raise UserError(f"{folder} is in use by {holder}; wait for it, or name another --output") from None
    with held:
        yield


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
