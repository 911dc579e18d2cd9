"""Leases: who works on a cell, or makes an entry of the store, so that nobody else does at the same time.

A lease is a file that names its holder. It is safe on network file systems, where locks may not work: it rests on a
file that is created only where there is none, and on a rename, which one of several processes succeeds in. The holder
changes the file every few seconds. An observer judges by its own clock whether it still changes, so no two clocks are
ever compared. On the holder's own machine it is seen at once that the process is gone.

The holder writes into the file that it once created, and not to its path. So a holder that was suspended for long, and
whose lease was taken over meanwhile, does not disturb the new one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.errors import UserError, printable
from benchmarks.files import regular
from harness.records.record import AGAIN

BEAT_SECONDS = 5.0
"""Between two changes of a lease by its holder."""
STALE_SECONDS = 60.0
"""A lease that has not changed for so long is taken over."""
LOOK_SECONDS = 1.0
"""Between two looks at the lease of another."""
MOST_SECONDS = 5.0
"""The longest time that counts between two looks: a machine that was asleep, or a clock that jumped, shows nothing."""
FOLDER = ".leases"
ASIDE = ".removed-"
"""Begins the name of a lease while it is removed."""
LARGEST = 4096
"""Bytes of a lease that are read."""
LEASED = 76
"""Exit status of a cell whose folder somebody else has leased: nothing was done."""


class Held(Exception):
    """Somebody else has the lease; the text tells who."""


class Lost(BaseException):
    """The lease was taken over. Not an Exception: what is caught on the way must not swallow it."""


def path_of(folder: Path) -> Path:
    """The file of the lease on the cell in ``folder``; the same where the cell works apart, to be exchanged later."""
    parent = folder.parent.parent if folder.parent.name == AGAIN else folder.parent
    return parent / FOLDER / folder.name


def exchange_of(folder: Path) -> Path:
    """The file of the lease of a run that makes a set anew in ``folder``, until it has put it in its place."""
    return folder.parent.parent / FOLDER / f"{folder.name}{AGAIN}"


class Watch:
    """What one observer has seen of the leases of others."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """``now``: the observer's own clock."""
        self._now = now
        self._seen: dict[Path, tuple[bytes, float, float]] = {}
        """Path → content, seconds for which it has not changed, and when it was last looked at."""
        self.changed: set[Path] = set()
        """Paths whose leases have changed while they were watched: their holders live."""

    def holder(self, path: Path, *, remove: bool = True) -> str | None:
        """Who has the lease at ``path``, in words; None where it is free. A stale one is removed, if ``remove``."""
        content = _read(path)
        if content is None:
            self._forget(path)
            return None
        about = _parsed(content)
        alive = _is_alive(about)
        if alive:
            self.changed.add(path)
        if alive is False or self._unchanged(path, content) >= STALE_SECONDS:
            if not remove:
                return None
            self._forget(path)
            if _remove(path, content):
                return None
        return _words(about)

    def _unchanged(self, path: Path, content: bytes) -> float:
        """Seconds for which the lease at ``path`` has had this ``content``, as far as was seen."""
        now = self._now()
        before, seconds, at = self._seen.get(path, (content, 0.0, now))
        if content == before:
            seconds += min(max(now - at, 0.0), MOST_SECONDS)
        else:
            self.changed.add(path)
            seconds = 0.0
        self._seen[path] = content, seconds, now
        return seconds

    def _forget(self, path: Path) -> None:
        self._seen.pop(path, None)
        self.changed.discard(path)


