"""The tables of experiments: rows and columns as in the paper, and its numbers beside the measured ones, never mixed.

A `Sheet` is one such table as data. It holds what was measured on one device, under one budget, by one version.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from benchmarks import DATASETS
from benchmarks.data.views import base_name, split
from benchmarks.errors import UserError, choose
from harness.plan.budgets import BUDGETS, WIDTH
from harness.plan.experiments import ARCHITECTURES, EXPERIMENTS
from harness.plan.jobs import ACCURACY, ROUNDING, WHOLE_DATA, as_json
from harness.plan.request import FLOOR
from harness.records.record import Distilled, EvaluationRecord, Record, summarise
from harness.reports.groups import NONE, config_of, distinct, plugin
from harness.reports.measures import with_marks
from harness.reports.render import Table, letter, listed, percent
from harness.reports.reported import reported

NAMES = {WHOLE_DATA: "real data", FLOOR: "random real"}
"""Rows that are no method, as tables call them."""
POOLED = ("chunk", "order")
"""Fields of an evaluation's configuration over which tables take the mean."""
METHODS = ("real data", "random real", "herding", "dsa", "dm", "mtt", "kip", "frepo")
"""The order of rows and columns of methods; others come after them."""


@dataclass(frozen=True)
class Answer:
    """What an evaluation says of the last set of a distillation."""

    record: Record
    evaluation: EvaluationRecord

    @property
    def name(self) -> str:
        return self.evaluation["evaluation"]

    @property
    def config(self) -> dict[str, Any]:
        return config_of(self.evaluation)

    @property
    def method(self) -> str:
        return str(self.record["distillation"]["method"])

    @property
    def data(self) -> tuple[str, int]:
        """The whole data set, and the number of images per class; 0 for all."""
        distillation = self.record["distillation"]
        return base_name(str(distillation["dataset"])), int(distillation["ipc"])

    @property
    def native(self) -> bool:
        """Whether networks were trained as the paper of the method does it."""
        import methods

        try:
            return bool(self.config.get("protocol") == methods.get(self.method).PROTOCOL)
        except UserError:  # a set in a file, or a method that is not installed here
            return False

    @property
    def where(self) -> tuple[str, str, str]:
        """Device, budget and version, in which the numbers of a table agree."""
        device = self.evaluation["provenance"].get("device") or self.record["provenance"].get("device") or "unknown"
        return str(device), self.record["asked"]["budget"], self.evaluation["protocol_version"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that was asked for, except seeds and what tables take the mean over."""
        apart = {*POOLED, *ROUNDING, getattr(plugin(self.name), "grows", None)}
        base, suffix = split(str(self.record["distillation"]["dataset"]))
        known = {**self.record["config"], **self.record["distillation"], "dataset": base + re.sub(r"\d+", "#", suffix)}
        asked = {f"evaluation.{name}": v for name, v in self.evaluation["config"].items() if name not in apart}
        # The parts of the data that tables take the mean over have other images each.
        left_out = ("seed", "data_fingerprint") if suffix else ("seed",)
        return {name: v for name, v in {**known, **asked}.items() if name not in left_out}

    def values(self, quantity: str) -> list[float]:
        """The raw values; of series, the last of each."""
        return [series[-1] for series in self.series(quantity) if series]

    def series(self, quantity: str) -> list[list[float]]:
        """The raw values as series, of which an evaluation may hold several; single values are series of one."""
        ended_well = self.evaluation["status"] == "ok"
        known, values = plugin(self.name), self.evaluation["values"].get(quantity, []) if ended_well else []
        how = known.quantities.get(quantity) if known else None
        if how is None or how.against is None:
            return [[value] for value in values]
        return [list(part) for part in how.series(values, self.config)]


@dataclass(frozen=True)
class Entry:
    """The values of one cell of a table, all measured alike."""

    row: str
    column: str
    values: tuple[float, ...]
    fractions: bool
    """Whether they are fractions, shown in percent."""
    settings: Mapping[str, Any]
    krr: tuple[float, ...] = ()
    """Accuracies of kernel regression."""
    statuses: tuple[tuple[str, int], ...] = ()
    """How the evaluations ended, and how many of them."""

    @property
    def text(self) -> str:
        shown = _shown(*summarise(self.values), fractions=self.fractions)
        shown += f" ({_shown(*summarise(self.krr), fractions=True)})" if self.krr else ""
        return with_marks(shown, self.statuses)


@dataclass(frozen=True)
class Sheet:
    """A table of an experiment as data."""

    experiment: str
    about: str
    """The data set and the like that all of it shares; empty where rows or columns say it."""
    where: tuple[str, str, str]
    """Device, budget, version."""
    corner: str
    """What rows are."""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    entries: tuple[Entry, ...]
    paper: Mapping[tuple[str, str], str]
    """(Row, column) → the paper's number, as text; empty where it has none for these data."""

    def table(self) -> Table:
        """The sheet as text: beside each measured column that of the paper, where it has one."""
        marks: dict[str, str] = {}
        titles, cells = [], list[list[str]]()
        for column in self.columns:
            own = [self._cell(row, column, marks) for row in self.rows]
            papers = [self.paper.get((row, column), NONE) for row in self.rows]
            for title, texts in ((column, own), (f"{column}, paper", papers)):
                if set(texts) - {NONE}:
                    titles.append(title)
                    cells.append(texts)
        return Table(
            caption=self.caption,
            columns=(self.corner, *titles),
            rows=tuple(zip(self.rows, *cells, strict=True)),
            bold=frozenset(),
            notes=tuple(f"{mark}: {text}." for text, mark in marks.items()),
        )

    @property
    def caption(self) -> str:
        device, budget, version = self.where
        experiment = EXPERIMENTS[self.experiment]
        counts = {len(entry.values) for entry in self.entries if entry.values}
        distilled = {entry.settings["width"] for entry in self.entries}
        tested = {entry.settings.get("evaluation.width") or entry.settings["width"] for entry in self.entries}
        most = listed(entry.settings.get("evaluation.steps") for entry in self.entries)
        narrow = f", networks of width {listed(tested)} (published: {WIDTH})" if tested != {WIDTH} else ""
        narrow += f", trained for at most {most} steps" if most else ""
        narrow += f", on sets distilled with width {listed(distilled)}" if distilled != tested else ""
        alone = ", no deviation where n is 1" if 1 in counts else ""
        meaning = f" ({BUDGETS[budget].meaning})" if budget in BUDGETS else ""
        sentences = [
            f"{self.experiment}{f', {self.about}' if self.about else ''}: {experiment.meaning}",
            f"Measured on {device}, budget {budget}{meaning}, version {version}{narrow}: mean ± sample standard "
            f"deviation over n = {listed(counts)} values{alone}",
            "Beside it what the paper reports, for its own schedules and devices"
            if self.paper
            else "The paper has no numbers for this",
        ]
        return ". ".join([*sentences, *([experiment.unknown] if experiment.unknown else [])]) + "."

    def csv_rows(self) -> list[dict[str, Any]]:
        """A row for each measured cell, nothing rounded, with the paper's number as it is printed."""
        device, budget, version = self.where
        return [
            {
                "experiment": self.experiment,
                "about": self.about,
                "row": entry.row,
                "column": entry.column,
                **dict(zip(("mean", "std"), summarise(entry.values), strict=True)),
                "n": len(entry.values),
                "krr_mean": summarise(entry.krr)[0],
                "paper": self.paper.get((entry.row, entry.column)),
                "device": device,
                "budget": budget,
                "protocol_version": version,
                "width": entry.settings["width"],
                "settings": json.dumps(entry.settings, sort_keys=True),
            }
            for entry in self.entries
        ]

    def _cell(self, row: str, column: str, marks: dict[str, str]) -> str:
        """What was measured, with a mark for each of several settings; ``marks``: words → mark, added to."""
        own = [entry for entry in self.entries if (entry.row, entry.column) == (row, column)]
        widths = {entry.settings["width"] for entry in self.entries}
        texts = []
        for entry in own:
            others = [*(other.settings for other in own), *({**entry.settings, "width": width} for width in widths)]
            differing = dict.fromkeys(
                f"{name.removeprefix('evaluation.')}={value}"
                for name, value in entry.settings.items()
                if any(other.get(name) != value for other in others)
            )
            mark = marks.setdefault(", ".join(differing), f"[{letter(len(marks))}]") if differing else ""
            texts.append(f"{entry.text} {mark}".strip())
        return "; ".join(texts) or NONE


@dataclass(frozen=True)
class _Cell:
    """A measurement on its way into a table."""

    about: str
    row: str
    column: str
    values: Sequence[float]
    fractions: bool = True
    krr: Sequence[float] = ()
    published: bool = True
    """Whether the paper's numbers are for these data."""


@dataclass(frozen=True)
class _Form:
    """How a table is made: the cells of an answer, and the order of rows and columns; others come after these."""

    cells: Callable[[Answer], Iterator[_Cell]]
    corner: str
    rows: Sequence[str]
    columns: Sequence[str]
    alone: str = ""
    """The row or column that without any other makes no table of this experiment."""


def sheets(experiment: str, distilled: Iterable[Distilled]) -> list[Sheet]:
    """The tables of ``experiment``: what ``distilled`` has measured, a sheet for each device, budget and the like.

    Raises UserError for an unknown experiment, and for one that has figures instead.
    """
    choose("experiment", experiment, EXPERIMENTS)
    if experiment not in _FORMS:
        raise UserError(f"{experiment} has no table; those that have: {', '.join(_FORMS)}. harness.figures draws")
    form, paper = _FORMS[experiment], _paper(experiment)
    found: dict[tuple[str, tuple[str, str, str]], list[tuple[_Cell, Answer]]] = {}
    for answer in _answers(distilled):
        for cell in form.cells(answer):
            found.setdefault((cell.about, answer.where), []).append((cell, answer))
    made = []
    for (about, where), pairs in sorted(found.items(), key=lambda item: item[0]):
        cells = [cell for cell, _ in pairs]
        rows, columns = dict.fromkeys(cell.row for cell in cells), dict.fromkeys(cell.column for cell in cells)
        if [form.alone] in ([*rows], [*columns]):
            continue
        beside = {key: text for key, text in paper.items() if all(cell.published for cell in cells)}
        if experiment == "table1":  # of the data sets that were not measured nothing is shown
            beside = {key: text for key, text in beside.items() if key[0] in rows}
        rows, columns = rows | dict.fromkeys(row for row, _ in beside), columns | dict.fromkeys(c for _, c in beside)
        made.append(
            Sheet(
                *(experiment, about, where, form.corner),
                rows=tuple(sorted(rows, key=_place(form.rows))),
                columns=tuple(sorted(columns, key=_place(form.columns))),
                entries=_entries(pairs),
                paper=beside,
            )
        )
    return made


def has_table(experiment: str) -> bool:
    """Whether there are tables of ``experiment``; others have figures alone."""
    return experiment in _FORMS


def _answers(distilled: Iterable[Distilled]) -> Iterator[Answer]:
    """Every evaluation of a set that is there, that of the last step."""
    for folder in distinct(distilled):
        artifact = folder.record["artifact"]
        own = {"distillation": folder.record["identity"], "step": None, "sha256": artifact and artifact["sha256"]}
        for evaluation in {evaluation["identity"]: evaluation for evaluation in folder.evaluations}.values():
            if evaluation["sets"][-1] == own:
                yield Answer(folder.record, evaluation)


def _entries(pairs: Sequence[tuple[_Cell, Answer]]) -> tuple[Entry, ...]:
    """The cells with the values of all seeds and of all else that tables take the mean over."""
    together: dict[str, list[tuple[_Cell, Answer]]] = {}
    for cell, answer in pairs:
        key = json.dumps([cell.row, cell.column, answer.settings], sort_keys=True)
        together.setdefault(key, []).append((cell, answer))
    return tuple(
        Entry(
            *(own[0][0].row, own[0][0].column),
            tuple(value for cell, _ in own for value in cell.values),
            own[0][0].fractions,
            own[0][1].settings,
            tuple(value for cell, _ in own for value in cell.krr),
            tuple(sorted(Counter(answer.evaluation["status"] for _, answer in own).items())),
        )
        for own in together.values()
    )


def _place(known: Sequence[str]) -> Callable[[str], int]:
    """A key that sorts by the place in ``known``; others come last, in the order in which they are."""
    places = {name: place for place, name in enumerate(known)}
    return lambda name: places.get(name, len(places))


def _shown(mean: float | None, std: float | None, *, fractions: bool) -> str:
    if fractions:
        return percent(mean, std)
    return NONE if mean is None else f"{mean:.3f}" + ("" if std is None else f" ± {std:.3f}")


def _paper(experiment: str) -> dict[tuple[str, str], str]:
    """(Row, column) → what the paper prints there."""
    found = {}
    for entry in reported()["entries"]:
        task, method = f"{entry['dataset']}, ipc {entry['ipc']}", NAMES.get(entry["method"], entry["method"])
        if entry["source"] == f"frepo-{experiment}":
            text = percent(entry["accuracy"], entry["std"]) + ("†" if entry["rerun"] else "")
            if "krr_accuracy" in entry:
                text += f" ({percent(entry['krr_accuracy'], entry['krr_std'])})"
            found[(task, method) if experiment == "table1" else (method, task)] = text
    for cell in reported()["cells"]:
        if cell["table"] == experiment:
            fractions = experiment != "table4" or cell["column"] == TEST
            row = NAMES.get(cell["row"], cell["row"])
            found[row, cell["column"]] = _shown(cell["mean"], cell["std"], fractions=fractions)
    return found


# --- which answer stands where ----------------------------------------------------------------------------------------

LARGE = 64
"""Side in pixels from which images count as of high resolution."""
TEST = "test accuracy (%)"
_ATTACKS = {"threshold": "threshold", "lr": "LR", "mlp": "MLP", "rf": "RF", "knn": "kNN"}
_RATES = {"threshold_tpr_at_0.01": "TPR at 1 % FPR", "threshold_tpr_at_0.001": "TPR at 0.1 % FPR"}


def _row(answer: Answer) -> str:
    return NAMES.get(answer.method, answer.method)


def _task(answer: Answer) -> str:
    dataset, ipc = answer.data
    return f"{dataset}, ipc {ipc}" if ipc else dataset


def _is(answer: Answer, dataset: str) -> bool:
    """Whether the data are ``dataset``, or its images from JPEG files, which differ a little."""
    own = answer.data[0].removeprefix("folder:").replace("-", "_")
    return own in (dataset, f"{dataset}_jpeg")


def _table1(answer: Answer) -> Iterator[_Cell]:
    if answer.name == ACCURACY and answer.native and answer.method != WHOLE_DATA and _whole(answer):
        krr = answer.values("krr_accuracy")
        yield _Cell("", _task(answer), _row(answer), answer.values("accuracy"), krr=krr)


def _whole(answer: Answer) -> bool:
    """Whether the set was made from all training images."""
    return not split(str(answer.record["distillation"]["dataset"]))[1]


def _table2(answer: Answer) -> Iterator[_Cell]:
    published = _is(answer, "cifar10") and answer.data[1] == 10
    if answer.name == "cross_architecture" and "@" not in (name := answer.config["architectures"][0]):
        column = ARCHITECTURES.get(name, name)
        yield _Cell(_task(answer), _row(answer), column, answer.values("accuracy"), published=published)


def _table3(answer: Answer) -> Iterator[_Cell]:
    size = answer.record["distillation"]["image_size"] or 0
    if size >= LARGE or any(_is(answer, name) for name in ("imagenette", "imagewoof", "imagenet64")):
        for cell in _table1(answer):
            yield dataclasses.replace(cell, row=cell.column, column=cell.row)


def _attacked(answer: Answer) -> tuple[str, bool]:
    """What a table of attacks is about, and whether it is what the paper's is about."""
    config = answer.config
    augment = "without augmentation" if config["augment"] == "none" else "with the released augmentation"
    return f"{answer.data[0]}, {config['members']} members, {augment}", _is(answer, "mnist")


def _table4(answer: Answer) -> Iterator[_Cell]:
    if answer.name != "membership_inference":
        return
    about, published = _attacked(answer)
    columns = {"accuracy": TEST, **{f"{name}_auc": title for name, title in _ATTACKS.items()}, **_RATES}
    for quantity, column in columns.items():
        values = answer.values(quantity)
        if values or answer.evaluation["status"] != "ok":
            fractions = quantity == "accuracy" or quantity in _RATES
            yield _Cell(about, _row(answer), column, values, fractions, published=published)


def _lira(answer: Answer) -> Iterator[_Cell]:
    if answer.name != "lira":
        return
    about, _ = _attacked(answer)
    columns = {"accuracy": TEST}
    for attack, title in (("online_fixed_variance", "LiRA"), ("global_threshold", "global threshold")):
        columns |= {f"{attack}_auc": f"{title}, AUC", f"{attack}_tpr_at_0.01": f"{title}, TPR at 1 % FPR"}
    for quantity, column in columns.items():
        if values := answer.values(quantity):
            yield _Cell(about, _row(answer), column, values, not quantity.endswith("_auc"), published=False)


def _figure5cd(answer: Answer) -> Iterator[_Cell]:
    if answer.name != "membership_inference":
        return
    about, _ = _attacked(answer)
    for quantity, title, fractions in (("accuracy", TEST, True), ("threshold_auc", "threshold AUC", False)):
        for place, length in enumerate(answer.config["lengths"]):
            values = [series[place] for series in answer.series(quantity) if len(series) > place]
            yield _Cell(f"{about}, {title}", _row(answer), f"{length} steps", values, fractions, published=False)


def _figure5ab(answer: Answer) -> Iterator[_Cell]:
    if answer.name != "continual_learning":
        return
    dataset, ipc = answer.data
    leak = ", preprocessing fitted on all classes" if answer.config["leak"] else ""
    about, published = f"{dataset}{leak}", dataset == "cifar100" and ipc in (0, 20)
    steps = f"{answer.config['class_steps']} steps"
    for quantity, words in (("continual_accuracy", "last"), ("average_incremental_accuracy", "mean over steps")):
        yield _Cell(about, _row(answer), f"{steps}, {words}", answer.values(quantity), published=published)


def _ablations(answer: Answer) -> Iterator[_Cell]:
    if answer.method != "frepo" or answer.name != ACCURACY or not answer.native or not _whole(answer):
        return
    for quantity, title in (("accuracy", "accuracy (%)"), ("krr_accuracy", "KRR accuracy (%)")):
        if values := answer.values(quantity):
            yield _Cell(_task(answer), _variant(answer), title, values, published=False)


def _variant(answer: Answer) -> str:
    """The hyper-parameters that are not those of the budget, and network and norm that are not the paper's."""
    import methods
    from benchmarks.protocols import PROTOCOLS
    from harness.plan.planning import resolve

    of, frepo = answer.record["distillation"], methods.get("frepo")
    budget = answer.record["asked"]["budget"]
    try:
        usual = as_json(resolve({"frepo": frepo}, *answer.data, choose("budget", budget, BUDGETS), {})["frepo"][0])
    except UserError:  # of a budget that has no setting for these data, or of another version
        usual = as_json(frepo.Config())
    protocol = PROTOCOLS[frepo.PROTOCOL]
    usual |= {"network": protocol.network, "norm": protocol.distill_norm}
    own = {**answer.record["config"], **{name: of[name] for name in ("network", "norm")}}
    return ", ".join(f"{name}={value}" for name, value in own.items() if usual.get(name) != value) or "published"


def _protocol_matrix(answer: Answer) -> Iterator[_Cell]:
    if answer.name == "cross_architecture" and "@" in (name := answer.config["architectures"][0]):
        network, _, recipe = name.partition("@")
        row = f"{_row(answer)}, {network}"
        yield _Cell(_task(answer), row, recipe, answer.values("accuracy"), published=False)


_TASKS = [f"{dataset}, ipc {ipc}" for dataset in DATASETS for ipc in (1, 2, 10, 50)]
_FORMS = {
    "table1": _Form(_table1, "data set", _TASKS, METHODS),
    "table2": _Form(_table2, "method", METHODS, tuple(ARCHITECTURES.values())),
    "table3": _Form(_table3, "method", METHODS, _TASKS),
    "table4": _Form(_table4, "trained on", METHODS, (TEST, *_ATTACKS.values(), *_RATES.values())),
    "figure5ab": _Form(_figure5ab, "method", METHODS, ("5 steps, last", "5 steps, mean over steps", "10 steps, last")),
    "figure5cd": _Form(_figure5cd, "trained on", METHODS, ()),
    "lira": _Form(_lira, "trained on", METHODS, ()),
    "ablations": _Form(_ablations, "variant", ("published",), ("accuracy (%)",), alone="published"),
    "protocol_matrix": _Form(_protocol_matrix, "method", METHODS, ("vico", "mtt", "frepo", "common")),
}
