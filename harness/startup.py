"""Preparations of a process that is started from the command line, by ``python -m harness.…`` or by ``frepo-bench``:
whose packages are imported, how text is written, and what Ctrl-C does.

Little is imported here: an interrupt before `begin` still shows a traceback.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from harness.stopping import NOT_DONE, SIGNALS, Stopped

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder that holds the packages ``benchmarks``, ``methods`` and ``harness``."""
INTERRUPTED = 130
begun = False
"""Whether this process is a program of ours."""


def begin() -> None:
    """Make the process ready: see the module. Ends it with a line and status 2 where another package hides ours."""
    global begun
    begun = True
    signal.signal(signal.SIGINT, quit_at_once)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # a closed standard stream: the next file that is opened must not take its place
            os.open(os.devnull, os.O_RDWR)
    if isinstance(sys.stdout, io.TextIOWrapper):  # standard error replaces by itself what its encoding lacks
        sys.stdout.reconfigure(errors="replace")
    _leave_out_working_directory()
    for name in ("benchmarks", "methods"):
        spec = importlib.util.find_spec(name)
        folders = [] if spec is None else list(spec.submodule_search_locations or [spec.origin or ""])
        if not any(_same(folder, os.path.join(ROOT, name)) for folder in folders):
            where = ascii(folders[0]) if folders else "nowhere"
            print(
                f"error: the package {name} is found in {where}, not beside {os.path.dirname(__file__)!a}: "
                "rename that one, or take its folder out of PYTHONPATH",
                file=sys.stderr,
            )
            sys.exit(2)


def quit_at_once(number: int = signal.SIGINT, _: FrameType | None = None) -> None:
    """End the process without unwinding: a signal handler for when nothing has been started."""
    os.write(2, b"stopped\n")
    os._exit(INTERRUPTED if number == signal.SIGINT else NOT_DONE)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, and other signals that ask for an end Stopped: what was started is stopped.

    But they end the process at once while something is imported: initialisers of libraries swallow the exception or
    turn it into another. Changes nothing in a process without `begin`, such as a notebook.
    """
    if signal.getsignal(signal.SIGINT) is not quit_at_once:
        yield
        return
    asking = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # such as after nohup
    before = {number: signal.signal(number, _interrupt) for number in asking}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            quit_at_once(number)
        frame = frame.f_back
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)


def _leave_out_working_directory() -> None:
    """Undo what ``python -m`` puts first on the path, unless that is where we are: a file ``torch.py`` or a folder
    ``benchmarks`` in the user's folder is not meant to be imported."""
    with contextlib.suppress(OSError):  # a working directory that was deleted
        if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()] and not _same(sys.path[0], ROOT):
            del sys.path[0]


def _same(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)
