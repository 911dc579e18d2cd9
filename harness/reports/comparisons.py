"""Which method is better than which: paired comparisons of rows that were evaluated alike.

Networks that are evaluated depend on the seed and their index and never on the method. So the values of two rows pair
where they share data set, ipc, recipe, seed and index.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.reports.groups import NONE, Group, by_table, variants
from harness.reports.render import Table, listed
from harness.reports.statistics import FEWEST_PAIRS, FEWEST_SEEDS, LEVEL, Comparison, Interval, compare, holm, interval

Outcome = Literal["better", "better for these sets", "not distinguishable", "too few"]


@dataclass(frozen=True)
class RowComparison:
    """Two rows that were evaluated alike; where values pair, the mean difference is at least 0."""

    first: int
    second: int
    """Places of the rows."""
    comparison: Comparison | None
    """None where no values pair."""
    p: float | None = None
    """Corrected by Holm for all tests of the table."""
    smallest_p: float | None = None
    """The smallest that the corrected p could be."""

    @property
    def verdict(self) -> Outcome:
        """``better``: a test over seeds says so. ``better for these sets``: there are too few seeds for any test to
        say so, and the interval of the difference excludes 0.
        """
        own = self.comparison
        if self.p is not None and self.p <= LEVEL:
            return "better"
        if own is None or own.interval is None or own.pairs < FEWEST_PAIRS:
            return "too few"
        testable = self.smallest_p is not None and self.smallest_p <= LEVEL
        return "better for these sets" if own.interval.excludes_zero and not testable else "not distinguishable"


def by_seed(group: Group) -> dict[int, list[float]]:
    """Accuracies of every seed, in the order of the networks. A seed that was distilled twice has no pairs."""
    counts = Counter(member.seed for member in group.members)
    return {m.seed: m.values() for m in group.members if counts[m.seed] == 1 and m.values()}


def interval_of(group: Group) -> Interval | None:
    """The interval of the mean accuracy."""
    return interval([member.values() for member in group.members])


def row_comparisons(groups: Sequence[Group]) -> list[RowComparison]:
    """All pairs of rows of one table that were evaluated alike, networks trained on all real images apart."""
    values = [by_seed(group) for group in groups]
    compared = []
    for pair in (pair for places in _alike(groups) for pair in itertools.combinations(places, 2)):
        ways = [(one, other, compare(values[one], values[other])) for one, other in (pair, pair[::-1])]
        compared.append(next((way for way in ways if way[2] and way[2].difference >= 0), ways[0]))
    tested = [own for _, _, own in compared if own and own.seeds >= FEWEST_SEEDS]
    corrected, smallest = iter(holm([own.p for own in tested])), iter(holm([own.smallest_p for own in tested]))
    made = []
    for first, second, own in compared:
        p, least = (next(corrected), next(smallest)) if own and own.seeds >= FEWEST_SEEDS else (None, None)
        made.append(RowComparison(first, second, own, p, least))
    return made


def _alike(groups: Sequence[Group]) -> list[list[int]]:
    """Places of the rows that were evaluated alike, where there are at least two."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for place, group in enumerate(groups):
        if group.values and not group.ceiling:
            alike.setdefault(group.test, []).append(place)
    return [places for places in alike.values() if len(places) > 1]


def leaders(groups: Sequence[Group]) -> tuple[set[int], set[int]]:
    """Places of the best rows of those that were evaluated alike, and of the second.

    The best are the row with the highest mean, and each row with the same mean or that a comparison does not tell from
    it. The second are the same of the rows that are left, where at least three were evaluated alike and only one is
    the best: two best rows leave no second rank.
    """
    same = {
        frozenset((each.first, each.second))
        for each in row_comparisons(groups)
        if each.verdict == "not distinguishable"
    }

    def top(places: Sequence[int]) -> set[int]:
        means = {place: statistics.fmean(groups[place].values) for place in places}
        highest = {place for place, mean in means.items() if mean == max(means.values())}
        return highest | {place for place in places if any(frozenset((place, other)) in same for other in highest)}

    best, second = set[int](), set[int]()
    for places in _alike(groups):
        first = top(places)
        best |= first
        if len(first) == 1 and len(places) > 2:
            second |= top([place for place in places if place not in first])
    return best, second


