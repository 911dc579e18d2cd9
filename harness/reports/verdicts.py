"""What a paper claims, what was measured of it here, and what follows: one line each.

A verdict is about what was measured, on the device and at the size that stand beside it. *Confirmed* is only what has
the size of the claim; where nothing was measured, the claim is *not tested here*.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.reports.claims import base_of, seconds_ratio, size_ratio, time_to
from harness.reports.groups import OURS, Group
from harness.reports.render import listed, span, times

Word = Literal["confirmed", "not confirmed", "not tested here"]
LEVEL = 0.05
"""Of the paired test before a method is called better than another."""
UNDISTILLED = ("random_real", "herding", "whole_data")
"""Methods that choose real images: no rivals of one that distils."""


@dataclass(frozen=True)
class Verdict:
    """A claim and its test."""

    claimed: str
    measured: str
    on: str
    """Device, data sets, sizes."""
    n: str
    """How many numbers it rests on."""
    word: Word


def verdicts(groups: Sequence[Group]) -> list[Verdict]:
    """The claims of FRePo's abstract that records of one folder can test, in the order of the abstract."""
    return [
        _accuracy(groups),
        _ratio(groups, "An order of magnitude less memory than mtt (10 times, on their GPU)", 10, _memory),
        _ratio(groups, "Two orders of magnitude faster training than mtt (100 times, on their GPU)", 100, _time, _step),
    ]


_Measured = tuple[float, str, int]
"""A ratio, the words that say of what, and on how many numbers it rests."""
_Measure = Callable[[Group, Group], _Measured | None]


def _ratio(groups: Sequence[Group], claimed: str, least: float, *measures: _Measure) -> Verdict:
    """How many times as much ``mtt`` takes as FRePo, for the largest width of every task, by the first of ``measures``
    that has an answer."""
    ours = [group for group in groups if group.method == OURS]
    for measure in measures:
        found: dict[tuple[object, ...], tuple[Group, _Measured]] = {}
        for group in groups:  # in the order of their widths
            base = base_of(group, ours) if group.method == "mtt" else None
            if base and (measured := measure(group, base)):
                found[group.table, group.contest] = group, measured
        if found:
            ratios = [ratio for _, (ratio, _, _) in found.values()]
            low, high = times(min(ratios)), times(max(ratios))
            words = listed(words for _, (_, words, _) in found.values())
            return Verdict(
                claimed,
                f"{low if low == high else f'{low} to {high}'} {words}",
                _on([group for group, _ in found.values()]),
                str(sum(count for _, (_, _, count) in found.values())),
                "confirmed" if min(ratios) >= least else "not confirmed",
            )
    return Verdict(claimed, "–", "no mtt beside frepo on the same data, network and width", "–", "not tested here")


def _time(rival: Group, ours: Group) -> _Measured | None:
    """Seconds to the accuracy that the rival ends with; None without curves that reach it."""
    if min(len(rival.curve), len(ours.curve)) < 2:
        return None
    ends = rival.curve[-1].values, ours.curve[-1].values
    target = statistics.fmean(ends[0])
    own, other = time_to(ours.curve, target), time_to(rival.curve, target)
    if own is None or other is None:
        return None
    return other[0] / own[0], "the seconds to the accuracy that mtt ends with", sum(map(len, ends))


def _step(rival: Group, ours: Group) -> _Measured | None:
    ratio = seconds_ratio(rival, ours)
    return (ratio[0], "the seconds of an iteration", len(rival.step_seconds)) if ratio else None


def _memory(rival: Group, ours: Group) -> _Measured | None:
    ratio = size_ratio(rival, ours, "headline")
    return (ratio, "the peak memory", len(rival.counted)) if ratio else None


def _accuracy(groups: Sequence[Group]) -> Verdict:
    """Whether FRePo's sets train better networks than those of every other method that distils."""
    claimed = "State of the art: a higher test accuracy than the previous methods"
    wins, used = list[bool](), list[Group]()
    for ours in (group for group in groups if group.method == OURS):
        rivals = [
            rival
            for rival in groups
            if (rival.table, rival.contest) == (ours.table, ours.contest)
            and rival.method not in (*UNDISTILLED, OURS)
            and len(_apart(ours, rival)) > 1
        ]
        if rivals:
            wins.append(all(better(ours, rival) for rival in rivals))
            used += [ours, *rivals]
    if not wins:
        on = "no other method that distils beside frepo, with two seeds or more"
        return Verdict(claimed, "–", on, "–", "not tested here")
    words = f"ahead of all others in {sum(wins)} of {len(wins)} comparisons (paired test over seeds, p < {LEVEL})"
    count = sum(len(group.values) for group in used)
    return Verdict(claimed, words, _on(used), str(count), "confirmed" if all(wins) else "not confirmed")


def better(ours: Group, rival: Group, level: float = LEVEL) -> bool:
    """Whether the mean accuracy of ``ours`` is higher by a paired t-test over the seeds that both have."""
    from scipy.stats import ttest_1samp

    apart = _apart(ours, rival)
    if len(apart) < 2 or statistics.fmean(apart) <= 0:
        return False
    if len(set(apart)) == 1:
        return True
    return float(ttest_1samp(apart, 0.0, alternative="greater").pvalue) < level


def _apart(ours: Group, rival: Group) -> list[float]:
    """Differences of the mean accuracies, one for each seed that both have."""
    means = [{m.seed: statistics.fmean(m.values()) for m in group.members if m.values()} for group in (ours, rival)]
    return [means[0][seed] - means[1][seed] for seed in means[0] if seed in means[1]]


def _on(groups: Sequence[Group]) -> str:
    devices = listed(group.table[0] for group in groups)
    sets = listed(group.distillation["dataset"] for group in groups)
    ipcs = span(int(group.distillation["ipc"]) for group in groups)
    widths = span(int(group.distillation["width"]) for group in groups)
    return f"{devices}; {sets}; ipc {ipcs}; width {widths}"