class Lease:
    """A lease that this process has, until it is released; the process keeps it alive in a thread of its own."""

    def __init__(self, path: Path, command: str = "", on_lost: Callable[[], None] = lambda: None) -> None:
        """Create the file at ``path``. Raises FileExistsError where there is one, and OSError where that fails.

        ``on_lost``: called in a thread as soon as it is noticed that somebody else has taken the lease over.
        """
        self.path, self._on_lost, self._beat = path, on_lost, 0
        self._about = {**_myself(), "command": printable(command)[:1000], "token": uuid.uuid4().hex}
        self._file = _created(path)
        try:
            self._write()
        except OSError:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise
        self._over, self._using = threading.Event(), threading.Lock()
        _held.add(self)
        threading.Thread(target=self._keep, daemon=True).start()

    def check(self) -> None:
        """Raises Lost where somebody else has taken the lease over."""
        if not self._is_mine():
            raise Lost(f"the lease {self.path} is not ours any more")

    def release(self) -> None:
        """Remove the lease; nothing happens to one that is another's by now."""
        with self._using:
            if self._over.is_set():
                return
            self._over.set()
            _held.discard(self)
            with contextlib.suppress(OSError, UserError):
                content = _read(self.path)
                if content is not None and _parsed(content).get("token") == self._about["token"]:
                    _remove(self.path, content)
                _sweep(self.path.parent, os.fstat(self._file).st_ctime)
                self.path.parent.rmdir()  # where it was the last one
            os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def _is_mine(self) -> bool:
        content = _read(self.path)
        return content is not None and _parsed(content).get("token") == self._about["token"]

    def _keep(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with self._using:
                if self._over.is_set():
                    return
                try:
                    lost = not self._is_mine()
                    if not lost:
                        self._write()
                except (OSError, UserError):  # such as a server that is away: it may be back for the next beat
                    continue
            if lost:
                self._on_lost()
                return

    def _write(self) -> None:
        self._beat += 1
        content = json.dumps({**self._about, "beat": f"{self._beat:010d}"}).encode() + b"\n"
        os.pwrite(self._file, content, 0)  # of the same length every time
        os.close(os.dup(self._file))  # a network file system sends on closing; others do nothing


_held: set[Lease] = set()


def take(
    path: Path,
    command: str = "",
    *,
    wait: bool = True,
    watch: Watch | None = None,
    on_lost: Callable[[], None] = lambda: None,
) -> Lease:
    """Take the lease at ``path``, also from a holder that is gone.

    ``wait``: of a holder on another machine, until it is seen to live or its lease is stale. Raises Held where there is
    a holder then, and UserError where the file cannot be written.
    """
    watch = watch or Watch()
    while True:
        try:
            with contextlib.suppress(FileExistsError):
                return Lease(path, command, on_lost)
            holder = watch.holder(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        if holder is None:
            continue
        if not wait or path in watch.changed:
            raise Held(holder)
        time.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def taken(paths: Iterable[Path], command: str, on_lost: Callable[[], None] = lambda: None) -> Iterator[list[Lease]]:
    """Leases on all ``paths``, or on none. Raises as `take`."""
    with contextlib.ExitStack() as stack:
        # In one order, so that of two that want the same paths one gets them all.
        yield [stack.enter_context(take(path, command, on_lost=on_lost)) for path in sorted(set(paths))]


@contextlib.contextmanager
def awaited(path: Path, command: str = "") -> Iterator[Lease]:
    """The lease at ``path``, as soon as it is free. Raises UserError as `take` does."""
    watch = Watch()
    while True:
        with contextlib.suppress(Held):
            lease = take(path, command, wait=False, watch=watch)
            break
        time.sleep(LOOK_SECONDS)
    with lease:
        yield lease


def release_all() -> None:
    """Release every lease of this process, which is about to end."""
    for lease in list(_held):
        lease.release()


# --- the file, and the process that it names


def _created(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileNotFoundError:  # whoever had the last lease there has removed the folder
            continue


def _read(path: Path) -> bytes | None:
    """The content of a lease; None where there is none."""
    try:
        with open(path, "rb", opener=regular) as file:
            return file.read(LARGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:  # of a network file system: the file was replaced while it was opened
            return b""
        raise


def _parsed(content: bytes) -> Mapping[str, Any]:
    """The facts of a lease; nothing where it is damaged."""
    try:
        about = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _remove(path: Path, content: bytes) -> bool:
    """Remove the lease at ``path`` if it is still the one with this ``content``; whether there is none now."""
    if _read(path) != content:
        return not path.exists()
    aside = path.with_name(f"{ASIDE}{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:  # somebody else was first
        return True
    removed = _read(aside) == content
    if not removed:  # it was replaced or changed between the two looks, and is put back
        with contextlib.suppress(OSError):  # there is another one by now; the holder will notice
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return removed


def _sweep(folder: Path, now: float) -> None:
    """Remove leases that were renamed for removal by processes that were killed before they removed them.

    ``now``: when a lease there was last changed, by the clock of the file system.
    """
    for aside in folder.glob(f"{ASIDE}*"):
        if aside.stat().st_ctime < now - STALE_SECONDS:
            aside.unlink(missing_ok=True)


def _myself() -> dict[str, Any]:
    """The facts by which others tell whether this process lives."""
    return {**_machine(), "pid": os.getpid(), "started": _start_of(os.getpid())}


def _machine() -> dict[str, Any]:
    """The machine as far as process ids mean the same: host, boot, and the namespace of a container."""
    boot = namespace = None
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": platform.node(), "boot": boot, "namespace": namespace}


def _start_of(pid: int) -> str | None:
    """When the process ``pid`` started, in ticks since the boot; None where there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _is_alive(about: Mapping[str, Any]) -> bool | None:
    """Whether the holder's process is there; None where that cannot be seen from here."""
    machine = _machine()
    if machine["namespace"] is None or any(about.get(name) != value for name, value in machine.items()):
        return None
    pid, started = about.get("pid"), about.get("started")
    if type(pid) is not int or not isinstance(started, str):
        return None
    return _start_of(pid) == started


def _words(about: Mapping[str, Any]) -> str:
    if not about:
        return "somebody whose lease is damaged"
    command = f": {about['command']}" if about.get("command") else ""
    return printable(f"process {about.get('pid')} on {about.get('host')}{command}")
