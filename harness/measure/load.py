"""Load of the processor's cores by other processes, while the seconds of a cell are measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SECONDS = 0.5
"""The system counts in hundredths of a second: the load of a shorter time is not told."""
SLACK = 0.2
"""Cores that a machine without other work may keep busy: its system, and whoever looks at a terminal."""


class Reading(NamedTuple):
    """Seconds since arbitrary moments."""

    wall: float
    busy: float
    """Summed over the cores that this process may use, whoever used them."""
    own: float
    """Computing time of all threads of this process."""


def read() -> Reading | None:
    """Read the system's account of its cores; None where there is none, as on systems other than Linux."""
    try:
        cores = os.sched_getaffinity(0)
        lines = [line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines()]
    except (AttributeError, OSError):
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user and nice
    ticks = [[int(field) for field in line[1:9]] for line in lines if line[0] in {f"cpu{core}" for core in cores}]
    busy = sum(sum(core) - sum(core[3:5]) for core in ticks) / os.sysconf("SC_CLK_TCK")
    return Reading(time.perf_counter(), busy, time.process_time())


class LoadMeter:
    """Construct before the steps, ``stop`` after them.

    ``threads`` that compute and ``cores`` that there are for them and for all other processes.
    """

    def __init__(self, threads: int, cores: int | None = None, read: Callable[[], Reading | None] = read) -> None:
        self._threads, self._read = threads, read
        self._cores = cores or available_cores()
        self._begin = read()

    def stop(self) -> str | None:
        """How many cores others kept busy, in words, where these and our threads were more than there are."""
        begin, end = self._begin, self._read()
        if begin is None or end is None or end.wall - begin.wall < SECONDS:
            return None
        others = (end.busy - begin.busy - (end.own - begin.own)) / (end.wall - begin.wall)
        if others + self._threads <= self._cores + SLACK:
            return None
        cores = f"{self._cores} core{'s' if self._cores > 1 else ''}"
        return f"other processes kept {others:.1f} of {cores} busy, beside {self._threads} of this one's threads"


def joined(*words: str | None) -> str | None:
    """What several have seen of other work on the device, with "; " between its parts, each told once."""
    return "; ".join(dict.fromkeys(part for own in words if own for part in own.split("; "))) or None


def available_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # systems other than Linux
        return os.cpu_count() or 1
