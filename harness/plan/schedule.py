"""How long a grid takes on many devices: greedy list scheduling of cells whose durations are known.

Whenever a device is free, it takes one of those that can begin: first cells that run alone, of these and of the
others the one on which the longest chain of work still waits.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.errors import UserError


@dataclass(frozen=True)
class Cells:
    """``count`` cells that take equally long."""

    name: str
    count: int
    seconds: float
    """Of each, on a device of its own."""
    after: str = ""
    """Name of the cells that must all have ended before; empty: none."""
    alone: bool = False
    """Whether its seconds are a result, so that nothing else runs on its device meanwhile."""
    disk_bytes: int = 0
    """What each leaves."""


@dataclass(frozen=True)
class Schedule:
    """A simulated run."""

    seconds: float
    busy: float
    """The share of the time of all devices in which they work."""
    bound: str
    """What no other order of the same cells would make shorter, in words."""


def simulate(
    cells: Sequence[Cells],
    devices: int,
    *,
    per_device: int = 1,
    restart_seconds: float | None = None,
    checkpoint_seconds: float = 300.0,
) -> Schedule:
    """Run ``cells`` on ``devices``, ``per_device`` at a time on each.

    ``restart_seconds``: all devices are lost and come back so often. A cell then loses what it has done since its last
    checkpoint, at most ``checkpoint_seconds``; cells that others wait for, such as MTT's experts, begin again.

    Raises UserError for an unknown name in ``after``, a circle, and restarts so frequent that a cell never ends.
    """
    groups = {each.name: each for each in cells}
    if unknown := next((each for each in cells if each.after and each.after not in groups), None):
        raise UserError(f"{unknown.name} comes after {unknown.after!r}, which is not among the cells")
    if len(groups) < len(cells):
        raise UserError("two rows have the same name: join them, or name them differently")
    needed = {each.after for each in cells}
    chain = {name: _chain(each, cells) for name, each in groups.items()}
    left = {name: each.count for name, each in groups.items()}
    ready: list[Cells] = []

    def release(after: str) -> None:
        ready.extend(each for each in cells if each.after == after for _ in range(each.count))
        ready.sort(key=lambda each: (not each.alone, -chain[each.name]))

    def end_of(each: Cells, begin: float) -> float:
        if restart_seconds is None:
            return begin + each.seconds
        lost = restart_seconds if each.name in needed else checkpoint_seconds
        if each.seconds > restart_seconds and lost >= restart_seconds:
            raise UserError(f"{each.name} takes longer than the time between two restarts: it never ends")
        return _end(begin, each.seconds, restart_seconds, lost)

    release("")
    now, worked = 0.0, 0.0
    free = [(per_device, device) for device in range(devices)]
    running: list[tuple[float, int, int, str]] = []
    while ready or running:
        waiting = []
        for each in ready:
            need = per_device if each.alone else 1
            room, device = max(free)
            if room < need:
                waiting.append(each)
                continue
            free[device] = (room - need, device)
            end = end_of(each, now)
            worked += (end - now) * need / per_device
            heapq.heappush(running, (end, device, need, each.name))
        ready[:] = waiting
        now, device, need, name = heapq.heappop(running)
        free[device] = (free[device][0] + need, device)
        left[name] -= 1
        if not left[name] and name in needed:
            release(name)
    return Schedule(now, worked / (now * devices) if now else 0.0, _bound(cells, devices, per_device))


def _chain(each: Cells, cells: Sequence[Cells], seen: tuple[str, ...] = ()) -> float:
    """Seconds from the beginning of ``each`` to the end of the longest that waits for it."""
    if each.name in seen:
        raise UserError(f"{each.name} comes after itself")
    after = (_chain(other, cells, (*seen, each.name)) for other in cells if other.after == each.name)
    return each.seconds + max(after, default=0.0)


def _end(begin: float, seconds: float, every: float, lost: float) -> float:
    """When work of so many ``seconds`` ends that is interrupted at all multiples of ``every``, losing ``lost``."""
    while True:
        at = (math.floor(begin / every) + 1) * every
        if seconds <= at - begin:
            return begin + seconds
        seconds -= max(0.0, at - begin - lost)
        begin = at


def _bound(cells: Sequence[Cells], devices: int, per_device: int) -> str:
    """The larger of two lower bounds: all work on all devices, and the longest cell with what must come before it."""
    slots = devices * per_device
    groups = {each.name: each for each in cells}

    def before(each: Cells) -> float:
        first = groups.get(each.after)
        return 0.0 if first is None else before(first) + first.seconds * max(1.0, first.count / slots)

    work = sum(each.count * each.seconds * (per_device if each.alone else 1) for each in cells) / slots
    last = max(cells, key=lambda each: before(each) + each.seconds)
    if work >= before(last) + last.seconds:
        return "all work together"
    return f"{last.after}, then {last.name}" if last.after else f"the longest cell, {last.name}"


def faster(cells: Sequence[Cells], factor: float) -> list[Cells]:
    """The same ``cells`` on devices that are ``factor`` times as fast."""
    return [dataclasses.replace(each, seconds=each.seconds / factor) for each in cells]
