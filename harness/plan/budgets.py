"""Budgets: words for how much is done. They are shown, and they are no part of any identity."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Settings of a budget for every method; a method's ``BUDGETS`` and ``PAPER`` add steps and hyper-parameters."""

    meaning: str
    seeds: tuple[int, ...]
    networks_evaluated: int
    evaluate_steps: int | None
    """At most so many optimiser steps per evaluated network; the schedule shrinks with them. None: as published."""
    cpu_width: int | None
    """Width of the network on a CPU. None: the protocol's, as on a GPU."""
    steps: int | None
    """Outer steps for a method whose ``BUDGETS`` name none. None: the published number is needed, or ``seconds``."""
    seconds: float | None = None
    """Steps are as many whole cycles as fit into this. None: a number of steps is fixed."""
    like: str | None = None
    """Budget whose hyper-parameters hold for a method whose ``BUDGETS`` lacks this one. None: no other."""


BUDGETS = {
    "smoke": Budget("seconds: the real path, numbers without meaning", (0,), 1, 20, 8, 5),
    "quick": Budget("minutes: shortened schedules", (0,), 3, 1000, 32, 200),
    "long": Budget("two hours of steps, width and evaluation as published", (0,), 3, None, None, None, 7200.0, "quick"),
    "paper": Budget("the published schedule", (0,), 5, None, None, None),
    "cost": Budget("time and memory of an iteration as published, no accuracy", (0,), 0, 0, 32, None, 20.0),
}
COST = "cost"
WIDTH = 128
"""The published width of either network."""


def default_width(budget: str, device: str) -> int:
    """The published width, but narrower on a CPU under the short budgets."""
    narrow = BUDGETS[budget].cpu_width
    return narrow if narrow is not None and device == "cpu" else WIDTH
