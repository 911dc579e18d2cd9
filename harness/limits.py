"""Limits of memory and time for a cell: how they are written, and how they are kept."""

from __future__ import annotations

import _thread
import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from harness import devices, stopping

if TYPE_CHECKING:
    import torch
# torch is imported where it is used: the command line reads limits before it knows whether there is anything to run.

_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTES |= {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_WAKE = signal.SIGVTALRM
"""Wakes the main thread where memory is full: a signal that users, shells and schedulers do not send."""
_LOOKING = threading.Lock()
"""Held while memory is held against its limit."""
_SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class TimeIsUp(BaseException):
    """The time limit has passed. Not an Exception: what is caught on the way must not swallow it."""


class MemoryIsFull(BaseException):
    """The memory limit has been passed. Not an Exception, for the same reason."""


def parse_bytes(text: str) -> int:
    """``24GiB``, ``512 MiB``, ``8GB`` or a number of bytes. Raises ValueError for anything else and for 0."""
    return round(_parse(text, {name: float(size) for name, size in _BYTES.items()}, "24GiB"))


def parse_seconds(text: str) -> float:
    """``90``, ``90s``, ``30min``, ``2h`` or ``1d``. Raises ValueError for anything else and for 0."""
    return _parse(text, _SECONDS, "2h")


def _parse(text: str, units: dict[str, float], example: str) -> float:
    parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    size = float(parts[1]) * units.get(parts[2].lower(), 0.0) if parts else 0.0
    if size <= 0:
        raise ValueError(f"expected something like {example}, not {text!r}")
    return size


def show_bytes(count: float) -> str:
    """With the unit that leaves one to three digits before the point: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def show_seconds(seconds: float) -> str:
    """``90 s``, ``5 min``, ``2 h``: without a fraction where there is none."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises TimeIsUp in the main thread, from which it must be called, once ``seconds`` have passed.

    A long call into a library ends first, and where the work is held (`harness.stopping`) the step that is taken.
    """
    if seconds is None:
        yield
        return

    error = TimeIsUp(f"the time limit of {show_seconds(seconds)} has passed")

    def has_run_down() -> bool:
        return signal.getitimer(signal.ITIMER_REAL)[0] == 0

    with _called_by(signal.SIGALRM, lambda: stopping.arrive(error), has_run_down):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            stopping.forget(error)


@contextlib.contextmanager
def _called_by(number: signal.Signals, act: Callable[[], None], ours: Callable[[], bool]) -> Iterator[None]:
    """Calls ``act`` in the main thread at signal ``number``, where that is ``ours``.

    A signal that somebody else sent does what it did before: a limit must not be said to be passed because of it.
    """

    def arrived(_: int, frame: FrameType | None) -> None:
        if ours():
            act()
            return
        if callable(before):
            before(number, frame)
        elif before != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = signal.signal(number, arrived)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def memory_limit(limit: int | None, device: torch.device) -> Iterator[None]:
    """No more than ``limit`` bytes: of a GPU for everything that torch keeps there, which raises torch's own error.

    Without a GPU: of resident memory above its present level, which is sampled; MemoryIsFull is raised in the main
    thread, from which this must be called.
    """
    if limit is None:
        yield
    elif device.type != "cpu":
        import torch

        module = torch.get_device_module(device)
        total = module.get_device_properties(device).total_memory
        module.set_per_process_memory_fraction(min(1.0, limit / total), device)
        try:
            yield
        finally:
            module.set_per_process_memory_fraction(1.0, device)
    else:
        with _watch_resident(limit):
            yield


@contextlib.contextmanager
def _watch_resident(limit: int) -> Iterator[None]:
    from harness.measure.memory import PERIOD, host_bytes, release

    release()
    level, over, full = host_bytes("VmRSS"), threading.Event(), threading.Event()
    if level is None:  # a system that does not say
        yield
        return

    def watch() -> None:
        while not over.wait(PERIOD):
            with _LOOKING:
                if (host_bytes("VmRSS") or 0) - level > limit:
                    full.set()
                    _thread.interrupt_main(_WAKE)
                    return

    def fail() -> None:  # at once, also in a step: the next might not end
        raise MemoryIsFull(f"more than the memory limit of {show_bytes(limit)}")

    with _called_by(_WAKE, fail, full.is_set):
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Let resident memory be above its limit meanwhile: for copies that are no part of what is limited.

    They are to be given back before the end of this context.
    """
    with _LOOKING:
        yield


def available_bytes(device: str) -> int | None:
    """Memory that is free: of the machine for ``cpu``, else of the GPU; None where it is not known."""
    return _memory(device)[0]


def total_bytes(device: str) -> int | None:
    """Memory that there is, free or not; as `available_bytes`."""
    return _memory(device)[1]


def _memory(device: str) -> tuple[int | None, int | None]:
    """Bytes that are free, and bytes that there are."""
    if device == "cpu":
        sizes = {}
        with contextlib.suppress(OSError):
            for line in Path("/proc/meminfo").read_text().splitlines():
                name, _, value = line.partition(":")
                sizes[name] = int(value.split()[0]) * 1024
        return sizes.get("MemAvailable"), sizes.get("MemTotal")
    return devices.free_and_total(device)
