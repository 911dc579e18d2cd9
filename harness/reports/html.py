"""Records → one page: everything in a single HTML file, which opens from disk and asks no network for anything.

The page is ``html.jinja`` with ``html.css`` and ``html.js`` in it. The same records give the same bytes. Records come
from outside: the template escapes every text, and its content-security policy lets nothing else in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.data.views import base_name
from benchmarks.errors import printable
from harness.plan.experiments import EXPERIMENTS
from harness.plan.jobs import WHOLE_DATA
from harness.plan.request import FLOOR
from harness.records.record import RECORD, Distilled, EvaluationRecord, summarise
from harness.reports import figures, scaling, svg
from harness.reports.comparisons import comparison_tables
from harness.reports.drawing import ORDER
from harness.reports.groups import NONE, Group, by_table, distinct, grouped
from harness.reports.html_images import images
from harness.reports.paper_tables import has_table, sheets
from harness.reports.render import Table, leading, listed, percent
from harness.reports.tables import tables as measured_tables
from harness.reports.verdicts import verdicts

LONG = 20
"""Numbers of a list that the page shows."""
ACCURACIES = ("table1", "table3")
"""Experiments that without numbers of the paper say what the other tables say."""
RECORD_LETTERS = 1_500_000
"""Of all records and evaluations together; those beyond are named, and lie in the folders."""


@dataclass(frozen=True)
class TableData:
    """A table of the page: rows and columns as data, so that a reader can sort, filter and hide them."""

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of the best."""
    notes: tuple[str, ...] = ()
    values: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """(row, column) → the number by which a cell is sorted; by default that with which its text begins."""
    behind: tuple[tuple[tuple[str, int], ...], ...] = ()
    """For each row the records behind it: what the link says, and the place of the record among those of the page."""

    @classmethod
    def of(cls, title: str, table: Table, behind: Iterable[Iterable[tuple[str, int]]] = ()) -> TableData:
        """The same as a table of the other renderers."""
        links = tuple(tuple(row) for row in behind)
        return cls(title, table.caption, table.columns, table.rows, table.bold, table.notes, behind=links)

    def sorts(self, row: int, column: int) -> float | None:
        """The number by which a cell is sorted; None: by its text."""
        return self.values.get((row, column), leading(self.rows[row][column]))

    @cached_property
    def numeric(self) -> tuple[bool, ...]:
        """Of every column, whether most of its cells begin with a number."""
        columns = [[self.sorts(i, j) for i, row in enumerate(self.rows) if row[j] != NONE] for j in self._places]
        return tuple(sum(value is not None for value in column) * 2 > len(column) for column in columns)

    @cached_property
    def common(self) -> tuple[int, ...]:
        """Columns that say the same in every row: the page tells it once, and hides them at first."""
        same = [j for j in self._places if j and len({row[j] for row in self.rows}) == 1]
        return tuple(same) if len(self.rows) > 1 else ()

    @property
    def _places(self) -> range:
        return range(len(self.columns))


Pair = tuple[list[Group], Table]
"""Groups, and the table of which they are the rows."""


def tables(distilled: Sequence[Distilled], pairs: Sequence[Pair]) -> list[TableData]:
    """All tables of the page, in their order: of what was measured, then the paper's with its numbers, then of costs.

    ``distilled``: the records of the page, none twice. ``pairs``: as `measured` gives them.
    """
    places = {id(each.record): place for place, each in enumerate(distilled)}
    made = []
    for same, table in pairs:
        behind = [[(f"seed {m.seed}", places[id(m.record)]) for m in group.members] for group in same]
        made.append(TableData.of(_title(same), table, behind))
    made += [
        TableData.of(printable(", ".join(filter(None, (sheet.experiment, sheet.about)))), sheet.table())
        for experiment in filter(has_table, EXPERIMENTS)
        for sheet in sheets(experiment, distilled)
        if sheet.paper or experiment not in ACCURACIES
    ]
    return made + [TableData.of("How cost grows with the network", table) for table in scaling.tables(distilled)]


def measured(groups: Sequence[Group], *, intervals: bool = False) -> list[Pair]:
    """The tables of what was measured, those with accuracies first, each with the groups of its rows."""
    pairs = zip(by_table(groups).values(), measured_tables(groups, intervals=intervals), strict=True)
    return sorted(pairs, key=lambda pair: not pair[0][0].evaluated)


