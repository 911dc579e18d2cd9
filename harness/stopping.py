"""Ending early and in good order: at a signal or a limit, at once or between two steps.

A reason to end early is an exception that a signal brings. It is raised at once where nothing but time is lost, and
waits where the work is `held`: while steps are taken, which end whole, and while results are written.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which users, shells and schedulers ask a process to end."""
NOT_DONE = 75
"""Exit status of a cell, or of a run, that is to be continued: EX_TEMPFAIL of ``sysexits.h``."""
AGAIN_SECONDS = 1.0
"""Signals that arrive within so long are one request."""
CELL_AGAIN_SECONDS = 10.0
"""The same for a cell: a scheduler may reach it itself, and through its parent, which may be late on a busy machine."""


class Stopped(BaseException):
    """A signal asked for an end. Not an Exception: what is caught on the way must not swallow it."""

    def __init__(self, number: int | None = None) -> None:
        """``number``: of the signal, where it is known."""
        super().__init__("stopped" if number is None else f"stopped by {signal.Signals(number).name}")
        self.number = number


_held: bool | None = None
"""None: outside of a part of the work that is `held`, `put_off` or `released`."""
_waiting: BaseException | None = None


def arrive(reason: BaseException) -> None:
    """Raise ``reason``, or let it wait where the work is held. The first that waits is the one that counts.

    What is raised where the work is released waits as well, until `released` has seen it: a library that imports, or a
    callback of a weak reference, swallows exceptions.
    """
    global _waiting
    if _held is None:
        raise reason
    _waiting = _waiting or reason
    if not _held:
        raise _waiting


def waiting() -> bool:
    """Whether a reason to end waits."""
    return _waiting is not None


def raise_waiting() -> None:
    """Raise the reason that waits, if there is one."""
    global _waiting
    reason, _waiting = _waiting, None
    if reason is not None:
        raise reason


def forget(reason: BaseException) -> None:
    """Let ``reason`` not wait any longer: a limit is over before it was told."""
    global _waiting
    if _waiting is reason:
        _waiting = None


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let reasons to end wait for `raise_waiting`, or for the end of this context."""
    with put_off():
        yield
    if not _held:
        raise_waiting()


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Let reasons to end wait for `raise_waiting` or for work that is `released`, also past the end of this context."""
    with _set(True):
        yield


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Raise reasons to end at once, the one that waits among them; at the end one that was swallowed."""
    with _set(False):
        raise_waiting()
        try:
            yield
        except BaseException as error:
            forget(error)
            raise
        raise_waiting()


@contextlib.contextmanager
def _set(value: bool | None) -> Iterator[None]:
    global _held
    before, _held = _held, value
    try:
        yield
    finally:
        _held = before


@contextlib.contextmanager
def handling(first: Callable[[int], None], again: Callable[[], None], after: float | None = None) -> Iterator[None]:
    """Call ``first`` with the number of the first of `SIGNALS`, and ``again`` at a request ``after`` so many seconds.

    ``after``: None for `AGAIN_SECONDS`. Signals that are ignored, as after ``nohup``, stay ignored. To be called from
    the main thread.
    """
    at: list[float] = []

    def arrived(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not at:
            at.append(now)
            first(number)
        elif now - at[0] > (AGAIN_SECONDS if after is None else after):
            again()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, arrived)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def asked_by_signals() -> Iterator[None]:
    """Turn `SIGNALS` into `Stopped`, for a cell; a second request ends the process at once."""
    # What still waits at the end came too late to stop anything.
    with handling(lambda number: arrive(Stopped(number)), lambda: os._exit(NOT_DONE), CELL_AGAIN_SECONDS), put_off():
        yield
