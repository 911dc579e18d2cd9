"""Costs of methods relative to each other, and times to an accuracy."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from harness.reports.groups import METERS, OURS, CurvePoint, Group

OWN = ("method", "norm", "preprocess", "steps", "seconds_include_prepare")
"""Fields of a distillation in which methods may differ whose costs are compared."""


def reference(group: Group) -> str:
    """The method that costs are compared with: ``OURS``; among methods timed by turns without it, the first."""
    turns = group.distillation["interleaved"]
    names = [OURS] if turns is None else str(turns).split(", ")
    return OURS if OURS in names else names[0]


def base_of(group: Group, groups: Iterable[Group], own: Sequence[str] = OWN) -> Group | None:
    """The one group of the ``reference`` among ``groups`` on the same device, data, network and width.

    ``own``: fields of the distillation in which the two may differ. None where there is no such group, where there are
    several by the same meter, and where one of the two did not end well.
    """
    setting = _setting(group, own)
    same = [g for g in groups if g.method == reference(group) and g.ok and _setting(g, own) == setting]
    if len(same) > 1:
        same = [g for g in same if g.meters == group.meters]
    return same[0] if len(same) == 1 and group.ok else None


def _setting(group: Group, own: Sequence[str]) -> tuple[Any, ...]:
    """Settings that groups share whose costs are compared: all except the method and the method's ``own``."""
    shared = {k: v for k, v in {**group.circumstances, **group.distillation}.items() if k not in (*own, "seed")}
    shared = {name: value for name, value in shared.items() if value is not None}
    return group.table, group.contest, json.dumps(shared, sort_keys=True)


def seconds_ratio(group: Group, base: Group | None) -> tuple[float, float | None, float | None] | None:
    """Seconds of a step of ``group`` over those of ``base``: of medians; by turns, median and quartiles of pairs.

    None where one of the two was not measured, and where samples that were taken by turns do not pair.
    """
    if base is None or not group.median or not base.median:
        return None
    if group.distillation["interleaved"] is None:
        return group.median / base.median, None, None
    mine, theirs = ({r["distillation"]["seed"]: r["cost"]["step_seconds"] for r in g.counted} for g in (group, base))
    seeds = [seed for seed in mine if seed in theirs]
    pairs = [pair for seed in seeds for pair in zip(mine[seed], theirs[seed], strict=False)]
    if any(len(mine[seed]) != len(theirs[seed]) for seed in seeds) or not all(other for _, other in pairs):
        return None
    if len(mine) < len(group.counted) or len(theirs) < len(base.counted) or not pairs:
        return None  # a seed that was distilled twice: nobody knows which samples were taken next to each other
    ratios = [own / other for own, other in pairs]
    lower, median, upper = statistics.quantiles(ratios if len(ratios) > 1 else 2 * ratios, n=4, method="inclusive")
    return median, lower, upper


def size_ratio(group: Group, base: Group | None, size: str) -> float | None:
    """Ratio of the largest of a number of the cost, ``allocated_bytes``, or the ``headline`` by the same meter."""
    if base is None:
        return None
    meter = common_meter(group, base)
    sizes = [
        (g.headline(meter) if meter else None)
        if size == "headline"
        else g.peak(size)
        if size == "allocated_bytes"
        else g.most(size)
        for g in (group, base)
    ]
    return sizes[0] / sizes[1] if sizes[0] is not None and sizes[1] else None


def common_meter(group: Group, base: Group) -> str | None:
    """The meter that both headlines have."""
    return next((meter for meter in METERS if meter in group.meters & base.meters), None)


def time_to(curve: Sequence[CurvePoint], target: float) -> tuple[float, bool] | None:
    """Seconds of distilling until the mean accuracy first reaches ``target``, and whether they are an upper bound.

    Between the last point below and the first one not below, the accuracy is taken as linear in the logarithm of the
    time. An upper bound: the first point measured is not below. None: no point reaches it.
    """
    before: tuple[float, float] | None = None
    for point in curve:
        mean = statistics.fmean(point.values)
        if mean >= target:
            if before is None:
                return point.seconds, True
            low, start = before
            share = (target - low) / (mean - low)
            return start * math.exp(share * math.log(point.seconds / start)), False
        before = mean, point.seconds
    return None


def time_to_share(group: Group, share: float = 0.92) -> tuple[float, bool] | None:
    """As ``time_to``, to that share of the accuracy that the curve ends with; None without a curve.

    FRePo's paper says how long it takes to 92 % of its final accuracy: 385 s for CIFAR-100 at one image per class.
    """
    curve = group.curve
    return time_to(curve, share * statistics.fmean(curve[-1].values)) if curve else None