def page(
    distilled: Sequence[Distilled],
    damaged: Sequence[str] = (),
    *,
    intervals: bool = False,
    comparisons: bool = False,
) -> str:
    """The page. ``damaged``: a line for each file that could not be read.

    ``intervals``: tables have a column of them. ``comparisons``: which method is better than which has tables.
    """
    import jinja2  # slow, and --help must not wait for it

    folders = distinct(distilled)
    groups = grouped(folders)
    pairs = measured(groups, intervals=intervals)
    apart = comparison_tables(groups) if comparisons else []
    here = Path(__file__)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    methods = sorted({g.method for g in groups}, key=lambda name: (name not in ORDER, (*ORDER, name).index(name)))
    shown = sorted(groups, key=lambda g: (g.distillation["dataset"], g.distillation["ipc"], methods.index(g.method)))
    return environment.get_template("html.jinja").render(
        style=here.with_name("html.css").read_text("utf-8"),
        script=here.with_name("html.js").read_text("utf-8"),
        facts=_facts(folders, groups, methods),
        verdicts=verdicts(groups),
        glances=[_glance(same, table, methods) for same, table in pairs if _compared(same)],
        tables=[*tables(folders, pairs), *(TableData.of("Which is better", table) for table in apart)],
        figures=[svg.figure(drawing) for drawing in figures.drawings(folders)],
        images=images(shown, folders, _accuracy_text),
        unmeasured=unmeasured(folders, groups, damaged),
        records=_records(folders),
    )


# --- the summary ------------------------------------------------------------------------------------------------------


def _facts(folders: Sequence[Distilled], groups: Sequence[Group], methods: Sequence[str]) -> list[tuple[str, str]]:
    asked = [folder.record["distillation"] for folder in folders]
    statuses = Counter(folder.record["status"] for folder in folders)
    failed = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()) if status != "ok")
    evaluations = sum(len(folder.evaluations) for folder in folders)
    facts = {
        "Distillations": f"{len(folders)}" + (f" ({failed})" if failed else ""),
        "Evaluations": str(evaluations),
        "Images per class": listed(each["ipc"] for each in asked if each["method"] != WHOLE_DATA),
        "Seeds": listed(each["seed"] for each in asked),
        "Budgets": listed(group.table[1] for group in groups),
        "Protocols": listed(group.table[2] for group in groups),
        "Version": listed(group.table[3] for group in groups),
        "Devices": listed(group.table[0] for group in groups),
        "Methods": ", ".join(methods),
        "Data sets": listed(base_name(each["dataset"]) for each in asked),
    }
    return [(name, printable(text)) for name, text in facts.items() if text]


def _title(groups: Sequence[Group], what: str = "") -> str:
    device, budget, kind, _ = groups[0].table
    what = what or ("Accuracy and cost" if groups[0].evaluated else "Cost of an iteration")
    return printable(f"{what}: {kind} protocol, budget {budget}, {device}")


def _compared(groups: Sequence[Group]) -> bool:
    return len({group.method for group in groups if group.values}) > 1


def _glance(groups: Sequence[Group], table: Table, methods: Sequence[str]) -> TableData:
    """Accuracies alone: a row for each data set and ipc, a column for each method."""
    best = {row for row, _ in table.bold}
    shown = [name for name in methods if any(group.method == name and group.values for group in groups)]
    asked = [group for group in groups if group.values or not group.is_part]
    contests = dict.fromkeys((g.distillation["dataset"], g.distillation["ipc"]) for g in asked if not g.ceiling)
    rows, bold, values = [], set(), {}
    for place, (dataset, ipc) in enumerate(contests):
        row = [dataset, str(ipc)]
        for name in shown:
            same = [
                (number, group)
                for number, group in enumerate(groups)
                if group.method == name
                and group.distillation["dataset"] == dataset
                and (group.ceiling or group.distillation["ipc"] == ipc)
            ]
            tested = [(number, group) for number, group in same if group.values]
            texts = [_accuracy_text(group) for _, group in tested] or [s for _, g in same for s, _ in g.statuses]
            if tested and all(number in best for number, _ in tested):
                bold.add((place, len(row)))
            if tested:
                values[place, len(row)] = max(summarise(group.values)[0] or 0.0 for _, group in tested)
            row.append(" / ".join(dict.fromkeys(text for text in texts if text != "ok")) or NONE)
        rows.append(tuple(map(printable, row)))
    caption = "Test accuracy in %, mean ± sample standard deviation. Several numbers: several settings, see the table. "
    bolded = "Bold: the best of those that were evaluated alike." if bold else "No two were evaluated alike."
    return TableData(
        _title(groups, "Accuracy"),
        caption + bolded,
        ("data set", "ipc", *shown),
        tuple(rows),
        frozenset(bold),
        values=values,
    )


def _accuracy_text(group: Group) -> str:
    return percent(*summarise(group.values))


# --- what was not measured --------------------------------------------------------------------------------------------