def comparison_tables(groups: Sequence[Group]) -> list[Table]:
    """A table of comparisons for each device, budget, kind of protocol and version; none where nothing compares."""
    tables = []
    for key, same in by_table(groups).items():
        if made := row_comparisons(same):
            tables.append(_table(key, same, made))
    return tables


COLUMNS = (
    *("data set", "ipc", "recipe", "method", "compared with", "difference (points)", "95 % interval"),
    *("over", "p", "smallest p", "pairs", "seeds", "verdict"),
)


def comparison_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The rows of ``comparisons.csv``: nothing rounded, differences as fractions."""
    found = []
    for key, same in by_table(groups).items():
        names = _names(same)
        for each in row_comparisons(same):
            own = each.comparison
            found.append(
                {
                    **dict(zip(("device", "budget", "protocol_kind", "protocol_version"), key, strict=True)),
                    "dataset": same[each.first].distillation["dataset"],
                    "ipc": same[each.first].distillation["ipc"],
                    "recipe": same[each.first].protocol,
                    "method": names[each.first],
                    "compared_with": names[each.second],
                    "difference": own and own.difference,
                    "difference_low": own and own.interval and own.interval.low,
                    "difference_high": own and own.interval and own.interval.high,
                    "interval_over": own and own.interval and own.interval.over,
                    "p": own and own.p,
                    "p_corrected": each.p,
                    "smallest_p_corrected": each.smallest_p,
                    "pairs": own.pairs if own else 0,
                    "seeds": own.seeds if own else 0,
                    "verdict": each.verdict,
                }
            )
    return found


def _names(groups: Sequence[Group]) -> list[str]:
    pairs = zip(groups, variants(groups, ("evaluation.protocol",)), strict=True)
    return [group.method + ("" if setting == NONE else f" ({setting})") for group, setting in pairs]


def _table(key: Sequence[str], groups: Sequence[Group], made: Sequence[RowComparison]) -> Table:
    names = _names(groups)

    def row(each: RowComparison) -> tuple[str, ...]:
        group, own = groups[each.first], each.comparison
        known = own.interval if own else None
        return (
            group.distillation["dataset"],
            group.ipc,
            group.protocol,
            names[each.first],
            names[each.second],
            f"{100 * own.difference:+.1f}" if own else NONE,
            f"{100 * known.low:+.1f} to {100 * known.high:+.1f}" if known else NONE,
            known.over if known else NONE,
            NONE if each.p is None else f"{each.p:.2g}",
            NONE if each.smallest_p is None else f"{each.smallest_p:.2g}",
            str(own.pairs if own else 0),
            str(own.seeds if own else 0),
            each.verdict,
        )

    device, budget, kind, version = key
    tested = sum(each.p is not None for each in made)
    words = {
        "better": f"better: p ≤ {LEVEL:g}, of the exact test that changes the signs of the differences of the seeds",
        "better for these sets": "better for these sets: the seeds are too few for p to be so small, and the interval "
        "excludes 0; another distillation may turn out otherwise",
        "not distinguishable": "not distinguishable: p is larger, or the interval holds 0",
        "too few": f"too few: fewer than {FEWEST_PAIRS} pairs",
    }
    verdicts = [each.verdict for each in made]
    return Table(
        caption="Accuracy of method less that of the method compared with, in pairs of networks that share seed, "
        f"index and recipe. Measured on {device}, budget {budget}, {kind} protocol, version {version}.",
        columns=COLUMNS,
        rows=tuple(map(row, made)),
        bold=frozenset(),
        notes=(
            f"Verdicts: {'; '.join(text for verdict, text in words.items() if verdict in verdicts)}.",
            f"p is corrected by Holm for the {tested} tests of this table; smallest p: the least that it could be with "
            "so many seeds." * (tested > 0),
            coverage(listed(c.comparison.interval.over for c in made if c.comparison and c.comparison.interval)),
        ),
    )


def coverage(over: str) -> str:
    """What the intervals cover, in a sentence; ``over``: what was drawn again."""
    if not over:
        return ""
    alone = " One over networks alone is of a single seed, and says nothing of another distillation."
    return f"Intervals: nested bootstrap, percentiles, over {over}.{alone if 'networks' in over.split(', ') else ''}"
