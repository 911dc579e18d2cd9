"""Trials of hyper-parameters: as many settings for every method, over the ranges that its ``TUNE`` declares.

Each trial is a request like any other, whose sets are distilled from all training images but a fold. That fold takes
the place of the test images (``benchmarks.data.views``), so no test image has a part in what is chosen.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import methods
from benchmarks.data.views import base_name
from benchmarks.errors import UserError
from harness.command_line import finite, whole
from harness.plan.budgets import BUDGETS
from harness.plan.jobs import Job, as_json, from_json
from harness.plan.options import typed
from harness.plan.planning import plan
from harness.plan.request import Request, flag, names

if TYPE_CHECKING:
    from methods.base import Range

FOLDS = 5
"""One of so many random parts of the training images is held out."""
SECONDS = 60.0
TRIALS, MOST_TRIALS = 12, 1000
DRAWN = 20
"""At most so many points are drawn for each trial; whole numbers may make several points one setting."""


@dataclass(frozen=True, kw_only=True)
class TuneRequest(Request):
    """Methods to be tuned alike. Whatever would make their trials unlike each other is no flag here."""

    trials: int = flag(f"settings tried for each method, its own among them ({TRIALS})", "N", whole, default=TRIALS)
    scramble: int = flag("seed of the points that settings are drawn at (0)", "N", whole, default=0)
    seconds: float | None = flag(f"of steps for each distillation ({SECONDS:g})", "S", finite, default=SECONDS)
    check: tuple[str, ...] = flag("data sets on which best and default are compared anew", "NAMES", names, default=())
    steps: int | None = None
    evaluations: tuple[str, ...] | None = None
    curve_points: int = 0
    ceiling: bool = False
    no_random: bool = True
    interleave: bool = False
    forecast: bool = False

    def __post_init__(self) -> None:
        """Raises UserError as that of the base class, for ``check`` as for ``datasets``."""
        super().__post_init__()
        if not 1 <= self.trials <= MOST_TRIALS:
            raise UserError(f"--trials must be from 1 to {MOST_TRIALS}, not {self.trials}")
        if self.scramble < 0:
            raise UserError(f"--scramble must be at least 0, not {self.scramble}")
        if BUDGETS[self.budget].steps is None:
            raise UserError(f"--budget {self.budget} has nothing to tune: take a short budget, such as quick")
        if self.check:
            dataclasses.replace(self, datasets=self.check, check=())

    @property
    def distillation_seeds(self) -> tuple[int, ...]:
        return self.seeds or BUDGETS[self.budget].seeds


@dataclass(frozen=True)
class Trial:
    """A setting of a method."""

    method: str
    kind: Literal["default", "paper", "drawn"]
    settings: Mapping[str, float]
    """Field → its value; those that are not here are as without tuning. Empty for the default."""

    def __str__(self) -> str:
        return ", ".join(f"{field} {value:g}" for field, value in self.settings.items()) or self.kind


def defaults(request: TuneRequest) -> list[Job]:
    """The jobs of all methods with their default settings. Raises UserError as `plan` does."""
    return _planned(request, request.datasets, 0, request.distillation_seeds)


def defaults_to_check(request: TuneRequest) -> list[Job]:
    """The same for ``check``, with another fold and other seeds: what is chosen is chosen by none of these."""
    seeds = request.distillation_seeds
    return _planned(request, request.check, 1, tuple(seed + max(seeds) + 1 for seed in seeds)) if request.check else []


def _planned(request: TuneRequest, datasets: Sequence[str], fold: int, seeds: tuple[int, ...]) -> list[Job]:
    views = tuple(f"{dataset}@fold:{fold}-of-{FOLDS}" for dataset in datasets)
    return plan(dataclasses.replace(request, datasets=views, seeds=seeds, check=()))


def tuned(request: TuneRequest, name: str) -> dict[str, Range]:
    """The fields of the method ``name`` that are tuned: those of ``TUNE`` that the command line does not set."""
    fixed = typed(name, request.options.get(name, ()))
    return {field: values for field, values in methods.get(name).TUNE.items() if field not in fixed}


def trials(
    request: TuneRequest,
    name: str,
    jobs: Sequence[Job],
    to_check: Sequence[Job] = (),
    left_out: list[str] | None = None,
) -> list[Trial]:
    """The default of the method ``name``, the values of its paper where they are within ``TUNE``, and drawn ones.

    ``jobs``, ``to_check``: those of its default. The paper's values are those of ``Config``, changed by ``PAPER`` for a
    data set and ipc. Points are those of a scrambled Halton sequence: more trials begin with the same. Where ``Config``
    refuses a setting the next one takes its place, and ``left_out`` takes a line.
    """
    method, ranges = methods.get(name), tuned(request, name)

    def candidates() -> Iterator[Trial]:
        for dataset, ipc in itertools.product(request.datasets, request.ipcs):
            published = {k: v for k, v in method.PAPER.get((base_name(dataset), ipc), {}).items() if k != "steps"}
            config = dataclasses.replace(method.Config(), **published)
            settings = {field: getattr(config, field) for field in ranges}
            if all(settings[f] is not None and r.low <= settings[f] <= r.high for f, r in ranges.items()):
                yield Trial(name, "paper", settings)
        for point in _points(len(ranges), DRAWN * request.trials, request.scramble):
            values = {f: r.at(share) for (f, r), share in zip(ranges.items(), point, strict=True)}
            yield Trial(name, "drawn", values)

    made, seen = [Trial(name, "default", {})], [{field: job.config[field] for field in ranges} for job in jobs]
    refused: list[str] = []
    for trial in candidates():
        if len(made) < request.trials and trial.settings not in seen:
            seen.append(dict(trial.settings))
            try:
                jobs_of(trial, [*jobs, *to_check])
            except UserError as reason:
                refused.append(f"{trial} ({reason})")
            else:
                made.append(trial)
    if refused and left_out is not None:
        others = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        left_out.append(f"{name}: left out, {refused[0]}{others}; the next settings are tried instead")
    return made


def _points(dimensions: int, count: int, seed: int) -> list[list[float]]:
    """``count`` points of low discrepancy in the unit cube; the first ones do not depend on ``count``."""
    import numpy as np
    from scipy.stats import qmc

    points: list[list[float]] = qmc.Halton(dimensions, seed=np.random.default_rng(seed)).random(count).tolist()
    return points


def jobs_of(trial: Trial, jobs: Iterable[Job]) -> list[Job]:
    """Those of ``jobs``, which have default settings, that are about the method of ``trial``, with its settings.

    Raises UserError where ``Config`` refuses them.
    """
    kind, made = methods.get(trial.method).Config, list[Job]()
    for job in jobs:
        if job.distillation.method == trial.method:
            config = as_json(dataclasses.replace(from_json(kind, job.config), **trial.settings))
            folder = job.path.with_name(job.distillation.name(config))
            made.append(dataclasses.replace(job, config=config, folder=str(folder)))
    return made