def unmeasured(folders: Sequence[Distilled], groups: Sequence[Group], damaged: Sequence[str]) -> TableData:
    """What failed, what no folder holds although its neighbours do, and what could not be read."""
    rows, behind = [], []
    for place, folder in enumerate(folders):
        asked = folder.record["distillation"]
        where = (asked["method"], asked["dataset"], str(asked["ipc"]), f"seed {asked['seed']}, width {asked['width']}")
        parts: list[tuple[str, Any]] = [("distillation", folder.record)]
        parts += [(f"evaluation {part['evaluation']}", part) for part in folder.evaluations]
        for what, part in parts:
            if part["status"] != "ok":
                message = " ".join((part["message"] or "no message").split())
                rows.append((part["status"], what, *where, message))
                behind.append([(f"seed {asked['seed']}", place)])
    for method, dataset, ipc, device in _holes(groups):
        why = f"no record, although its neighbours on {device} have one: it was not asked for, or has not run yet"
        rows.append(("left out", "distillation", method, dataset, ipc, NONE, why))
        behind.append([])
    for line in damaged:
        rows.append(("damaged", "file", NONE, NONE, NONE, NONE, line))
        behind.append([])
    columns = ("status", "what", "method", "data set", "ipc", "where", "why")
    shown = tuple(tuple(map(printable, row)) for row in rows)
    return TableData("Not measured", "", columns, shown, behind=tuple(tuple(links) for links in behind))


def _holes(groups: Sequence[Group]) -> list[tuple[str, str, str, str]]:
    """(method, data set, ipc, device) that a table of accuracies lacks, where its method and its task have others."""
    holes = []
    for key, own in by_table(groups).items():
        same = [group for group in own if group.evaluated and not (group.ceiling or group.is_part)]
        there = {(group.method, group.distillation["dataset"], group.ipc) for group in same}
        tasks = dict.fromkeys((dataset, ipc) for _, dataset, ipc in sorted(there))
        names = sorted({FLOOR, *(method for method, _, _ in there)}) if there else []
        holes += [(name, *task, key[0]) for task in tasks for name in names if (name, *task) not in there]
    return holes


# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordData:
    """A distillation as the page shows it, in JSON."""

    title: str
    status: str
    command: str
    config: str
    record: str
    evaluations: tuple[tuple[str, str], ...]
    """(name, JSON)."""
    left_out: int
    """Evaluations for which there was no room."""


def _records(folders: Sequence[Distilled]) -> list[RecordData]:
    """All of ``folders``. First the records have room, then evaluations of the last sets, then those of snapshots."""
    parts: list[tuple[int, int, str, str]] = []
    for place, folder in enumerate(folders):
        record = dict(folder.record)
        record.pop("config")
        parts.append((0, place, RECORD, pretty(record)))
        for evaluation in folder.evaluations:
            step = evaluation["sets"][0]["step"]
            name = evaluation["evaluation"] + ("" if step is None else f" after step {step}")
            parts.append((1 if step is None else 2, place, name, pretty(_own(evaluation, folder))))
    left, kept = RECORD_LETTERS, dict[int, list[tuple[str, str]]]()
    for _, place, name, text in sorted(parts, key=lambda part: part[0]):
        left -= len(text)
        if left >= 0:
            kept.setdefault(place, []).append((name, text))
    made = []
    for place, folder in enumerate(folders):
        asked, there = folder.record["distillation"], kept.get(place, [])
        ipc = "all" if asked["method"] == WHOLE_DATA else asked["ipc"]
        name = f"{asked['method']} · {asked['dataset']} · ipc {ipc} · {asked['network']}, width {asked['width']}"
        command = folder.record["provenance"].get("command")
        made.append(
            RecordData(
                printable(f"{name} · seed {asked['seed']}"),
                folder.record["status"],
                printable(str(command)) if command else "not known",
                pretty(folder.record["resolved"] or folder.record["config"]),
                next((text for kind, text in there if kind == RECORD), "no room in this page; it lies in the folder"),
                tuple(part for part in there if part[0] != RECORD),
                1 + len(folder.evaluations) - len(there) if there else len(folder.evaluations),
            )
        )
    return made


def _own(evaluation: EvaluationRecord, folder: Distilled) -> dict[str, Any]:
    """The evaluation, with that part of its provenance that is not the distillation's as well."""
    shared = folder.record["provenance"]
    own = {k: v for k, v in evaluation["provenance"].items() if shared.get(k) != v}
    return {**evaluation, "provenance": own}


def pretty(value: Any, indent: str = "") -> str:
    """JSON, a line for each field; long lists of numbers are cut, and say so."""
    if isinstance(value, dict) and value:
        inner = indent + "  "
        lines = [f"{inner}{json.dumps(k, ensure_ascii=False)}: {pretty(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return "[" + ", ".join(pretty(part, indent) for part in value) + "]"
    if isinstance(value, list) and len(value) > LONG:
        return f"[{json.dumps(value[:LONG])[1:-1]}, … {len(value)} in all]"
    return json.dumps(value, ensure_ascii=False)
