"""Methods that take turns: their ratio is that of their costs, whatever the machine does. The clock is our own."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import cast

import pytest
import torch

from harness.measure.clock import Clock
from harness.measure.interleave import ROUNDS, WARMUP, interleaved
from methods.base import Method


class Machine:
    """Steps take the time that they are told to, times what the machine's ``load`` is at that moment."""

    def __init__(self, load: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now, self.load = 0.0, load
        self.ran: list[str] = []
        self.clock = Clock(torch.device("cpu"), lambda: self.now)

    def method(self, name: str, seconds: float, *, cycle: int = 1, first: float = 0.0) -> Method:
        """A method whose steps take ``seconds``, in cycles of ``cycle`` steps, of which the last takes all the time.

        ``first``: what the very first step takes more.
        """
        machine, done = self, 0

        class Timed:
            steps_per_cycle = cycle

            def step(self) -> None:
                nonlocal done
                done += 1
                ends = done % cycle == 0
                machine.now += machine.load(machine.now) * (seconds * cycle * ends + first * (done == 1))
                machine.ran.append(name)

        return cast(Method, Timed())


def test_the_ratio_survives_a_machine_that_gets_slower() -> None:
    """The machine takes five times as long in the end; medians of separate runs would be far off."""
    machine = Machine(lambda now: 1 + now / 25)
    samples = interleaved({"a": machine.method("a", 0.2), "b": machine.method("b", 0.1)}, machine.clock, 100)
    assert max(samples["a"]) > 4 * min(samples["a"])
    ratios = [own / other for own, other in zip(samples["a"], samples["b"], strict=True)]
    assert statistics.median(ratios) == pytest.approx(2, rel=0.01)
    lower, _, upper = statistics.quantiles(ratios)
    assert lower == pytest.approx(2, rel=0.02) and upper == pytest.approx(2, rel=0.02)
    unpaired = statistics.median(samples["a"]) / statistics.median(samples["b"][: len(samples["b"]) // 2])
    assert unpaired > 2.5


def test_windows_hold_whole_cycles_and_last_as_long() -> None:
    """A cycle of ``a`` takes 1 second; as long take ten steps of ``b``, and two cycles of four steps of ``c``."""
    machine = Machine()
    arms = {
        "a": machine.method("a", 1.0, first=100.0),
        "b": machine.method("b", 0.1),
        "c": machine.method("c", 0.125, cycle=4),
    }
    samples = interleaved(arms, machine.clock, 0)
    assert samples == {name: pytest.approx([cost] * ROUNDS) for name, cost in (("a", 1.0), ("b", 0.1), ("c", 0.125))}
    kept = machine.ran[WARMUP * (1 + 1 + 4) :]
    assert {name: kept.count(name) for name in arms} == {"a": ROUNDS, "b": 10 * ROUNDS, "c": 8 * ROUNDS}


def test_the_order_changes_from_round_to_round() -> None:
    machine = Machine()
    names = "abc"
    interleaved({name: machine.method(name, 1.0) for name in names}, machine.clock, 3 * 7)
    rounds = ["".join(machine.ran[begin : begin + 3]) for begin in range(0, len(machine.ran), 3)]
    assert rounds[WARMUP:] == ["abc", "bca", "cab", "cba", "acb", "bac", "abc"]


def test_rounds_end_when_the_time_is_up() -> None:
    machine = Machine()
    samples = interleaved({name: machine.method(name, 1.0) for name in "ab"}, machine.clock, 9)
    assert [len(own) for own in samples.values()] == [5, 5]  # the fifth round began after 8 seconds
