"""Named requests: the paper's experiments as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.errors import UserError, choose
from harness.plan.budgets import BUDGETS, COST, default_width
from harness.plan.planning import find_device
from harness.plan.request import EVALUATION_FIELDS, Request


@dataclass(frozen=True)
class Part:
    """One grid of an experiment."""

    settings: Mapping[str, Any]
    """Fields of ``Request``, where the command line says nothing else."""
    on_cpu: Mapping[str, Any]
    """Fields that differ on a CPU."""
    not_mine: tuple[str, ...] = ()
    """Request fields that this part ignores."""
    one_width: bool = False
    """Whether only one of several widths is taken, the one nearest to the budget's own."""


@dataclass(frozen=True)
class Experiment:
    """A named request."""

    meaning: str
    parts: tuple[Part, ...]


_FIGURE3 = {"methods": ("frepo", "mtt", "dsa", "dm", "bptt"), "network": "convnet_doubling"}
_FIGURE3_COST = Part(
    {**_FIGURE3, "budget": "cost", "widths": (16, 32, 64, 128, 256, 512)},
    on_cpu={"widths": (16, 32, 64)},
    not_mine=("budget", *EVALUATION_FIELDS),
)
_FIGURE3_ACCURACY = Part(
    {**_FIGURE3, "protocol": "common", "seconds": 300.0, "curve_points": 6}, on_cpu={"seconds": 60.0}, one_width=True
)
EXPERIMENTS = {
    "figure3": Experiment("both of the following", (_FIGURE3_COST, _FIGURE3_ACCURACY)),
    "figure3_cost": Experiment("time and memory of an iteration as the network grows", (_FIGURE3_COST,)),
    "figure3_accuracy": Experiment("accuracy against time and iterations, at one width", (_FIGURE3_ACCURACY,)),
}
"""Figure 3 of Zhou et al., NeurIPS 2022: a, b are the accuracies; c, d the costs."""


def requests(experiment: str, told: Mapping[str, Any]) -> list[Request]:
    """The requests that make up ``experiment``, one for each part; ``told``: the fields that the command line sets.

    Where there are several parts, each takes what is its own: the costs neither what is said about evaluation nor
    methods without steps. Raises UserError for an unknown experiment, and for fields that mean nothing to its one part.
    """
    import methods

    parts = EXPERIMENTS[choose("experiment", experiment, EXPERIMENTS)].parts
    device = find_device(told.get("device"), there=not told.get("forecast"))
    made = []
    for part in parts:
        own = {name: value for name, value in told.items() if name not in part.not_mine}
        if len(parts) == 1 and (left := [name for name in told if name not in own]):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in left)
            raise UserError(f"{flags} means nothing for --experiment {experiment}: leave it out")
        fields = {**part.settings, **(part.on_cpu if device == "cpu" else {}), **own}
        if "steps" in own and "seconds" not in own:
            fields.pop("seconds", None)
        budget = fields.get("budget", Request.budget)
        if part.one_width and "widths" in own and budget in BUDGETS:
            usual = default_width(budget, device)
            fields["widths"] = (min(own["widths"], key=lambda width: abs(math.log(max(width, 1) / usual))),)
        if len(parts) > 1 and budget == COST:
            kept = [name for name in fields["methods"] if methods.get(name).iterative]
            fields["methods"] = tuple(kept)
            fields["options"] = {name: tokens for name, tokens in fields.get("options", {}).items() if name in kept}
        if fields["methods"]:
            made.append(Request(**fields))
    return made
