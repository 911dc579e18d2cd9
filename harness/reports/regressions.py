"""Two sets of distillations → what got worse, what got better, what is missing.

Compared are cells: distillations that agree in everything that determines them except the seed, and were measured on
the same device with as many threads under the same version of the protocol; and their accuracies by the same recipe. A
difference counts where it exceeds the bound of its kind (`Bounds`); times and accuracies must differ significantly as
well. Accuracies of too few networks to have a spread have a bound of their own.

Windows that follow each other share what else the machine did meanwhile, and a whole run may be slow: neither is a
change of the code. So of every run no more than ``BLOCKS`` medians are tested, and the median of every run of one side
must lie above that of every run of the other. However much runs scatter, chance alone does so in 33 of 100 comparisons
of two runs a side, 10 of three, 3 of four and 1 of five. A single run says nothing of how another would have gone: its
row says that runs were not repeated.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from tabulate import tabulate

from benchmarks.errors import UserError
from harness.plan.jobs import ACCURACY
from harness.records.record import Distilled, EvaluationRecord, Record
from harness.records.record import new as new_record
from harness.reports.groups import IMMATERIAL, METERS, NONE, Group, Member, distinct, members, parted, quartiles
from harness.reports.render import listed, literal, mebibytes

# scipy is imported where it is used: --help must not wait for it.

Verdict = Literal["worse", "missing", "improved", "new", "insignificant", "not compared"]
"""``missing``: only in BASELINE; ``new``: only in NEW."""
CHANGED: tuple[Verdict, ...] = ("worse", "missing", "improved", "new")
UNCHANGED: Verdict = "insignificant"
DECISIVE: tuple[Verdict, ...] = ("worse", "missing")
COUNTERS = {
    "flops_per_step": ("FLOPs per step", "FLOPs"),
    "saved_bytes_per_step": ("bytes saved for backward per step", "bytes"),
    "peak_live_bytes": ("peak live tensor bytes", "bytes"),
    "parameters": ("parameters", "parameters"),
}
"""Exact numbers of a record's cost that need no clock: what they are called, and their units."""
FRACTION = "fraction"
"""The unit of accuracies, the only numbers that are better large."""
RANKS = {"ok": 2, "oom": 1, "timeout": 1, "diverged": 1, "error": 0}
"""Status → how good it is."""
FEWEST_NETWORKS = 3
"""The spread of the accuracies of fewer networks says nothing."""
BLOCKS = 20
"""Neighbouring windows of a run are taken together until so many are left, as they are not independent."""
LONGER = 2
"""Windows that differ in length by more than this factor are not compared: long ones average what short ones show."""
SHOWN = ("method", "dataset", "ipc", "network", "width")
"""Settings that name a cell, beside the budget, where no other cell has the same."""


