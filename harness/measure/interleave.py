"""Timing several methods by turns in one process, so that their ratio survives a machine whose speed changes.

Methods that are timed one after the other meet different machines: other work comes and goes, and clocks and caches
warm up. Samples of one round were taken next to each other, so their ratio is that of the methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.measure.clock import Clock
from methods.base import Method

WARMUP = 2
"""Rounds of one cycle that are not kept: the first compiles and loads, from the last windows are planned."""
ROUNDS = 3
"""At least so many rounds are kept, however few seconds there are."""
WINDOW_SECONDS = 0.05
"""No window is planned to be shorter: a GPU is kept waiting at the end of each."""


def interleaved(methods: Mapping[str, Method], clock: Clock, seconds: float) -> dict[str, list[float]]:
    """Time the prepared ``methods`` by turns, in rounds that are begun until ``seconds`` have passed.

    Returns for each method the seconds per step in every round: sample i of one method belongs to sample i of another.
    In a round every method runs one window of whole cycles, after ``WARMUP`` rounds that are not kept. Windows last
    about as long as the slowest method's cycle, so that all methods meet the same stretch of the machine's time. The
    order rotates, and is reversed every time it has gone round, so that no method always follows the same other one.
    """

    def time(name: str, cycles: int) -> float:
        method = methods[name]
        steps = cycles * method.steps_per_cycle
        begin = clock.read()
        for _ in range(steps):
            method.step()
        return (clock.read() - begin) / steps

    cycle_seconds: dict[str, float] = {}
    for _ in range(WARMUP):
        cycle_seconds = {name: time(name, 1) * methods[name].steps_per_cycle for name in methods}
    window = max(WINDOW_SECONDS, *cycle_seconds.values())
    cycles = {name: max(1, round(window / max(own, 1e-9))) for name, own in cycle_seconds.items()}

    samples: dict[str, list[float]] = {name: [] for name in methods}
    start = clock.read()
    for done, order in enumerate(_orders(list(methods))):
        if done >= ROUNDS and clock.read() - start >= seconds:
            break
        for name in order:
            samples[name].append(time(name, cycles[name]))
    return samples


def _orders(names: Sequence[str]) -> Iterator[list[str]]:
    """Without end: every rotation of ``names``, then every rotation backwards, and so on."""
    while True:
        for direction in (1, -1):
            for first in range(len(names)):
                yield [*names[first:], *names[:first]][::direction]
