"""Claims and reported numbers of papers, beside what was measured here: ratios, and times to an accuracy."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness.reports.groups import METERS, NONE, OURS, CurvePoint, Group, variants
from harness.reports.render import short, times

OWN = ("method", "norm", "preprocess", "steps", "seconds_include_prepare")
"""Fields of a distillation in which methods may differ whose costs are compared."""
CLAIM = (
    "Claimed by Zhou et al., NeurIPS 2022, for their GPU and cifar100 at ipc 1: frepo needs a hundredth of the time of "
    "mtt, the second best, and a tenth of the memory"
)


@cache
def reported() -> dict[str, Any]:
    """The content of ``reported.json``; accuracies are fractions."""
    content: dict[str, Any] = json.loads(Path(__file__).with_name("reported.json").read_text(encoding="utf-8"))
    return content


def reported_for(group: Group) -> list[dict[str, Any]]:
    """Entries of papers for the method, data set and ipc of ``group``."""
    wanted = tuple(group.distillation[key] for key in ("method", "dataset", "ipc"))
    return [e for e in reported()["entries"] if (e["method"], e["dataset"], e["ipc"]) == wanted]


# --- ratios -----------------------------------------------------------------------------------------------------------


def reference(group: Group) -> str:
    """The method that costs are compared with: ``OURS``; among methods timed by turns without it, the first."""
    turns = group.distillation["interleaved"]
    names = [OURS] if turns is None else str(turns).split(", ")
    return OURS if OURS in names else names[0]


def base_of(group: Group, groups: Iterable[Group]) -> Group | None:
    """The one group of the ``reference`` among ``groups`` on the same device, data, network and width.

    None where there is no such group, where there are several by the same meter, and where one of the two did not end
    well.
    """
    same = [g for g in groups if g.method == reference(group) and g.ok and _setting(g) == _setting(group)]
    if len(same) > 1:
        same = [g for g in same if g.meters == group.meters]
    return same[0] if len(same) == 1 and group.ok else None


def _setting(group: Group) -> tuple[Any, ...]:
    """Settings that groups share whose costs are compared: all except the method and the method's own."""
    shared = {k: v for k, v in {**group.circumstances, **group.distillation}.items() if k not in (*OWN, "seed")}
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


# --- what the paper claims, and what was measured here ----------------------------------------------------------------


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


def claims(groups: Sequence[Group]) -> list[str]:
    """The paper's claim about time and memory, and after it what the ``groups`` of one table have measured of it."""
    evaluated = groups[0].evaluated
    settings = {id(g): "" if text == NONE else f", {text}" for g, text in zip(groups, variants(groups), strict=True)}
    lines: dict[Any, str] = {}
    for group in groups:  # in the order of their widths: a line for the largest width that has a ratio
        asked, setting = group.distillation, settings[id(group)]
        where = f"{asked['dataset']}, ipc {asked['ipc']}, {asked['network']}, width {asked['width']}"
        if evaluated:
            for ours in (own for own in groups if _is_pair(own, group)):
                told = setting if setting == settings[id(ours)] else f"{setting}{settings[id(ours)]}"
                lines[len(lines)] = f"{where}{told}: {'; '.join(_equal_accuracies(ours, group))}."
            continue
        base = base_of(group, groups)
        ratio = seconds_ratio(group, base)
        if base and ratio and base.method == OURS != group.method:
            operations = size_ratio(group, base, "flops_per_step")
            counted = "" if operations is None else f" ({times(operations)} the operations)"
            memory = f" and {words}" if (words := _memory(group, base)) else ""
            takes = f"takes {times(ratio[0])} the time{counted}{memory} of {OURS}'s"
            key = (group.method, *group.contest, asked["network"], setting)
            lines[key] = f"{where}{setting}: an iteration of {group.method} {takes}."
    if not lines:
        return []
    units = " (seconds until an accuracy is reached; in brackets with the preparation)" if evaluated else ""
    return [f"{CLAIM}. Measured here, on {groups[0].table[0]}{units}:", *lines.values()]


def _memory(group: Group, base: Group) -> str:
    meter, ratio = common_meter(group, base), size_ratio(group, base, "headline")
    if meter is None or ratio is None:
        return ""
    return f"{times(ratio)} the memory ({METERS[meter][1].removesuffix(' (MiB)')})"


def _is_pair(ours: Group, rival: Group) -> bool:
    """Whether times of the two to equal accuracy can be compared: they were measured and evaluated alike."""
    alike = [
        (g.test, g.circumstances, *(g.distillation[n] for n in ("network", "width", "depth"))) for g in (ours, rival)
    ]
    well = min(ours.ok, rival.ok) > 0 and min(len(rival.curve), len(ours.curve)) > 1
    return ours.method == OURS != rival.method and well and alike[0] == alike[1]


def _equal_accuracies(ours: Group, rival: Group) -> list[str]:
    """The times to the accuracies that either ends with, and the ratio of memory."""
    parts = [_equal_accuracy(ours, rival, ended) for ended in (rival, ours)]
    memory = _memory(rival, ours) if base_of(rival, [ours]) else ""
    return [*parts, f"{rival.method} takes {memory} of {OURS}"] if memory else parts


def _equal_accuracy(ours: Group, rival: Group, ended: Group) -> str:
    """The times that both need for the accuracy that ``ended`` has in the end; in brackets with the preparation.

    Behind the ratio of the times that of the operations of as many steps, where they were counted.
    """
    target = statistics.fmean(ended.curve[-1].values)
    texts, seen, operations, bounds = [], [], [], []
    for group in (ours, rival):
        end = group.curve[-1]
        reached = time_to(group.curve, target)
        seconds, bound = reached or (end.seconds, False)
        whole = seconds + statistics.fmean(group.costs("prepare_seconds") or [0.0])
        text = f"{short(seconds)} s ({short(whole)} s)"
        if reached is None:
            texts.append(f"{group.method} not reached in the time measured, {text}")
            continue
        texts.append(f"{group.method} {'at most ' if bound else ''}{text}")
        seen.append((seconds, whole))
        operations.append(seconds * (group.most("flops_per_step") or 0.0) * end.step / end.seconds)
        bounds.append(bound)
    shown = f"to {target:.1%}, where {ended.method} ended: {', '.join(texts)}"
    if len(seen) < 2 or all(bounds):
        return shown
    kind = "at least " if bounds[0] else "at most " if bounds[1] else ""
    apart, whole_ratio = (times(theirs / own) for own, theirs in zip(*seen, strict=True))
    counted = f", with {kind}{times(operations[1] / operations[0])} the operations" if all(operations) else ""
    return f"{shown}, that is {kind}{apart} ({whole_ratio}){counted}"