def _bound(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Bounds:
    """How much is too much; every field is a flag. Changes are fractions of the smaller number."""

    seconds: float = _bound(0.10, "change of the median seconds per step")
    p_value: float = _bound(
        0.002, "p of the two-sided Mann-Whitney test on seconds, and of Welch's on accuracies, must be below"
    )
    # The resident set of one cell differs by up to 8 % or 4 MiB from seed to seed (results/cpu-amd-epyc).
    memory: float = _bound(0.10, "change of the peak memory of the headline meter, median over the seeds, ...")
    memory_bytes: float = _bound(4 * 2**20, "... plus so many bytes")
    counters: float = _bound(0.001, "change of a counter (FLOPs, bytes saved, live bytes, parameters)")
    accuracy: float = _bound(0.01, "change of the mean test accuracy, in fractions of 1")
    deviations: float = _bound(4.0, "the same in pooled standard deviations, unless Welch's test of the seeds decides")
    one_seed: float = _bound(5.0, "so many times the bound on accuracies, where a side has only one seed")
    without_spread: float = _bound(
        0.10, f"change of the mean test accuracy, where a side has fewer than {FEWEST_NETWORKS} networks"
    )

    def __post_init__(self) -> None:
        """Raises UserError for a bound below 0."""
        for each in fields(self):
            if not getattr(self, each.name) >= 0:
                raise UserError(f"{flag(each.name)} must be at least 0, not {getattr(self, each.name):g}")


@dataclass(frozen=True)
class Number:
    """One number of one side."""

    value: float
    low: float | None = None
    high: float | None = None
    """Quartiles of seconds; mean ∓ standard deviation of accuracies; None: no spread is known."""
    count: int = 1
    """Seconds, memory and counters: runs; accuracies: networks."""


@dataclass(frozen=True)
class Finding:
    """One number of one cell, before and after, as text and, where there are numbers, as these."""

    verdict: Verdict
    cell: str
    quantity: str
    before: str = NONE
    after: str = NONE
    change: str = NONE
    """How much; or why it was not compared."""
    lost: bool = False
    """Whether BASELINE has measured something here that was not compared."""
    unit: str = ""
    """``s``, ``bytes``, ``FLOPs``, ``parameters`` or ``fraction``: of the numbers."""
    numbers: tuple[Number | None, Number | None] = (None, None)
    """Before and after."""
    p: float | None = None
    """Of the test that was made; None: there was none."""
    device: str = ""
    """Where it was measured, with threads and version of the protocol."""


@dataclass(frozen=True)
class Comparison:
    """All findings, and what a reader should know about them."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def of(self, verdict: Verdict) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict == verdict]

    def strict(self) -> Comparison:
        """The same, where what was lost is missing."""
        missing = (
            dataclasses.replace(each, verdict="missing", lost=False) if each.lost else each for each in self.findings
        )
        return dataclasses.replace(self, findings=tuple(missing))

    @property
    def failed(self) -> bool:
        return any(finding.verdict in DECISIVE for finding in self.findings)

    @property
    def status(self) -> int:
        """The exit status of the command."""
        return 1 if self.failed else 3 if any(finding.lost for finding in self.findings) else 0


@dataclass(frozen=True)
class Cell:
    """The distillations of one side that differ in nothing but the seed, and by recipe the accuracies of their sets."""

    distilled: Group
    tested: Mapping[str, Group]

    @property
    def place(self) -> str:
        return _measured_on(self.distilled.records[0])


def compare(baseline: Sequence[Distilled], later: Sequence[Distilled], bounds: Bounds | None = None) -> Comparison:
    """Changes from ``baseline`` to ``later``, which texts call NEW.

    Raises UserError where either is empty, nothing was measured on the same device, or no cell is in both.
    """
    bounds = bounds or Bounds()
    sides = {"BASELINE": _cells(baseline), "NEW": _cells(later)}
    for side, cells in sides.items():
        if not cells:
            raise UserError(f"no records in {side}")
    measured = {side: {cell.place for cell in cells.values()} for side, cells in sides.items()}
    common = measured["BASELINE"] & measured["NEW"]
    if not common:
        where = ", ".join(f"{side} was measured on {'; '.join(sorted(places))}" for side, places in measured.items())
        raise UserError(f"nothing to compare: {where}")
    before, after = ({key: cell for key, cell in cells.items() if cell.place in common} for cells in sides.values())
    both = [key for key in before if key in after]
    if not both:
        raise UserError(
            "nothing to compare: BASELINE and NEW have no cell in common "
            "(method, data, network and all hyper-parameters must agree)"
        )
    names = _names({**before, **after})
    elsewhere = {key: cell for key, cell in sides["BASELINE"].items() if cell.place not in common}
    findings = []
    for key, name in _names(elsewhere).items():
        lost = _not_compared(name, "cell", "NEW has nothing measured there", lost=elsewhere[key].distilled.measured)
        findings.append(dataclasses.replace(lost, device=elsewhere[key].place))
    findings += [Finding("missing", names[key], "cell", device=before[key].place) for key in before if key not in after]
    findings += [Finding("new", names[key], "cell", device=after[key].place) for key in after if key not in before]
    notes = [f"Measured on {'; '.join(sorted(common))}."]
    notes += [
        f"Left out, as the other side has nothing measured there: what {side} has on {place}."
        for side, places in measured.items()
        for place in sorted(places - common)
    ]
    for key in both:
        found = _compare_cell(names[key], before[key], after[key], bounds)
        findings += [dataclasses.replace(finding, device=before[key].place) for finding in found]
        old, new = (", ".join(str(m.seed) for m in cell.distilled.members) for cell in (before[key], after[key]))
        if old != new:
            notes.append(f"{names[key]}: seeds {old} in BASELINE, {new} in NEW.")
    notes += _circumstances([[side[key] for key in both] for side in (before, after)])
    return Comparison(tuple(findings), tuple(notes))


def counters_alone(distilled: Distilled) -> Distilled:
    """``distilled`` with what does not depend on the machine: statuses and counters."""
    record = distilled.record
    cost = new_record("", {}, {}, {}, {})["cost"]
    cost.update({name: record["cost"][name] for name in COUNTERS})  # type: ignore[typeddict-item, literal-required]
    bare: Record = {**record, "cost": cost, "provenance": {"device": "machines of any kind, counters alone"}}
    return Distilled(distilled.folder, bare)


# --- which cells are the same -----------------------------------------------------------------------------------------


def _cells(distilled: Iterable[Distilled]) -> dict[str, Cell]:
    """Identity → the distillations that differ in nothing but the seed."""
    together: dict[str, list[Distilled]] = {}
    for folder in sorted(distinct(distilled), key=lambda folder: folder.record["distillation"]["seed"]):
        settings = Group((Member(folder.record),)).settings
        key = json.dumps([_measured_on(folder.record), settings], sort_keys=True)
        together.setdefault(key, []).append(folder)
    return {key: _cell(together[key]) for key in sorted(together)}


def _cell(distilled: Sequence[Distilled]) -> Cell:
    tested: dict[str, list[Member]] = {}
    for folder in distilled:
        accuracies = tuple(e for e in folder.evaluations if e["evaluation"] == ACCURACY)
        for member in members(dataclasses.replace(folder, evaluations=accuracies), {}):
            for result in member.last(ACCURACY)[:1]:
                key = [member.recipe, _measured_on(result.record)]
                tested.setdefault(json.dumps(key, sort_keys=True), []).append(member)
    group = Group(tuple(Member(folder.record) for folder in distilled))
    return Cell(group, {key: Group(tuple(same)) for key, same in tested.items()})


def _measured_on(record: Record | EvaluationRecord) -> str:
    """Device, threads and version of the protocol: numbers that differ in these are not compared."""
    provenance = record["provenance"]
    threads = provenance.get("threads")
    counted = "" if threads is None else f" ({threads} thread{'s' if threads > 1 else ''})"
    return f"{provenance.get('device') or 'unknown device'}{counted}, protocol version {record['protocol_version']}"


def _names(cells: Mapping[str, Cell]) -> dict[str, str]:
    """Identity → what tables show of a cell, and where two look the same, the settings in which they differ."""
    settings = {key: {**cell.distilled.settings, "on": cell.place} for key, cell in cells.items()}
    plain = {
        key: " ".join([*(f"{'ipc ' if s == 'ipc' else ''}{mine[s]}" for s in SHOWN), cells[key].distilled.table[1]])
        for key, mine in settings.items()
    }
    return {
        key: ", ".join([name, *_apart(settings[key], [settings[k] for k in cells if plain[k] == name])])
        for key, name in plain.items()
    }


def _apart(settings: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ``settings`` that one of ``others`` has otherwise."""
    differing = [s for s, value in settings.items() if any(other.get(s) != value for other in others)]
    return [f"{s.removeprefix('config.')}={settings[s]}" for s in differing]


def _circumstances(sides: Sequence[Sequence[Cell]]) -> list[str]:
    """Other differences between the two ``sides``, and other work on the device."""
    records = [[record for cell in side for record in cell.distilled.records] for side in sides]
    tested = [
        [e.record for cell in side for group in cell.tested.values() for m in group.members for e in m.results]
        for side in sides
    ]
    provenances = [[r["provenance"] for r in (*side, *by)] for side, by in zip(records, tested, strict=True)]
    names = {"commit", *(name for side in provenances for provenance in side for name in provenance)}
    notes = []
    for name in sorted(names - IMMATERIAL.keys()):
        old, new = (listed(str(provenance.get(name))[:60] for provenance in side) for side in provenances)
        if old != new:
            notes.append(f"{name}: {old} → {new}.")
    for side, distilled in zip(("BASELINE", "NEW"), records, strict=True):
        busy = Counter(r["cost"]["memory"]["busy"] for r in distilled if r["cost"]["memory"]["busy"])
        notes += [f"Other work on the device in {count} of {side}: {words}." for words, count in busy.items()]
    return notes


# --- one cell ---------------------------------------------------------------------------------------------------------


def _compare_cell(name: str, old: Cell, new: Cell, bounds: Bounds) -> list[Finding]:
    """A finding for the status, and one for every number where both sides have seeds that ended well."""
    before, after = old.distilled, new.distilled
    if differing := _mixed(name, "cell", before, after):
        return [differing]
    status = _status(name, "status", before, after)
    if before.ok and after.ok:
        return [
            status,
            _seconds(name, before, after, bounds),
            _memory(name, before, after, bounds),
            *(_counter(name, counter, before, after, bounds) for counter in COUNTERS),
            *_evaluations(name, old, new, bounds),
        ]
    if before.ok and status.verdict not in DECISIVE:  # as where an error and a success became two time limits
        return [status, _not_compared(name, "cell", "no seed of NEW ended well")]
    return [status]


def _status(name: str, quantity: str, before: Group, after: Group) -> Finding:
    ranks = [statistics.fmean(RANKS[m.status] for m in group.members) for group in (before, after)]
    old, new = (
        ", ".join(status if count == 1 else f"{status} ×{count}" for status, count in group.statuses)
        for group in (before, after)
    )
    return Finding(_verdict(-ranks[0], -ranks[1], lambda rank: rank), name, quantity, old, new)


def _evaluations(name: str, old: Cell, new: Cell, bounds: Bounds) -> list[Finding]:
    """Findings about evaluations by the same recipe; where there are several, the recipe is named."""
    recipes = {
        key: {**group.recipe, "on": _measured_on(group.members[0].last(ACCURACY)[0].record)}
        for key, group in {**old.tested, **new.tested}.items()
    }
    findings = []
    for key in recipes or [""]:
        sides = [cell.tested.get(key, Group(())) for cell in (old, new)]
        said = ", ".join(_apart(recipes.get(key, {}), list(recipes.values())))
        of = f" ({said})" if said else ""
        if all(group.members for group in sides):
            if differing := _mixed(name, f"test accuracy{of}", *sides):
                findings.append(differing)
                continue
            findings.append(_status(name, f"status of the evaluation{of}", *sides))
        for quantity, values in (("test accuracy", ACCURACY), ("KRR accuracy", "krr_accuracy")):
            before, after = ([m.values(values) for m in group.members if m.values(values)] for group in sides)
            findings.append(_accuracy(name, quantity + of, before, after, bounds))
    return findings


def _mixed(name: str, quantity: str, before: Group, after: Group) -> Finding | None:
    """Circumstances in which the records of one side differ: they are not one number."""
    for side, group in (("BASELINE", before), ("NEW", after)):
        parts = parted((Group((m,)) for m in group.members), lambda alone: alone.circumstances)
        kinds = [part[0].circumstances for part in parts]
        names = sorted({known for kind in kinds for known in kind})
        differing = [known for known in names if any(kind.get(known) != kinds[0].get(known) for kind in kinds)]
        if differing:
            return _not_compared(name, quantity, f"the records of {side} differ in {', '.join(differing)}")
    return None


def _seconds(name: str, before: Group, after: Group, bounds: Bounds) -> Finding:
    quantity = "seconds per step"
    old, new = before.step_seconds, after.step_seconds
    if not old or not new:
        return _unmeasured(name, quantity, old, new)
    lengths = sorted({int(length) for group in (before, after) for length in group.costs("steps_per_sample")})
    if lengths and lengths[-1] > LONGER * lengths[0]:
        return _not_compared(name, quantity, f"windows of {lengths[0]} to {lengths[-1]} steps")
    runs = [
        [r["cost"]["step_seconds"] for r in group.counted if r["cost"]["step_seconds"]] for group in (before, after)
    ]
    tested = [[median for run in side for median in blocks(run)] for side in runs]
    counts = [len(side) for side in tested]

    def enough(counts: Sequence[int]) -> bool:
        return 2 / math.comb(sum(counts), counts[0]) <= bounds.p_value  # the smallest p that the test can give

    if not enough(counts):  # which is no loss where BASELINE could not even be compared with itself
        reason, lost = f"too few samples for p < {bounds.p_value:g}", enough([counts[0], counts[0]])
        return _not_compared(name, quantity, reason if lost else f"{reason} in BASELINE", lost=lost)
    from scipy.stats import mannwhitneyu

    p = float(mannwhitneyu(*tested).pvalue)
    a, b = statistics.median(old), statistics.median(new)
    medians = [[statistics.median(run) for run in side] for side in runs]
    apart = max(medians[0]) < min(medians[1]) or max(medians[1]) < min(medians[0])
    significant = p < bounds.p_value and apart
    verdict = _verdict(a, b, lambda number: number * (1 + bounds.seconds)) if significant else UNCHANGED
    remarks = [_percent(a, b), f"p = {p:.2g}"]
    if min(map(len, runs)) == 1:
        remarks.append("runs not repeated")
    elif not apart:
        remarks.append("runs overlap")
    (a1, a3), (b1, b3) = (quartiles(samples) or (None, None) for samples in (old, new))
    numbers = Number(a, a1, a3, len(runs[0])), Number(b, b1, b3, len(runs[1]))
    texts = f"{a:.3g} s", f"{b:.3g} s", ", ".join(remarks)
    return Finding(verdict, name, quantity, *texts, unit="s", numbers=numbers, p=p)


def blocks(run: Sequence[float], count: int = BLOCKS) -> list[float]:
    """The medians of ``count`` parts of consecutive samples of one run; the samples themselves where they are fewer."""
    edges = [i * len(run) // count for i in range(count + 1)]
    return [statistics.median(run[begin:end]) for begin, end in itertools.pairwise(edges) if end > begin]


def _memory(name: str, before: Group, after: Group, bounds: Bounds) -> Finding:
    quantity = "peak memory"
    old, new = (
        {meter: peaks for meter, (size, _) in METERS.items() if (peaks := group.peaks(size, meter))}
        for group in (before, after)
    )
    if not old or not new:
        return _unmeasured(name, quantity, old, new)
    meter = next((meter for meter in old if meter in new), None)
    if meter is None:
        reason = f"different meters: {', '.join(old)} in BASELINE, {', '.join(new)} in NEW"
        return _not_compared(name, quantity, reason)
    a, b = statistics.median(old[meter]), statistics.median(new[meter])
    verdict = _verdict(a, b, lambda number: number * (1 + bounds.memory) + bounds.memory_bytes)
    texts = f"{mebibytes(a)} MiB", f"{mebibytes(b)} MiB", _percent(a, b)
    numbers = Number(a, count=len(old[meter])), Number(b, count=len(new[meter]))
    return Finding(verdict, name, f"{quantity} ({meter})", *texts, unit="bytes", numbers=numbers)


def _counter(name: str, counter: str, before: Group, after: Group, bounds: Bounds) -> Finding:
    (quantity, unit), old, new = COUNTERS[counter], before.costs(counter), after.costs(counter)
    if not old or not new:
        return _unmeasured(name, quantity, old, new)
    a, b = statistics.median(old), statistics.median(new)
    verdict = _verdict(a, b, lambda number: number * (1 + bounds.counters))
    texts = f"{a:,.0f}", f"{b:,.0f}", _percent(a, b, digits=2)
    numbers = Number(a, count=len(old)), Number(b, count=len(new))
    return Finding(verdict, name, quantity, *texts, unit=unit, numbers=numbers)


def _accuracy(
    name: str, quantity: str, before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], bounds: Bounds
) -> Finding:
    """Worse where the mean falls by more than both bounds.

    The second is a multiple of the standard deviation of a network's accuracy, over networks and seeds. At three seeds
    chance alone exceeds it in 3 of 1000 comparisons. It asks too much of many seeds: there Welch's test decides, of the
    means of the seeds, since the networks of one seed share a distilled set and are not independent. Of one seed the
    networks say nothing of how another run of it would have ended, so its fall must be larger. Where a side has too few
    networks for a spread, the mean must fall by more than a bound for that case alone.
    """
    old, new = ([value for seed in side for value in seed] for side in (before, after))
    if not old or not new:
        return _unmeasured(name, quantity, old, new)
    a, b = statistics.fmean(old), statistics.fmean(new)
    change = f"{100 * (b - a):+.1f} points"
    if min(len(old), len(new)) < FEWEST_NETWORKS:
        verdict = _verdict(-a, -b, lambda loss: loss + bounds.without_spread)
        few = f"{100 * a:.1f} %", f"{100 * b:.1f} %", f"{change}, fewer than {FEWEST_NETWORKS} networks"
        numbers = Number(a, count=len(old)), Number(b, count=len(new))
        return Finding(verdict, name, quantity, *few, unit=FRACTION, numbers=numbers)
    spreads = statistics.stdev(old), statistics.stdev(new)
    pooled = math.sqrt((spreads[0] ** 2 + spreads[1] ** 2) / 2)
    p = _welch([statistics.fmean(seed) for seed in before], [statistics.fmean(seed) for seed in after])
    significant = abs(b - a) > bounds.deviations * pooled or p < bounds.p_value
    bound = bounds.accuracy * (bounds.one_seed if min(len(before), len(after)) == 1 else 1)
    verdict = _verdict(-a, -b, lambda loss: loss + bound) if significant else UNCHANGED
    texts = [f"{100 * mean:.1f} ± {100 * spread:.1f} %" for mean, spread in zip((a, b), spreads, strict=True)]
    numbers = Number(a, a - spreads[0], a + spreads[0], len(old)), Number(b, b - spreads[1], b + spreads[1], len(new))
    tested = p if min(len(before), len(after)) > 1 else None
    return Finding(verdict, name, quantity, texts[0], texts[1], change, unit=FRACTION, numbers=numbers, p=tested)


def _welch(old: Sequence[float], new: Sequence[float]) -> float:
    """Two-sided p of Welch's test; 1 where there is no spread to test with."""
    if min(len(old), len(new)) < 2 or statistics.variance(old) + statistics.variance(new) == 0:
        return 1.0
    from scipy.stats import ttest_ind_from_stats

    moments = [moment for side in (old, new) for moment in (statistics.fmean(side), statistics.stdev(side), len(side))]
    return float(ttest_ind_from_stats(*moments, equal_var=False).pvalue)


def _verdict(old: float, new: float, limit: Callable[[float], float]) -> Verdict:
    """Of numbers that are better small: ``limit(number)`` is the largest that is as good as ``number``."""
    if new > limit(old):
        return "worse"
    return "improved" if old > limit(new) else UNCHANGED


def _unmeasured(name: str, quantity: str, old: Any, new: Any) -> Finding:
    where = "either" if not old and not new else "NEW" if old else "BASELINE"
    return _not_compared(name, quantity, f"not measured in {where}", lost=bool(old))


def _not_compared(name: str, quantity: str, reason: str, *, lost: bool = True) -> Finding:
    return Finding("not compared", name, quantity, change=reason, lost=lost)


def _percent(old: float, new: float, digits: int = 1) -> str:
    return f"{100 * (new / old - 1):+.{digits}f} %" if old else f"{new - old:+g}"


def flag(name: str) -> str:
    """The flag of the field ``name`` of `Bounds`."""
    return f"--{name.replace('_', '-')}"


# --- for a pull request -----------------------------------------------------------------------------------------------


def markdown(comparison: Comparison) -> str:
    """The comparison for a reviewer: counts first, then what changed, then what did not, folded."""
    counts = [f"{len(comparison.of(verdict))} {verdict}" for verdict in (*CHANGED, UNCHANGED)]
    if lost := sum(finding.lost for finding in comparison.findings):
        counts.append(f"{lost} not compared")
    parts = [f"### Compared with the baseline: {', '.join(counts)}"]
    if changed := [finding for verdict in CHANGED for finding in comparison.of(verdict)]:
        parts.append(_table(changed))
    if same := comparison.of(UNCHANGED):
        parts.append(f"<details><summary>{len(same)} {UNCHANGED}</summary>\n\n{_table(same)}\n\n</details>")
    reasons: dict[str, list[Finding]] = {}
    for finding in comparison.of("not compared"):
        reasons.setdefault(f"{finding.quantity}: {finding.change}", []).append(finding)
    lines = [
        f"- {literal(reason)} ({len(alike)} cell{'s' if len(alike) > 1 else ''})"
        + (f": {'; '.join(literal(finding.cell) for finding in alike)}" if alike[0].lost else "")
        for reason, alike in reasons.items()
    ]
    if lines:
        parts.append("Not compared:\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, "Notes:", "\n".join(f"- {literal(note)}" for note in comparison.notes)]) + "\n"


def _table(findings: Sequence[Finding]) -> str:
    rows = [
        [f"**{f.verdict}**" if f.verdict in DECISIVE else f.verdict]
        + [literal(text) for text in (f.cell, f.quantity, f.before, f.after, f.change)]
        for f in findings
    ]
    headers = ["verdict", "cell", "what", "baseline", "new", "change"]
    align = ["left", "left", "left", "right", "right", "right"]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, colalign=align)
