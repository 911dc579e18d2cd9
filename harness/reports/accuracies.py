"""Accuracies as papers print them: methods by data sets and ipc, in LaTeX that fits a column."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.records.record import summarise
from harness.reports.comparisons import leaders
from harness.reports.groups import NONE, Group
from harness.reports.render import COLUMN, GAP, LETTER, SMALL, Table, emphasised, escape, letter, percent
from harness.reports.tables import accuracy_words, meaning, measured_on, missing

Task = tuple[str, str]
"""A data set, and the images per class in words."""
STARRED = "*"
"""Behind accuracies of which some runs failed."""
SECOND = "Underlined: the same of the rows that are left, where at least three were evaluated alike and one is bold"


@dataclass(frozen=True)
class AccuracyTable:
    """Accuracies of methods by task."""

    table: Table
    """Its first column has the methods."""
    tasks: tuple[Task, ...]
    """Those of the other columns."""

    def latex(self) -> str:
        """A floating table with the rules of booktabs, in parts below each other that fit a column of a paper."""
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{escape(self.table.caption)}}}",
                SMALL,
                "\n\\par\\medskip\n".join("\n".join(self._part(places)) for places in self._parts()),
                *(rf"\par\smallskip{{\scriptsize {escape(note)}\par}}" for note in self.table.notes),
                r"\end{table}",
                "",
            ]
        )

    def _parts(self) -> list[list[int]]:
        """Columns that stand side by side: as many as fit."""
        left = COLUMN - _wide(max(len(row[0]) for row in (("data set",), *self.table.rows)))
        parts: list[list[int]] = [[]]
        for place in range(1, 1 + len(self.tasks)):
            if parts[-1] and self._width([*parts[-1], place]) > left:
                parts.append([])
            parts[-1].append(place)
        return parts

    def _width(self, places: Sequence[int]) -> float:
        """Points that the columns at ``places`` take; a data set takes as many as its name or its columns."""
        return sum(
            max(_wide(len(data)), sum(_wide(max(len(row[j].replace(" ", "")) for row in self.table.rows)) for j in own))
            for data, own in self._by_data(places)
        )

    def _by_data(self, places: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
        for data, own in itertools.groupby(places, key=lambda place: self.tasks[place - 1][0]):
            yield data, list(own)

    def _part(self, places: Sequence[int]) -> list[str]:
        heads, rules, first = ["data set"], [], 2
        for data, own in self._by_data(places):
            heads.append(rf"\multicolumn{{{len(own)}}}{{c}}{{{escape(data)}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{first + len(own) - 1}}}")
            first += len(own)
        lines = [
            [escape(row[0]), *(_small_deviation(self.table, (i, j)) for j in places)]
            for i, row in enumerate(self.table.rows)
            if any(row[j] != NONE for j in places)
        ]
        return [
            rf"\begin{{tabular}}{{l{'r' * len(places)}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            "".join(rules),
            " & ".join(["ipc", *(self.tasks[j - 1][1] for j in places)]) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
        ]


def _small_deviation(table: Table, place: tuple[int, int]) -> str:
    """The cell at ``place`` in LaTeX, its deviation in small type."""
    mean, plus, std = table.rows[place[0]][place[1]].partition(" ± ")
    shown = emphasised(table, place, escape(mean))
    return shown + (rf"{{\scriptsize$\pm${escape(std)}}}" if plus else "")


def _wide(letters: int) -> float:
    return LETTER * letters + 2 * GAP


def accuracy_table(groups: Sequence[Group], places: Sequence[int]) -> AccuracyTable | None:
    """The accuracies of those of ``groups``, which share device, budget and protocol, that are at ``places``.

    Ranks are among all ``groups``. None where nothing was evaluated.
    """
    best, second = leaders(groups)
    shown = [groups[place] for place in places if groups[place].evaluated]
    words = accuracy_words(shown)
    if words is None:
        return None
    marks: dict[str, str] = {}
    labels = {place: _label(groups[place], groups, marks) for place in places}
    tasks = list(dict.fromkeys((_data(g, groups), g.ipc) for g in shown if not g.ceiling))
    tasks += dict.fromkeys((_data(g, groups), g.ipc) for g in shown if _data(g, groups) not in dict(tasks))
    order = list(dict.fromkeys(data for data, _ in tasks))
    tasks.sort(key=lambda task: order.index(task[0]))
    found: dict[str, dict[Task, list[int]]] = {label: {} for label in dict.fromkeys(labels.values())}
    for place in places:
        group = groups[place]
        for task in tasks:
            if task[0] == _data(group, groups) and (group.ceiling or task[1] == group.ipc):
                found[labels[place]].setdefault(task, []).append(place)
    cells = {
        (i, j): own
        for i, by_task in enumerate(found.values())
        for j, task in enumerate(tasks, start=1)
        if (own := by_task.get(task))
    }

    def ranked(ranks: set[int]) -> frozenset[tuple[int, int]]:
        return frozenset(cell for cell, own in cells.items() if ranks & {*own})

    evaluated = [(labels[place], groups[place]) for place in places if groups[place].values]
    sentences = [
        f"Test accuracy (%): top-1 after the last step, {words}",
        *_apart("n =", evaluated, lambda group: len(group.values), always=False),
        *_apart("Recipe", evaluated, lambda group: group.protocol),
        *_apart("Network", evaluated, lambda group: group.recipe.get("network") or group.distillation["network"]),
        *_apart("Width", evaluated, lambda group: group.recipe.get("width") or group.distillation["width"]),
        *meaning(groups, best)[1:],
        *([SECOND] if ranked(second) else []),
        *(["Ranks are among more rows than are shown"] if best and len(places) < len(groups) else []),
        measured_on(groups)[0],
        *missing(groups),
    ]
    return AccuracyTable(
        Table(
            caption=f"{'. '.join(sentences)}.",
            columns=("method", *(f"{data}, ipc {ipc}" for data, ipc in tasks)),
            rows=tuple(
                (label, *("; ".join(_text(groups[place]) for place in by_task.get(task, ())) or NONE for task in tasks))
                for label, by_task in found.items()
            ),
            bold=ranked(best),
            underlined=ranked(second),
            notes=(
                *(f"{mark} {text}." for text, mark in marks.items()),
                "Rows of methods with several images in the pixels of one are ranked apart: "
                f"{', '.join(dict.fromkeys(labels[p] for p in places if groups[p].decoder))}."
                * any(group.decoder for group in shown),
                *(
                    f"{STARRED} {labels[place]} on {_data(groups[place], groups)}, ipc {groups[place].ipc}: "
                    f"{', '.join(f'{status} {count}' for status, count in groups[place].statuses)}."
                    for place in places
                    if _failed(groups[place])
                ),
            ),
        ),
        tuple(tasks),
    )


def _text(group: Group) -> str:
    shown = percent(*summarise(group.values))
    if shown == NONE:
        return next((status for status, _ in group.statuses if status != "ok"), NONE)
    return shown + STARRED * _failed(group)


def _failed(group: Group) -> bool:
    """Whether there are accuracies, and runs that have none."""
    return bool(group.values) and any(status != "ok" for status, _ in group.statuses)


def _data(group: Group, groups: Sequence[Group]) -> str:
    """The name of the data set, with the beginning of its fingerprint where several data have the name."""
    name, own = group.distillation["dataset"], group.distillation["data_fingerprint"]
    several = {g.distillation["data_fingerprint"] for g in groups if g.distillation["dataset"] == name} - {own}
    return f"{name} ({str(own)[:8]})" if several else str(name)


def _label(group: Group, groups: Sequence[Group], marks: dict[str, str]) -> str:
    """The method, with a mark where a task has it in several settings; ``marks``: words → mark, added to."""

    def known(each: Group) -> Mapping[str, object]:
        return each.conditions | each.settings

    own = [known(each) for each in groups if each.method == group.method]
    tasks = [each.contest for each in groups if each.method == group.method]
    differing = dict.fromkeys(
        name
        for (one, task), (other, same) in itertools.combinations(zip(own, tasks, strict=True), 2)
        if task == same
        for name in {**one, **other}
        if one.get(name) != other.get(name)
    )
    parts = [
        f"{name.removeprefix('config.').removeprefix('environment.')}={value}"
        for name in differing
        if (value := known(group).get(name)) is not None
    ]
    if not parts:
        return group.method
    words = f"{group.method}: {', '.join(parts)}"
    return f"{group.method} {marks.setdefault(words, f'[{letter(len(marks))}]')}"


def _apart(
    name: str, rows: Sequence[tuple[str, Group]], value: Callable[[Group], object], *, always: bool = True
) -> list[str]:
    """``Recipe common``, or the rows of each value where there are several; not ``always``: only then."""
    values: dict[str, dict[str, None]] = {}
    for label, group in rows:
        values.setdefault(str(value(group)), {})[label] = None
    if len(values) == 1:
        return [f"{name} {next(iter(values))}"] * always
    told = ((text, ", ".join(own)) for text, own in values.items())
    return [f"{name} {', '.join(f'{text} ({labels})' for text, labels in told)}"]
