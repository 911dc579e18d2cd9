"""What papers report and claim, and what was measured here of it: ratios, and times to an accuracy."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    """What papers report for the method, data set and ipc of ``group``."""
    wanted = tuple(group.distillation[key] for key in ("method", "dataset", "ipc"))
    return [e for e in reported()["entries"] if (e["method"], e["dataset"], e["ipc"]) == wanted]


@dataclass(frozen=True)
class Ratios:
    """What a method takes of what ``OURS`` takes; None where one of the two was not measured."""

    seconds: float | None = None
    """Ratio of the medians of an iteration."""
    operations: float | None = None
    """Ratio of the operations of an iteration, which take no clock to count."""
    memory: float | None = None
    """Ratio of the peaks, as ``meter`` has both."""
    meter: str | None = None
    allocated: float | None = None
    """Ratio of the peaks that torch allocated on the GPU: without context, cache and libraries, which flatten it."""
    live: float | None = None
    """Ratio of the peaks of live tensors."""


def ratios(group: Group, groups: Iterable[Group]) -> Ratios:
    """To the one group of ``OURS`` among ``groups`` on the same device, data, network and width.

    None where there is no such group, where there are several by the same meter, and where one of the two did not end
    well.
    """
    same = [g for g in groups if g.method == OURS and g.ok and _setting(g) == _setting(group)]
    if len(same) > 1:
        same = [g for g in same if g.meters == group.meters]
    if len(same) != 1 or not group.ok:
        return Ratios()
    (ours,) = same

    def ratio(theirs: float | None, own: float | None) -> float | None:
        return theirs / own if theirs is not None and own else None

    meter = next((meter for meter in METERS if meter in group.meters & ours.meters), None)
    return Ratios(
        seconds=ratio(_median(group.step_seconds), _median(ours.step_seconds)),
        operations=ratio(group.most("flops_per_step"), ours.most("flops_per_step")),
        memory=ratio(group.headline(meter), ours.headline(meter)) if meter else None,
        meter=meter,
        allocated=ratio(group.peak("allocated_bytes"), ours.peak("allocated_bytes")),
        live=ratio(group.most("peak_live_bytes"), ours.most("peak_live_bytes")),
    )


def _median(samples: Sequence[float]) -> float | None:
    return statistics.median(samples) if samples else None


def _setting(group: Group) -> tuple[Any, ...]:
    """What groups share whose costs are compared: everything but the method and what is the method's own."""
    shared = {k: v for k, v in {**group.circumstances, **group.distillation}.items() if k not in (*OWN, "seed")}
    shared = {name: value for name, value in shared.items() if value is not None}
    return group.table, group.contest, json.dumps(shared, sort_keys=True)


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
            if before is None or not before[1]:
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
    """What the paper claims of time and memory, and after it what the ``groups`` of one table have measured of it."""
    ours = [group for group in groups if group.method == OURS and group.ok]
    lines = [line for own in ours for line in _accuracies(own, groups)] if groups[0].evaluated else _iterations(groups)
    if not lines:
        return []
    units = " (seconds until an accuracy is reached; in brackets with the preparation)"
    return [f"{CLAIM}. Measured here, on {groups[0].device}{units if groups[0].evaluated else ''}:", *lines]


def _iterations(groups: Sequence[Group]) -> list[str]:
    """A line for every method, data set, ipc, network and setting, at the largest width that has a ratio."""
    largest: dict[tuple[Any, ...], str] = {}
    for group, setting in zip(groups, variants(groups), strict=True):  # in the order of their widths
        asked, ratio = group.distillation, ratios(group, groups)
        if group.method == OURS or ratio.seconds is None:
            continue
        operations = "" if ratio.operations is None else f" ({times(ratio.operations)} the operations)"
        memory = "" if ratio.memory is None else f" and {_memory(ratio)}"
        where = f"{asked['dataset']}, ipc {asked['ipc']}, {asked['network']}, width {asked['width']}"
        where += "" if setting == NONE else f", {setting}"
        takes = f"takes {times(ratio.seconds)} the time{operations}{memory} of {OURS}'s"
        largest[group.method, *group.contest, asked["network"], setting] = (
            f"{where}: an iteration of {group.method} {takes}."
        )
    return list(largest.values())


def _memory(ratio: Ratios) -> str:
    assert ratio.meter is not None
    return f"{times(ratio.memory)} the memory ({METERS[ratio.meter][1].removesuffix(' (MiB)')})"


def _accuracies(ours: Group, groups: Sequence[Group]) -> list[str]:
    """A line for every rival that was measured and evaluated alike: the times to equal accuracy, and the memory."""
    lines = []
    for group in groups:
        asked = group.distillation
        rival = group.method != OURS and group.ok and min(len(group.curve), len(ours.curve)) > 1
        if not rival or (group.test, group.circumstances) != (ours.test, ours.circumstances):
            continue
        if any(asked[name] != ours.distillation[name] for name in ("network", "width", "depth")):
            continue
        ratio = ratios(group, [ours])
        parts = [_equal_accuracy(ours, group, ended) for ended in (group, ours)]
        if ratio.memory is not None:
            parts.append(f"{group.method} takes {_memory(ratio)} of {OURS}")
        where = f"{asked['dataset']}, ipc {asked['ipc']}, width {asked['width']}, budget {group.budget}"
        lines.append(f"{where}: {'; '.join(parts)}.")
    return lines


def _equal_accuracy(ours: Group, rival: Group, ended: Group) -> str:
    """The times that both need for the accuracy that ``ended`` has in the end; in brackets with the preparation.

    Behind the ratio of the times that of the operations of as many steps, where they were counted.
    """
    target = statistics.fmean(ended.curve[-1].values)
    texts, seen, operations, bounds = [], [], [], []
    for group in (ours, rival):
        reached = time_to(group.curve, target)
        seconds, bound = reached or (group.curve[-1].seconds, False)
        whole = seconds + statistics.fmean(group.costs("prepare_seconds") or [0.0])
        text = f"{short(seconds)} s ({short(whole)} s)"
        if reached is None:
            texts.append(f"{group.method} not reached in the time measured, {text}")
            continue
        texts.append(f"{group.method} {'at most ' if bound else ''}{text}")
        seen.append((seconds, whole))
        operations.append(seconds * _operations_per_second(group))
        bounds.append(bound)
    shown = f"to {target:.1%}, where {ended.method} ended: {', '.join(texts)}"
    if len(seen) < 2 or all(bounds):
        return shown
    kind = "at least " if bounds[0] else "at most " if bounds[1] else ""
    apart, whole_ratio = (times(theirs / own) for own, theirs in zip(*seen, strict=True))
    counted = f", with {kind}{times(operations[1] / operations[0])} the operations" if all(operations) else ""
    return f"{shown}, that is {kind}{apart} ({whole_ratio}){counted}"


def _operations_per_second(group: Group) -> float:
    """Operations per second of distilling; 0 where they were not counted."""
    end = group.curve[-1]
    return (group.most("flops_per_step") or 0.0) * end.step / end.seconds if end.seconds else 0.0
