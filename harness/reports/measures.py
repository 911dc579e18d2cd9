"""Values of evaluations, as columns and figures show them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.plan.jobs import ACCURACY
from harness.records.record import EvaluationRecord, summarise
from harness.reports.groups import NONE, Group, Result, config_of, plugin
from harness.reports.render import percent

if TYPE_CHECKING:
    from harness.evaluations.base import Quantity


@dataclass(frozen=True)
class Measure:
    """A quantity of an evaluation with one configuration of its own."""

    evaluation: str
    own: str
    """As `Result.own`."""
    name: str
    """Of the quantity, as the values of the record have it."""
    quantity: Quantity
    title: str
    """The column; with the fields of the configuration that other evaluations in the table have otherwise."""
    label: str
    """The beginning of the columns of a CSV file."""
    first: bool
    """Whether it is the first quantity of the evaluation, in whose column failures are told."""

    def results(self, group: Group) -> list[Result]:
        return [result for member in group.members for result in member.last(self.evaluation, self.own)]

    def series(self, group: Group) -> list[list[float]]:
        """The series in the raw values of every evaluation that ended well."""
        return [
            series
            for result in self.results(group)
            for series in self.quantity.series(result.values(self.name), config_of(result.record))
        ]

    def places(self, group: Group) -> Sequence[float]:
        """The places of the values of a series on its axis."""
        found = (config_of(result.record).get(self.quantity.at or "") for result in self.results(group))
        return next(filter(None, found), range(1, 1 + max(map(len, self.series(group)), default=0)))

    def values(self, group: Group) -> list[float]:
        """Values over networks and seeds; of series, the last one of each."""
        return [
            value
            for result in self.results(group)
            for value in self.quantity.repeated(result.values(self.name), config_of(result.record))
        ]

    @property
    def scale(self) -> float:
        """Factor by which values are shown."""
        return 100.0 if self.quantity.percent else 1.0

    def text(self, group: Group) -> str:
        """Mean ± sample standard deviation, with a mark for what did not end well, and n where it is another."""
        values = self.values(group)
        mean, std = summarise(values)
        shown = NONE if mean is None else f"{mean:.3g}" + ("" if std is None else f" ± {std:.2g}")
        if self.quantity.percent:
            shown = percent(mean, std)
        if std is not None and len(values) != len(group.values):
            shown += f", n = {len(values)}"
        if not self.first:
            return shown
        statuses = sorted(Counter(result.record["status"] for result in self.results(group)).items())
        return with_marks(shown, group.statuses if self.evaluation == ACCURACY else statuses)


def with_marks(shown: str, statuses: Iterable[tuple[str, int]]) -> str:
    """``93.0 ± 0.4 (oom 1 of 3)``; where nothing was measured, how the first of the failures ended."""
    counts = dict(statuses)
    total, failed = sum(counts.values()), {status: count for status, count in counts.items() if status != "ok"}
    marks = [f"{status} {count} of {total}" for status, count in failed.items()]
    if shown == NONE and marks:
        return marks[0] if total > 1 else next(iter(failed))
    return " ".join([shown, *(f"({mark})" for mark in marks)])


def measures(groups: Iterable[Group]) -> list[Measure]:
    """Everything that was measured of the last sets of ``groups``, the accuracy first, whether it has values or not."""
    records: dict[tuple[str, str], list[EvaluationRecord]] = {(ACCURACY, "{}"): []}
    for result in (result for group in groups for member in group.members for result in member.results):
        if result.step is None:
            records.setdefault((result.record["evaluation"], result.own), []).append(result.record)
    made = []
    for evaluation, own in sorted(records, key=lambda key: (key[0] != ACCURACY, key)):
        config, others = json.loads(own), [json.loads(other) for name, other in records if name == evaluation]
        asks = plugin(evaluation)
        # A list of which each item is a question of its own: the item names the column, without the field.
        items = config.pop(asks.each) if asks and asks.each and isinstance(config.get(asks.each), list) else []
        apart = [f"{k}={v}" for k, v in config.items() if any(other.get(k, ...) != v for other in others)]
        apart = [*map(str, items if isinstance(items, list) else [items]), *apart]
        prefix = evaluation + (f"[{', '.join(apart)}]" if apart else "")
        known = _quantities(evaluation, records[evaluation, own])
        told = next((name for name, quantity in known if quantity.tabled), known[0][0])
        for name, quantity in known:
            label = name if evaluation == ACCURACY else f"{prefix}.{name}".removesuffix(".")
            title = ", ".join([quantity.title, *apart])
            made.append(Measure(evaluation, own, name, quantity, title, label, name == told))
    titles = Counter(measure.title for measure in made)
    return [m if titles[m.title] == 1 else dataclasses.replace(m, title=f"{m.title} ({m.label})") for m in made]


def _quantities(evaluation: str, records: Sequence[EvaluationRecord]) -> list[tuple[str, Quantity]]:
    """The quantities of which ``records`` have values, in the order of the plugin; the first one where none has any.

    Those that no plugin explains are numbers under the name that they have in the record.
    """
    from harness.evaluations.base import Quantity

    known = plugin(evaluation)
    quantities = dict(known.quantities) if known else {}
    written = {name for record in records for name, values in record["values"].items() if values}
    for name in sorted(written - quantities.keys()):
        quantities[name] = Quantity(f"{evaluation}.{name}", percent=False, drawn=False)
    first = next(iter(quantities), "")
    quantities.setdefault(first, Quantity(evaluation, percent=False, drawn=False))
    return [(name, quantities[name]) for name in quantities if name in written] or [(first, quantities[first])]
